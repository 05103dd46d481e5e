//! Who has the gateway's address: ARP (RFC 826) and neighbour discovery (RFC 4861). The guest's own hardware address is
//! known, so the stack never asks.

use std::net::{IpAddr, Ipv6Addr};

use iii_protocol::network::{GATEWAY_IPV4, GATEWAY_IPV6, GATEWAY_MAC, GUEST_IPV4, GUEST_MAC};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetProtocol, Icmpv6Packet, Icmpv6Repr,
    IpProtocol, IpRepr, NdiscNeighborFlags, NdiscRepr,
};

use crate::link::Link;
use crate::wire::Packet;

/// Answers an ARP request for the gateway.
pub(crate) fn answer_arp(link: &Link, bytes: &[u8]) {
    let Ok(request) = ArpPacket::new_checked(bytes).and_then(|packet| ArpRepr::parse(&packet)) else {
        return;
    };
    let ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr,
        target_protocol_addr,
        source_protocol_addr,
        ..
    } = request
    else {
        return;
    };
    if operation != ArpOperation::Request
        || source_hardware_addr != EthernetAddress(GUEST_MAC)
        || target_protocol_addr != GATEWAY_IPV4
        // A probe (RFC 5227) comes from nowhere.
        || !(source_protocol_addr == GUEST_IPV4 || source_protocol_addr.is_unspecified())
    {
        return;
    }
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(GATEWAY_MAC),
        source_protocol_addr: GATEWAY_IPV4,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source_protocol_addr,
    };
    link.send_frame(EthernetProtocol::Arp, reply.buffer_len(), |bytes| {
        reply.emit(&mut ArpPacket::new_unchecked(bytes));
    });
}

/// Answers a neighbour solicitation for the gateway. `packet` is ICMPv6 from the guest.
pub(crate) fn answer_solicitation(link: &Link, packet: &Packet<'_>) {
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (packet.source, packet.destination) else { return };
    let Ok(icmp) = Icmpv6Packet::new_checked(packet.payload) else { return };
    let parsed = Icmpv6Repr::parse(&source, &destination, &icmp, &ChecksumCapabilities::default());
    let Ok(Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr, .. })) = parsed else { return };
    if target_addr != GATEWAY_IPV6 || source == Ipv6Addr::UNSPECIFIED {
        return;
    }
    let reply = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
        flags: NdiscNeighborFlags::ROUTER | NdiscNeighborFlags::SOLICITED | NdiscNeighborFlags::OVERRIDE,
        target_addr,
        lladdr: Some(EthernetAddress(GATEWAY_MAC).into()),
    });
    let (from, to) = (IpAddr::V6(GATEWAY_IPV6), IpAddr::V6(source));
    // RFC 4861, 7.1: a hop limit of 255 shows that it comes from the link.
    let ip = IpRepr::new(from.into(), to.into(), IpProtocol::Icmpv6, reply.buffer_len(), 255);
    link.send_ip(&ip, |bytes| {
        let caps = ChecksumCapabilities::default();
        reply.emit(&GATEWAY_IPV6, &source, &mut Icmpv6Packet::new_unchecked(bytes), &caps);
    });
}
