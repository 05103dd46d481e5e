//! Datagrams and echo requests of the guest.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use iii_netstack::{Event, Reason};
use iii_protocol::network::{Egress, GATEWAY_IPV4, GATEWAY_IPV6, GUEST_IPV4, GUEST_MAC};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::icmp;
use smoltcp::wire::{
    DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress, Icmpv4Packet, Icmpv4Repr, Icmpv6Packet,
    Icmpv6Repr, IpProtocol, IpRepr, UdpPacket, UdpRepr,
};

use crate::guest::{Guest, by_gateway, event, eventually, loopback, settings, start, start_with};

pub(crate) fn echo() -> SocketAddr {
    let socket = UdpSocket::bind(loopback()).unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = vec![0; 65535];
        while let Ok((count, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..count], from).unwrap();
        }
    });
    address
}

#[test]
fn datagrams_come_back_small_and_large() {
    let (mut guest, handle) = start(Egress::All);
    let address = by_gateway(echo());
    let socket = guest.udp(4000);
    for length in [0, 1, 1472, 65000] {
        let bytes = vec![5; length];
        guest.send_to(socket, address, &bytes);
        assert_eq!(guest.receive_from(socket), (bytes, address), "{length}");
    }
    assert_eq!(handle.counters().udp_opened.get(), 1);
}

#[test]
fn a_port_without_a_server_is_reported_by_icmp() {
    let gone = UdpSocket::bind(loopback()).unwrap().local_addr().unwrap();
    let (mut guest, _handle) = start(Egress::All);
    let socket = guest.udp(4000);
    guest.send_to(socket, by_gateway(gone), b"anybody?");
    let (kind, code, about) = guest.icmp_error();
    assert_eq!((kind, code), (3, 3));
    assert_eq!(about[20..24], [4000_u16.to_be_bytes(), gone.port().to_be_bytes()].concat());
}

#[test]
fn what_the_policy_refuses_is_prohibited_and_reported() {
    let (mut guest, mut handle) = start(Egress::Public);
    let socket = guest.udp(4000);
    guest.send_to(socket, "10.0.0.5:53".parse().unwrap(), b"hello");
    let (kind, code, _) = guest.icmp_error();
    assert_eq!((kind, code), (3, 13));
    let told = event(&mut handle);
    assert_eq!(told.to_string(), "egress denied udp 10.0.0.5:53 (private)");
    guest.send_to(socket, "[fd00:ec2::254]:80".parse().unwrap(), b"hello");
    let (kind, code, _) = guest.icmp_error();
    assert_eq!((kind, code), (1, 1));
    assert!(matches!(event(&mut handle), Event::Denied { reason: Reason::Metadata, .. }));
}

#[test]
fn a_silent_flow_is_forgotten_and_so_is_one_too_many() {
    let mut few = settings();
    few.limits.udp_idle = Duration::from_millis(100);
    few.limits.udp_flows = 2;
    let (mut guest, handle) = start_with(Egress::All, few);
    let address = by_gateway(echo());
    for port in 4000..4010 {
        let socket = guest.udp(port);
        guest.send_to(socket, address, b"x");
        assert_eq!(guest.receive_from(socket).0, b"x");
    }
    assert_eq!(handle.counters().udp_opened.get(), 10);
    assert!(handle.counters().over_limit.get() >= 1);
    let socket = guest.udp(4100);
    guest.send_to(socket, address, b"x");
    guest.receive_from(socket);
    let opened = handle.counters().udp_opened.get();
    eventually("another flow for the same ports", || {
        guest.send_to(socket, address, b"x");
        guest.receive_from(socket);
        thread::sleep(Duration::from_millis(150));
        handle.counters().udp_opened.get() > opened
    });
}

fn ping(guest: &mut Guest, to: IpAddr) -> smoltcp::iface::SocketHandle {
    let ring = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 4096]);
    let mut socket = icmp::Socket::new(ring(), ring());
    socket.bind(icmp::Endpoint::Ident(0x1234)).unwrap();
    let caps = ChecksumCapabilities::ignored();
    let bytes = match to {
        IpAddr::V4(_) => {
            let echo = Icmpv4Repr::EchoRequest { ident: 0x1234, seq_no: 1, data: b"ping" };
            let mut bytes = vec![0; echo.buffer_len()];
            echo.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes[..]), &caps);
            bytes
        }
        IpAddr::V6(six) => {
            let echo = Icmpv6Repr::EchoRequest { ident: 0x1234, seq_no: 1, data: b"ping" };
            let mut bytes = vec![0; echo.buffer_len()];
            echo.emit(&six, &six, &mut Icmpv6Packet::new_unchecked(&mut bytes[..]), &caps);
            bytes
        }
    };
    socket.send_slice(&bytes, to.into()).unwrap();
    guest.sockets.add(socket)
}

