//! Echo requests: the gateway answers its own; others go out through the host's unprivileged ping sockets, where the
//! host lets this user have them (`net.ipv4.ping_group_range`), and are unreachable where not.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use smoltcp::wire::IpProtocol;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

use crate::neighbor;
use crate::policy::Verdict;
use crate::report::Attempt;
use crate::stack::{Shared, is_gateway};
use crate::udp::send_echo;
use crate::wire::{Packet, Unreachable, send_icmp, send_unreachable};

/// Types of ICMP (RFC 792) and ICMPv6 (RFC 4443, RFC 4861).
const ECHO_REQUEST: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;
const SOLICITATION: u8 = 135;
/// Type, code, checksum, identifier, sequence number.
const ECHO_HEADER: usize = 8;

/// An ICMP packet of the guest.
pub(crate) fn ingress(shared: &Rc<Shared>, packet: &Packet<'_>) {
    let Some(kind) = packet.payload.first() else { return shared.counters.malformed.add(1) };
    match (packet.destination, packet.protocol, *kind) {
        (IpAddr::V6(_), IpProtocol::Icmpv6, SOLICITATION) => {
            neighbor::answer_solicitation(&shared.link, packet)
        }
        (IpAddr::V4(_), IpProtocol::Icmp, ECHO_REQUEST)
        | (IpAddr::V6(_), IpProtocol::Icmpv6, ECHO_REQUEST_V6) => {
            echo(shared, packet);
        }
        _ => {}
    }
}

fn echo(shared: &Rc<Shared>, packet: &Packet<'_>) {
    if packet.payload.len() < ECHO_HEADER || packet.payload[1] != 0 {
        return shared.counters.malformed.add(1);
    }
    if is_gateway(packet.destination) {
        let mut reply = packet.payload.to_vec();
        reply[0] = if packet.destination.is_ipv4() { 0 } else { 129 };
        return send_icmp(&shared.link, packet.destination, packet.source, &reply);
    }
    match shared.judge(packet.destination, None) {
        // A mapped address would need the other protocol.
        Verdict::Allowed { host } if host.is_ipv4() != packet.destination.is_ipv4() => {
            send_unreachable(&shared.link, packet.whole, Unreachable::Host);
        }
        Verdict::Allowed { host } => {
            let identifier = u16::from_be_bytes([packet.payload[4], packet.payload[5]]);
            send_echo(shared, packet, identifier, || ping_socket(host));
        }
        Verdict::Denied { reason } => {
            shared.denied(Attempt::Icmp(packet.destination), reason);
            send_unreachable(&shared.link, packet.whole, Unreachable::Prohibited);
        }
    }
}

/// A socket whose messages are ICMP echo, connected. To the runtime it is one of datagrams, which it is.
fn ping_socket(to: IpAddr) -> std::io::Result<UdpSocket> {
    let (domain, protocol) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
    socket.connect(&SocketAddr::new(to, 0).into())?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket.into())
}
