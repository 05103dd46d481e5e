//! TCP's checksum (RFC 9293, 3.1; RFC 1071), eight bytes at a time.
//!
//! smoltcp adds two bytes at a time, which for a frame of 64 KiB is most of the work that the frame takes.

use smoltcp::wire::IpProtocol;

/// Where an IPv4 header has its protocol, and from where on its two addresses.
const IPV4_PROTOCOL: usize = 9;
const IPV4_ADDRESSES: std::ops::Range<usize> = 12..20;
/// The same of IPv6, whose header has a fixed length.
const IPV6_NEXT_HEADER: usize = 6;
const IPV6_ADDRESSES: std::ops::Range<usize> = 8..40;
/// Where a TCP header has its checksum.
const TCP_CHECKSUM: std::ops::Range<usize> = 16..18;

/// Fills in the checksum of a TCP segment. `packet` is one whole IP packet that was made here, so without extension
/// headers; one that carries something else, or is too short, is left as it is.
pub(crate) fn fill_tcp(packet: &mut [u8]) {
    let Some(&first) = packet.first() else { return };
    let (header, protocol, addresses) = match first >> 4 {
        4 => (4 * usize::from(first & 15), IPV4_PROTOCOL, IPV4_ADDRESSES),
        _ => (IPV6_ADDRESSES.end, IPV6_NEXT_HEADER, IPV6_ADDRESSES),
    };
    if packet.get(protocol) != Some(&IpProtocol::Tcp.into()) || packet.len() < header + TCP_CHECKSUM.end {
        return;
    }
    let (ip, tcp) = packet.split_at_mut(header);
    tcp[TCP_CHECKSUM].fill(0);
    // The pseudo header. No packet is longer than its own length field can say.
    let rest = (u64::from(u8::from(IpProtocol::Tcp)) << 32) | tcp.len() as u64;
    let total = add(add(add(0, &ip[addresses]), &rest.to_be_bytes()), tcp);
    tcp[TCP_CHECKSUM].copy_from_slice(&(!fold(total)).to_ne_bytes());
}

/// The one's complement sum of `total` and `bytes`. The order of bytes does not matter as long as it is always the same
/// (RFC 1071, 2B), so it is the machine's own. Only the last piece of a sum may have an odd length.
fn add(mut total: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    for word in words.iter().chain([&last]) {
        let (sum, carry) = total.overflowing_add(u64::from_ne_bytes(*word));
        // A sum that was carried has room for one more.
        total = sum + u64::from(carry);
    }
    total
}

/// The same sum in 16 bits.
fn fold(mut total: u64) -> u16 {
    loop {
        match u16::try_from(total) {
            Ok(folded) => return folded,
            Err(_) => total = (total & 0xffff) + (total >> 16),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smoltcp::wire::{IpAddress, IpRepr, Ipv4Address, Ipv6Address, TcpPacket};

    /// A segment of some bytes between two addresses, without its checksum.
    fn segment(from: IpAddress, to: IpAddress, payload: usize, seed: u8) -> (Vec<u8>, usize) {
        let ip = IpRepr::new(from, to, IpProtocol::Tcp, 20 + payload, 64);
        let mut packet = vec![0; ip.buffer_len()];
        ip.emit(&mut packet, &smoltcp::phy::ChecksumCapabilities::default());
        for (at, byte) in packet[ip.header_len()..].iter_mut().enumerate() {
            *byte = (at as u8).wrapping_mul(167).wrapping_add(seed) | (seed & 0xf0);
        }
        packet[ip.header_len() + 12] = 5 << 4;
        (packet, ip.header_len())
    }

    #[test]
    fn the_checksum_is_the_one_that_smoltcp_verifies() {
        let four = (
            IpAddress::Ipv4(Ipv4Address::new(198, 19, 249, 1)),
            IpAddress::Ipv4(Ipv4Address::new(255, 1, 254, 2)),
        );
        let six = (
            IpAddress::Ipv6(Ipv6Address::new(0xfd69, 0xffff, 1, 2, 3, 4, 5, 0xfffe)),
            IpAddress::Ipv6(Ipv6Address::new(0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 1)),
        );
        for (from, to) in [four, six] {
            for (length, seed) in
                (0..100).chain([65_480]).flat_map(|length| [(length, 0), (length, 0xff), (length, 77)])
            {
                let (mut packet, header) = segment(from, to, length, seed);
                fill_tcp(&mut packet);
                let tcp = TcpPacket::new_checked(&packet[header..]).unwrap();
                assert!(tcp.verify_checksum(&from, &to), "{from} {length} {seed}");
                packet[header + 19] ^= 1;
                let tcp = TcpPacket::new_checked(&packet[header..]).unwrap();
                assert!(
                    !tcp.verify_checksum(&from, &to),
                    "{from} {length} {seed}: a wrong bit is not noticed"
                );
            }
        }
    }

    #[test]
    fn what_is_not_tcp_or_too_short_is_left_alone() {
        let (mut packet, header) = segment(
            IpAddress::Ipv4(Ipv4Address::new(1, 2, 3, 4)),
            IpAddress::Ipv4(Ipv4Address::new(5, 6, 7, 8)),
            9,
            3,
        );
        packet[IPV4_PROTOCOL] = IpProtocol::Udp.into();
        for mut bytes in [packet.clone(), packet[..header].to_vec(), vec![0x45], Vec::new()] {
            let before = bytes.clone();
            fill_tcp(&mut bytes);
            assert_eq!(bytes, before);
        }
    }
}
