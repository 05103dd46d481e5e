//! Which addresses are not of the internet, and why: the registries of special addresses as one pure function.
//!
//! Sources: the IANA registries of IPv4 and IPv6 special-purpose addresses (RFC 6890, RFC 8190), multicast (RFC 5771,
//! RFC 4291), documentation (RFC 5737, RFC 3849, RFC 9637), benchmarks (RFC 2544, RFC 5180). An IPv6 address that
//! carries an IPv4 address (mapped and compatible RFC 4291, NAT64 RFC 6052, 6to4 RFC 3056, Teredo RFC 4380) leads
//! wherever that leads, and is judged by it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::policy::Reason;

/// Where clouds tell secrets of the machine, beside 169.254.169.254: AWS, Google and Scaleway by IPv6, Azure's agent
/// (a public address that is answered by the hypervisor), Alibaba, Oracle.
const METADATA: [IpAddr; 7] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
];

/// Special IPv4 networks.
const SPECIAL_V4: [(Ipv4Net, Reason); 15] = [
    (v4([0, 0, 0, 0], 8), Reason::Reserved),
    (v4([10, 0, 0, 0], 8), Reason::Private),
    (v4([100, 64, 0, 0], 10), Reason::Cgnat),
    (v4([127, 0, 0, 0], 8), Reason::Loopback),
    (v4([169, 254, 0, 0], 16), Reason::LinkLocal),
    (v4([172, 16, 0, 0], 12), Reason::Private),
    (v4([192, 0, 0, 0], 24), Reason::Reserved),
    (v4([192, 0, 2, 0], 24), Reason::Reserved),
    (v4([192, 88, 99, 0], 24), Reason::Reserved),
    (v4([192, 168, 0, 0], 16), Reason::Private),
    (v4([198, 18, 0, 0], 15), Reason::Reserved),
    (v4([198, 51, 100, 0], 24), Reason::Reserved),
    (v4([203, 0, 113, 0], 24), Reason::Reserved),
    (v4([224, 0, 0, 0], 4), Reason::Multicast),
    (v4([240, 0, 0, 0], 4), Reason::Reserved),
];

/// Special IPv6 networks. What is in none and not in 2000::/3 either was never given to anybody.
const SPECIAL_V6: [(Ipv6Net, Reason); 8] = [
    (v6([0xfc00, 0, 0, 0], 7), Reason::Private),
    (v6([0xfe80, 0, 0, 0], 10), Reason::LinkLocal),
    // Site-local, deprecated by RFC 3879 and still routed in places.
    (v6([0xfec0, 0, 0, 0], 10), Reason::Private),
    (v6([0xff00, 0, 0, 0], 8), Reason::Multicast),
    // Translation inside one network, RFC 8215.
    (v6([0x64, 0xff9b, 1, 0], 48), Reason::Private),
    // Protocol assignments: benchmarks, ORCHID, anycast of protocols. Teredo is unwrapped before.
    (v6([0x2001, 0, 0, 0], 23), Reason::Reserved),
    (v6([0x2001, 0xdb8, 0, 0], 32), Reason::Reserved),
    (v6([0x3fff, 0, 0, 0], 20), Reason::Reserved),
];

const GLOBAL_V6: Ipv6Net = v6([0x2000, 0, 0, 0], 3);

const fn v4(octets: [u8; 4], prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]), prefix)
}

const fn v6(head: [u16; 4], prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(head[0], head[1], head[2], head[3], 0, 0, 0, 0), prefix)
}

/// The addresses that decide about this one: itself, or the IPv4 addresses it carries (Teredo carries two).
pub(crate) fn judged(address: IpAddr) -> Vec<IpAddr> {
    match address {
        IpAddr::V4(_) => vec![address],
        IpAddr::V6(six) => {
            let inner = embedded(six);
            if inner.is_empty() { vec![address] } else { inner.into_iter().map(IpAddr::V4).collect() }
        }
    }
}

/// The IPv4 addresses inside an IPv6 one.
fn embedded(six: Ipv6Addr) -> Vec<Ipv4Addr> {
    let pair = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match six.segments() {
        // `::` and `::1` are addresses of their own.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Vec::new(),
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        // SIIT's translated form, RFC 2765.
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => vec![pair(high, low)],
        [0x2002, high, low, ..] => vec![pair(high, low)],
        // The client's address is stored inverted.
        [0x2001, 0, server_high, server_low, _, _, high, low] => {
            vec![pair(server_high, server_low), pair(!high, !low)]
        }
        _ => Vec::new(),
    }
}

