//! A DHCP server for images that ask (RFC 2131). There is one lease, it is the guest's, and it never ends.

use std::net::Ipv4Addr;
use std::rc::Rc;

use iii_protocol::network::{GATEWAY_IPV4, GUEST_IPV4, GUEST_MAC, IPV4_PREFIX, MTU};
use smoltcp::wire::{
    DHCP_CLIENT_PORT, DHCP_SERVER_PORT, DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr, EthernetAddress,
    UdpPacket,
};

use crate::stack::Shared;
use crate::tcp::FlowKey;
use crate::wire::{Packet, send_udp};

/// A lease without end.
const FOREVER_S: u32 = u32::MAX;
/// Option 26 (RFC 2132, 5.1): the MTU of the interface.
const OPTION_MTU: u8 = 26;

/// Whether this datagram is for the server.
pub(crate) fn is_request(key: FlowKey) -> bool {
    key.guest == DHCP_CLIENT_PORT && key.outside.port() == DHCP_SERVER_PORT
}

/// Answers a request.
pub(crate) fn ingress(shared: &Rc<Shared>, packet: &Packet<'_>) {
    let Ok(udp) = UdpPacket::new_checked(packet.payload) else { return };
    if udp.src_port() != DHCP_CLIENT_PORT || udp.dst_port() != DHCP_SERVER_PORT {
        return;
    }
    let Ok(message) = DhcpPacket::new_checked(udp.payload()) else { return };
    let Ok(request) = DhcpRepr::parse(&message) else { return };
    if request.client_hardware_address != EthernetAddress(GUEST_MAC) {
        return shared.counters.spoofed.add(1);
    }
    let wants_ours = || request.requested_ip.is_none_or(|ip| ip == GUEST_IPV4);
    let is_for_us = request.server_identifier.is_none_or(|server| server == GATEWAY_IPV4);
    let message_type = match request.message_type {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        DhcpMessageType::Request if is_for_us && wants_ours() => DhcpMessageType::Ack,
        DhcpMessageType::Request if is_for_us => DhcpMessageType::Nak,
        _ => return,
    };
    let mtu = MTU.to_be_bytes();
    let options = [DhcpOption { kind: OPTION_MTU, data: &mtu }];
    let is_lease = message_type != DhcpMessageType::Nak;
    let mut dns_servers = request.dns_servers.clone().unwrap_or_default();
    dns_servers.clear();
    // There is room for one.
    let _ = dns_servers.push(GATEWAY_IPV4);
    let reply = DhcpRepr {
        message_type,
        your_ip: if is_lease { GUEST_IPV4 } else { Ipv4Addr::UNSPECIFIED },
        server_ip: GATEWAY_IPV4,
        server_identifier: Some(GATEWAY_IPV4),
        router: is_lease.then_some(GATEWAY_IPV4),
        subnet_mask: is_lease.then_some(Ipv4Addr::from(!(u32::MAX >> IPV4_PREFIX))),
        lease_duration: is_lease.then_some(FOREVER_S),
        dns_servers: is_lease.then_some(dns_servers),
        client_identifier: None,
        requested_ip: None,
        parameter_request_list: None,
        max_size: None,
        renew_duration: None,
        rebind_duration: None,
        additional_options: &options,
        ..request
    };
    let mut body = vec![0; reply.buffer_len()];
    if reply.emit(&mut DhcpPacket::new_unchecked(&mut body[..])).is_ok() {
        let from = (GATEWAY_IPV4.into(), DHCP_SERVER_PORT);
        send_udp(&shared.link, from, (Ipv4Addr::BROADCAST.into(), DHCP_CLIENT_PORT), &body);
    }
}
