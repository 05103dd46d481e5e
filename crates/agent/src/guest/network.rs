//! The guest's one network device, as the boot plan says.

use std::fs;
use std::io;
use std::path::Path;

use iii_protocol::guest::GuestNetwork;

use super::netlink::Netlink;
use crate::console;
use crate::error::StartError;

/// The device of a machine; its kernel names the first one so.
pub(super) const DEVICE: &str = "eth0";
/// Where the kernel tells of its devices.
const DEVICES: &str = "/sys/class/net";
/// IPv6 settings of a device: nobody is asked whether an address is free, no router is waited for, and no address is
/// made up.
const IPV6_SETTINGS: [(&str, &str); 3] = [("accept_dad", "0"), ("accept_ra", "0"), ("addr_gen_mode", "1")];

/// Sets the device up. Without IPv4 a worker has no network, and is not started; a kernel without IPv6 is none of its
/// business.
pub(super) fn set_up(network: &GuestNetwork) -> Result<(), StartError> {
    let failed =
        |what: &str, error: io::Error| StartError::new("network", format!("{DEVICE}: {what}: {error}"));
    let index = find(Path::new(DEVICES), network.mac).map_err(|error| failed("it is not there", error))?;
    for (setting, value) in IPV6_SETTINGS {
        // Not there in a kernel without IPv6, or without that setting.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{DEVICE}/{setting}"), value);
    }
    let netlink = Netlink::open().map_err(|error| failed("no way to the kernel", error))?;
    netlink.bring_up(index, Some(network.mtu)).map_err(|error| failed("it stays down", error))?;
    for route in &network.addresses {
        let made = netlink
            .add_address(index, route.address, route.prefix)
            .and_then(|()| netlink.add_default_route(index, route.gateway));
        match made {
            Ok(()) => {}
            Err(error) if route.address.is_ipv6() => {
                console::say(format_args!("{DEVICE} has no IPv6: {error}"));
            }
            Err(error) => return Err(failed(&route.address.to_string(), error)),
        }
    }
    Ok(())
}

/// The device's number. Another hardware address than the plan's means that this is not the device it is about.
fn find(devices: &Path, mac: [u8; 6]) -> io::Result<u32> {
    let device = devices.join(DEVICE);
    let text = mac.map(|byte| format!("{byte:02x}")).join(":");
    let found = fs::read_to_string(device.join("address"))?;
    if found.trim() != text {
        return Err(io::Error::other(format!("its address is {}, not {text}", found.trim())));
    }
    fs::read_to_string(device.join("ifindex"))?.trim().parse().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, UdpSocket};

    use iii_protocol::guest::GuestAddress;
    use iii_protocol::network::{
        GATEWAY_IPV4, GATEWAY_IPV6, GUEST_IPV4, GUEST_IPV6, GUEST_MAC, IPV4_PREFIX, IPV6_PREFIX, MTU,
    };

    use super::super::netlink::tests::{in_a_new_network, make_dummy};
    use super::*;

    fn plan() -> GuestNetwork {
        let four: (IpAddr, u8, IpAddr) = (GUEST_IPV4.into(), IPV4_PREFIX, GATEWAY_IPV4.into());
        let six: (IpAddr, u8, IpAddr) = (GUEST_IPV6.into(), IPV6_PREFIX, GATEWAY_IPV6.into());
        let addresses = [four, six]
            .into_iter()
            .map(|(address, prefix, gateway)| GuestAddress { address, prefix, gateway })
            .collect();
        GuestNetwork { mac: GUEST_MAC, mtu: MTU, addresses, dns: Vec::new(), hosts: Vec::new() }
    }

    #[test]
    fn the_device_has_its_addresses_and_ways_out_at_once() {
        in_a_new_network(|| {
            let netlink = Netlink::open().expect("netlink");
            if !make_dummy(&netlink, DEVICE, GUEST_MAC) {
                eprintln!("SKIPPED: this kernel has no dummy devices");
                return;
            }
            // What find() looks at belongs to the network namespace that mounted it, so it is not asked here.
            let index = nix::net::if_::if_nametoindex(DEVICE).expect("index");
            netlink.bring_up(index, Some(MTU)).expect("up");
            for it in plan().addresses {
                netlink.add_address(index, it.address, it.prefix).expect("address");
                netlink.add_default_route(index, it.gateway).expect("route");
                // The kernel says by which address it would go there.
                let far: IpAddr = match it.address {
                    IpAddr::V4(_) => Ipv4Addr::new(1, 2, 3, 4).into(),
                    IpAddr::V6(_) => "2001:db8::1".parse().expect("address"),
                };
                let socket = UdpSocket::bind((it.address, 0)).expect("usable at once");
                socket.connect((far, 53)).expect("a way there");
                assert_eq!(socket.local_addr().expect("address").ip(), it.address);
            }
        });
    }

    #[test]
    fn a_device_with_another_hardware_address_is_not_the_one() {
        let devices = tempfile::tempdir().expect("folder");
        assert_eq!(find(devices.path(), GUEST_MAC).unwrap_err().kind(), io::ErrorKind::NotFound);
        let device = devices.path().join(DEVICE);
        fs::create_dir(&device).expect("folder");
        fs::write(device.join("ifindex"), "2\n").expect("file");
        fs::write(device.join("address"), "02:69:69:69:00:02\n").expect("file");
        assert_eq!(find(devices.path(), GUEST_MAC).expect("found"), 2);
        let error = find(devices.path(), [2, 0, 0, 0, 0, 1]).unwrap_err().to_string();
        assert_eq!(error, "its address is 02:69:69:69:00:02, not 02:00:00:00:00:01");
    }
}
