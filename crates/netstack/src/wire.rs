//! Packets: reading the guest's, and building those that no socket of smoltcp makes (ICMP, UDP, a lone RST).

use std::net::IpAddr;

use iii_protocol::network::{GATEWAY_IPV4, GATEWAY_IPV6};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4Message, Icmpv4Packet, Icmpv6Message, Icmpv6Packet, IpProtocol, IpRepr, Ipv4Packet, Ipv6Packet,
    TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket, UdpRepr,
};

use crate::link::Link;

/// Hop limit of packets to the guest.
pub(crate) const HOP_LIMIT: u8 = 64;
/// Bytes of a packet that an ICMP error quotes (RFC 1812, 4.3.2.3: the error has at most 576).
const QUOTED_V4: usize = 576 - 20 - 8;
/// The same of ICMPv6 (RFC 4443, 2.4: the error fits the least MTU).
const QUOTED_V6: usize = 1280 - 40 - 8;

/// An IP packet of the guest, checked as far as its own lengths go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packet<'a> {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: IpProtocol,
    pub(crate) payload: &'a [u8],
    /// Header and payload, without what Ethernet padded.
    pub(crate) whole: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Reads a packet. `None` for what is malformed or a fragment: with this MTU no honest guest makes any.
    pub(crate) fn read(bytes: &'a [u8]) -> Option<Packet<'a>> {
        match bytes.first()? >> 4 {
            4 => {
                let ip = Ipv4Packet::new_checked(bytes).ok()?;
                if !ip.verify_checksum() || ip.more_frags() || ip.frag_offset() != 0 {
                    return None;
                }
                let (header, total) = (usize::from(ip.header_len()), usize::from(ip.total_len()));
                Some(Packet {
                    source: IpAddr::V4(ip.src_addr()),
                    destination: IpAddr::V4(ip.dst_addr()),
                    protocol: ip.next_header(),
                    payload: bytes.get(header..total)?,
                    whole: bytes.get(..total)?,
                })
            }
            6 => {
                let ip = Ipv6Packet::new_checked(bytes).ok()?;
                let total = ip.header_len() + usize::from(ip.payload_len());
                Some(Packet {
                    source: IpAddr::V6(ip.src_addr()),
                    destination: IpAddr::V6(ip.dst_addr()),
                    protocol: ip.next_header(),
                    payload: bytes.get(ip.header_len()..total)?,
                    whole: bytes.get(..total)?,
                })
            }
            _ => None,
        }
    }
}

/// Why a packet did not get where it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreachable {
    /// No way to that network.
    Network,
    /// The host there does not answer.
    Host,
    /// Nobody listens.
    Port,
    /// The policy says no.
    Prohibited,
}

impl Unreachable {
    /// What an error of a host's socket means; `None` for what is no word about the destination.
    pub(crate) fn of(error: &std::io::Error) -> Option<Unreachable> {
        match error.kind() {
            std::io::ErrorKind::ConnectionRefused => Some(Unreachable::Port),
            std::io::ErrorKind::HostUnreachable => Some(Unreachable::Host),
            std::io::ErrorKind::NetworkUnreachable
            | std::io::ErrorKind::NetworkDown
            | std::io::ErrorKind::AddrNotAvailable => Some(Unreachable::Network),
            std::io::ErrorKind::PermissionDenied => Some(Unreachable::Prohibited),
            _ => None,
        }
    }
}

/// Answers `packet` with an ICMP error from the gateway. Nothing is said about packets to many, nor about ICMP errors
/// (RFC 1122, 3.2.2).
pub(crate) fn send_unreachable(link: &Link, packet: &[u8], why: Unreachable) {
    let Some(about) = Packet::read(packet) else { return };
    if about.destination.is_multicast() || about.destination == IpAddr::V4(std::net::Ipv4Addr::BROADCAST) {
        return;
    }
    match (about.source, about.protocol) {
        (IpAddr::V4(guest), protocol) => {
            if protocol == IpProtocol::Icmp && about.payload.first() != Some(&8) {
                return;
            }
            let code = match why {
                Unreachable::Network => 0,
                Unreachable::Host => 1,
                Unreachable::Port => 3,
                Unreachable::Prohibited => 13,
            };
            let quoted = &about.whole[..about.whole.len().min(QUOTED_V4)];
            let (from, to) = (IpAddr::V4(GATEWAY_IPV4), IpAddr::V4(guest));
            let ip = IpRepr::new(from.into(), to.into(), IpProtocol::Icmp, 8 + quoted.len(), HOP_LIMIT);
            link.send_ip(&ip, |bytes| {
                bytes[..8].fill(0);
                bytes[8..].copy_from_slice(quoted);
                let mut icmp = Icmpv4Packet::new_unchecked(bytes);
                icmp.set_msg_type(Icmpv4Message::DstUnreachable);
                icmp.set_msg_code(code);
                icmp.fill_checksum();
            });
        }
        (IpAddr::V6(guest), protocol) => {
            if protocol == IpProtocol::Icmpv6 && about.payload.first().is_none_or(|kind| kind & 0x80 == 0) {
                return;
            }
            let code = match why {
                Unreachable::Network => 0,
                Unreachable::Prohibited => 1,
                Unreachable::Host => 3,
                Unreachable::Port => 4,
            };
            let quoted = &about.whole[..about.whole.len().min(QUOTED_V6)];
            let (from, to) = (IpAddr::V6(GATEWAY_IPV6), IpAddr::V6(guest));
            let ip = IpRepr::new(from.into(), to.into(), IpProtocol::Icmpv6, 8 + quoted.len(), HOP_LIMIT);
            link.send_ip(&ip, |bytes| {
                bytes[..8].fill(0);
                bytes[8..].copy_from_slice(quoted);
                let mut icmp = Icmpv6Packet::new_unchecked(bytes);
                icmp.set_msg_type(Icmpv6Message::DstUnreachable);
                icmp.set_msg_code(code);
                icmp.fill_checksum(&GATEWAY_IPV6, &guest);
            });
        }
    }
}