/// Why an address is not of the internet; `None` means that it is. Carried addresses are unwrapped.
#[must_use]
pub fn special(address: IpAddr) -> Option<Reason> {
    judged(address).into_iter().find_map(special_alone)
}

fn special_alone(address: IpAddr) -> Option<Reason> {
    if METADATA.contains(&address) {
        return Some(Reason::Metadata);
    }
    match address {
        IpAddr::V4(Ipv4Addr::BROADCAST) => Some(Reason::Multicast),
        IpAddr::V4(four) => SPECIAL_V4.iter().find(|(net, _)| net.contains(&four)).map(|(_, reason)| *reason),
        IpAddr::V6(Ipv6Addr::LOCALHOST) => Some(Reason::Loopback),
        IpAddr::V6(six) => match SPECIAL_V6.iter().find(|(net, _)| net.contains(&six)) {
            Some((_, reason)) => Some(*reason),
            None => (!GLOBAL_V6.contains(&six)).then_some(Reason::Reserved),
        },
    }
}

/// Whether `net` (an address and a prefix length that may be nonsense) contains `address`.
pub(crate) fn contains(net: IpAddr, prefix: u8, address: IpAddr) -> bool {
    IpNet::new(net, prefix).is_ok_and(|net| net.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_the_reason_their_registry_gives() {
        for (address, reason) in [
            ("1.1.1.1", None),
            ("8.8.8.8", None),
            ("172.15.255.255", None),
            ("172.32.0.0", None),
            ("100.63.255.255", None),
            ("2606:4700::1111", None),
            ("2001:4860:4860::8888", None),
            ("0.0.0.0", Some(Reason::Reserved)),
            ("10.1.2.3", Some(Reason::Private)),
            ("172.31.255.255", Some(Reason::Private)),
            ("192.168.1.1", Some(Reason::Private)),
            ("100.127.255.255", Some(Reason::Cgnat)),
            ("127.8.8.8", Some(Reason::Loopback)),
            ("169.254.1.1", Some(Reason::LinkLocal)),
            ("169.254.169.254", Some(Reason::Metadata)),
            ("168.63.129.16", Some(Reason::Metadata)),
            ("198.19.249.2", Some(Reason::Reserved)),
            ("224.0.0.251", Some(Reason::Multicast)),
            ("255.255.255.255", Some(Reason::Multicast)),
            ("250.0.0.1", Some(Reason::Reserved)),
            ("::", Some(Reason::Reserved)),
            ("::1", Some(Reason::Loopback)),
            ("fd00:ec2::254", Some(Reason::Metadata)),
            ("fd12::1", Some(Reason::Private)),
            ("fe80::1", Some(Reason::LinkLocal)),
            ("fec0::1", Some(Reason::Private)),
            ("ff02::fb", Some(Reason::Multicast)),
            ("2001:db8::1", Some(Reason::Reserved)),
            ("3fff::1", Some(Reason::Reserved)),
            ("4000::1", Some(Reason::Reserved)),
        ] {
            assert_eq!(special(address.parse().unwrap()), reason, "{address}");
        }
    }

    #[test]
    fn an_address_inside_another_decides() {
        for (address, reason) in [
            ("::ffff:10.0.0.5", Some(Reason::Private)),
            ("::ffff:1.1.1.1", None),
            ("::127.0.0.1", Some(Reason::Loopback)),
            ("::ffff:0:169.254.169.254", Some(Reason::Metadata)),
            ("64:ff9b::a9fe:a9fe", Some(Reason::Metadata)),
            ("64:ff9b::101:101", None),
            ("64:ff9b:1::101:101", Some(Reason::Private)),
            ("2002:c0a8:101::1", Some(Reason::Private)),
            ("2002:101:101::1", None),
            // Teredo: a public server and a private client, and the other way round.
            ("2001:0:101:101::f5ff:fffa", Some(Reason::Private)),
            ("2001:0:a00:5::fefe:fefe", Some(Reason::Private)),
            ("2001:0:101:101::fefe:fefe", None),
        ] {
            assert_eq!(special(address.parse().unwrap()), reason, "{address}");
        }
    }
}