#[test]
fn the_gateway_answers_echo_requests_itself() {
    let (mut guest, _handle) = start(Egress::None);
    for (gateway, reply) in [(IpAddr::V4(GATEWAY_IPV4), 0), (IpAddr::V6(GATEWAY_IPV6), 129)] {
        let socket = ping(&mut guest, gateway);
        let (bytes, from) = guest.until("an echo", |guest| {
            let (bytes, from) = guest.sockets.get_mut::<icmp::Socket<'_>>(socket).recv().ok()?;
            Some((bytes.to_vec(), from))
        });
        assert_eq!((bytes[0], IpAddr::from(from)), (reply, gateway));
        assert_eq!(&bytes[8..], b"ping");
        guest.sockets.remove(socket);
    }
}

#[test]
fn echo_requests_go_out_where_the_host_lets_them_and_are_unreachable_where_not() {
    let may_ping =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, Some(socket2::Protocol::ICMPV4))
            .is_ok();
    // The host's loopback has no address that a guest may ping but the gateway's, so this is the policy's part; the
    // socket's part is seen where a rule opens an address of the host's own.
    let own = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 200));
    let (mut guest, handle) = start(Egress::Public);
    ping(&mut guest, own);
    let (kind, code, _) = guest.icmp_error();
    assert_eq!((kind, code), (3, 13));
    assert_eq!(handle.counters().denied.get(), 1);
    if !may_ping {
        let (mut guest, handle) = start(Egress::All);
        ping(&mut guest, own);
        let (kind, _, _) = guest.icmp_error();
        assert_eq!(kind, 3);
        assert_eq!(handle.counters().udp_failed.get(), 1);
    }
}

#[test]
fn a_guest_that_asks_for_a_lease_gets_its_one_address() {
    let (mut guest, _handle) = start(Egress::None);
    for (ask, expected) in [
        (DhcpMessageType::Discover, DhcpMessageType::Offer),
        (DhcpMessageType::Request, DhcpMessageType::Ack),
    ] {
        let request = DhcpRepr {
            message_type: ask,
            transaction_id: 42,
            secs: 0,
            client_hardware_address: EthernetAddress(GUEST_MAC),
            client_ip: Ipv4Addr::UNSPECIFIED,
            your_ip: Ipv4Addr::UNSPECIFIED,
            server_ip: Ipv4Addr::UNSPECIFIED,
            router: None,
            subnet_mask: None,
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            broadcast: false,
            requested_ip: None,
            client_identifier: None,
            server_identifier: None,
            parameter_request_list: None,
            dns_servers: None,
            max_size: None,
            lease_duration: None,
            renew_duration: None,
            rebind_duration: None,
            additional_options: &[],
        };
        let mut body = vec![0; request.buffer_len()];
        request.emit(&mut DhcpPacket::new_unchecked(&mut body[..])).unwrap();
        let (from, to) = (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::BROADCAST.into());
        let ip = IpRepr::new(from, to, IpProtocol::Udp, 8 + body.len(), 64);
        let caps = ChecksumCapabilities::default();
        let mut packet = vec![0; ip.buffer_len()];
        ip.emit(&mut packet, &caps);
        UdpRepr { src_port: 68, dst_port: 67 }.emit(
            &mut UdpPacket::new_unchecked(&mut packet[ip.header_len()..]),
            &from,
            &to,
            body.len(),
            |bytes| bytes.copy_from_slice(&body),
            &caps,
        );
        guest.raw(&[&[0xff; 6][..], &GUEST_MAC, &[8, 0], &packet].concat());
        guest.frame("a lease", |frame| {
            let message = DhcpPacket::new_checked(frame.get(14 + 28..)?).ok()?;
            let reply = DhcpRepr::parse(&message).ok()?;
            assert_eq!((reply.message_type, reply.transaction_id), (expected, 42));
            assert_eq!((reply.your_ip, reply.router), (GUEST_IPV4, Some(GATEWAY_IPV4)));
            assert_eq!(reply.dns_servers.unwrap()[..], [GATEWAY_IPV4]);
            Some(())
        });
    }
}