/// A UDP datagram as bytes of an IP packet, for an error that quotes one which is gone. Eight bytes after the IP header
/// are what a guest needs to find its socket.
pub(crate) fn udp_header(from: (IpAddr, u16), to: (IpAddr, u16)) -> Vec<u8> {
    let ip = IpRepr::new(from.0.into(), to.0.into(), IpProtocol::Udp, 8, HOP_LIMIT);
    let mut bytes = vec![0; ip.buffer_len()];
    ip.emit(&mut bytes, &ChecksumCapabilities::default());
    let mut udp = UdpPacket::new_unchecked(&mut bytes[ip.header_len()..]);
    udp.set_src_port(from.1);
    udp.set_dst_port(to.1);
    udp.set_len(8);
    bytes
}

/// Sends a datagram to the guest.
pub(crate) fn send_udp(link: &Link, from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) {
    let udp = UdpRepr { src_port: from.1, dst_port: to.1 };
    let ip =
        IpRepr::new(from.0.into(), to.0.into(), IpProtocol::Udp, udp.header_len() + payload.len(), HOP_LIMIT);
    link.send_ip(&ip, |bytes| {
        let mut packet = UdpPacket::new_unchecked(bytes);
        let emit = |body: &mut [u8]| body.copy_from_slice(payload);
        udp.emit(
            &mut packet,
            &from.0.into(),
            &to.0.into(),
            payload.len(),
            emit,
            &ChecksumCapabilities::default(),
        );
    });
}

/// Refuses a TCP segment of the guest with an RST (RFC 9293, 3.10.7.1).
pub(crate) fn send_reset(link: &Link, packet: &Packet<'_>) {
    let Ok(tcp) = TcpPacket::new_checked(packet.payload) else { return };
    if tcp.rst() || packet.destination.is_multicast() {
        return;
    }
    let (seq_number, ack_number) = if tcp.ack() {
        (tcp.ack_number(), None)
    } else {
        (TcpSeqNumber(0), Some(tcp.seq_number() + tcp.segment_len()))
    };
    let reset = TcpRepr {
        src_port: tcp.dst_port(),
        dst_port: tcp.src_port(),
        control: TcpControl::Rst,
        seq_number,
        ack_number,
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let (from, to) = (packet.destination.into(), packet.source.into());
    let ip = IpRepr::new(from, to, IpProtocol::Tcp, reset.buffer_len(), HOP_LIMIT);
    link.send_ip(&ip, |bytes| {
        reset.emit(&mut TcpPacket::new_unchecked(bytes), &from, &to, &ChecksumCapabilities::default());
    });
}

/// Sends an ICMP message that `body` holds from its type on, with the checksum filled in.
pub(crate) fn send_icmp(link: &Link, from: IpAddr, to: IpAddr, body: &[u8]) {
    match (from, to) {
        (IpAddr::V4(_), IpAddr::V4(_)) => {
            let ip = IpRepr::new(from.into(), to.into(), IpProtocol::Icmp, body.len(), HOP_LIMIT);
            link.send_ip(&ip, |bytes| {
                bytes.copy_from_slice(body);
                Icmpv4Packet::new_unchecked(bytes).fill_checksum();
            });
        }
        (IpAddr::V6(source), IpAddr::V6(guest)) => {
            let ip = IpRepr::new(from.into(), to.into(), IpProtocol::Icmpv6, body.len(), 255);
            link.send_ip(&ip, |bytes| {
                bytes.copy_from_slice(body);
                Icmpv6Packet::new_unchecked(bytes).fill_checksum(&source, &guest);
            });
        }
        _ => {}
    }
}

/// Makes the length in an IP header that of the bytes at hand, after its end was cut off.
pub(crate) fn set_length(packet: &mut [u8]) {
    let length = packet.len();
    match packet.first().map(|first| first >> 4) {
        Some(4) => {
            let mut ip = Ipv4Packet::new_unchecked(packet);
            ip.set_total_len(u16::try_from(length).unwrap_or(u16::MAX));
            ip.fill_checksum();
        }
        Some(6) => {
            let mut ip = Ipv6Packet::new_unchecked(packet);
            ip.set_payload_len(u16::try_from(length.saturating_sub(40)).unwrap_or(u16::MAX));
        }
        _ => {}
    }
}
