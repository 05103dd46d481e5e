//! A guest that means harm.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant, SystemTime};

use iii_netstack::{Event, REFUSALS_PER_SECOND};
use iii_protocol::network::{
    Destination, Egress, GATEWAY_IPV4, GATEWAY_MAC, GUEST_IPV4, GUEST_MAC, PortRange, Rule,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use smoltcp::socket::tcp::State;

use crate::guest::{Guest, by_gateway, event, eventually, start};
use crate::tcp::echo;

/// Random frames and random changes of good ones.
const FRAMES: usize = 20_000;
/// How long the stack is fuzzed, unless `III_FUZZ_SECONDS` says otherwise.
const FUZZ_SECONDS: u64 = 2;
/// After so many frames it has to serve as if nothing had been.
const FRAMES_BETWEEN_LOOKS: u64 = 2_000;

fn frame(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&GATEWAY_MAC[..], &GUEST_MAC, &ethertype.to_be_bytes(), payload].concat()
}

fn ipv4(source: [u8; 4], destination: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let total = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let mut header = vec![0x45, 0, total[0], total[1], 0, 0, 0, 0, 64, protocol, 0, 0];
    header.extend_from_slice(&source);
    header.extend_from_slice(&destination);
    let sum = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header.extend_from_slice(payload);
    header
}

fn syn(port: u16, to: u16, options: &[u8]) -> Vec<u8> {
    let words = u8::try_from(5 + options.len() / 4).unwrap();
    let mut tcp = [port.to_be_bytes(), to.to_be_bytes()].concat();
    tcp.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, words << 4, 2, 0xff, 0xff, 0, 0, 0, 0]);
    tcp.extend_from_slice(options);
    tcp
}

/// Frames of which most get far into the stack.
fn good_frames(port: u16) -> Vec<Vec<u8>> {
    let (guest, gateway) = (GUEST_IPV4.octets(), GATEWAY_IPV4.octets());
    let mut arp = vec![0, 1, 8, 0, 6, 4, 0, 1];
    arp.extend_from_slice(&GUEST_MAC);
    arp.extend_from_slice(&guest);
    arp.extend_from_slice(&[0; 6]);
    arp.extend_from_slice(&gateway);
    let question = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x07example\x00\x00\x01\x00\x01";
    let udp = |to: u16, body: &[u8]| {
        let length = u16::try_from(8 + body.len()).unwrap();
        [&[0x20, 0][..], &to.to_be_bytes(), &length.to_be_bytes(), &[0, 0], body].concat()
    };
    let mut six = vec![0x60, 0, 0, 0, 0, 24, 58, 255];
    six.extend_from_slice(&iii_protocol::network::GUEST_IPV6.octets());
    six.extend_from_slice(&iii_protocol::network::GATEWAY_IPV6.octets());
    six.extend_from_slice(&[135, 0, 0, 0, 0, 0, 0, 0]);
    six.extend_from_slice(&iii_protocol::network::GATEWAY_IPV6.octets());
    vec![
        frame(0x0806, &arp),
        frame(0x0800, &ipv4(guest, gateway, 6, &syn(30000, port, &[2, 4, 0xff, 0xc8, 3, 3, 7, 0]))),
        frame(0x0800, &ipv4(guest, gateway, 17, &udp(53, question))),
        frame(0x0800, &ipv4(guest, gateway, 17, &udp(67, &[1; 300]))),
        frame(0x0800, &ipv4(guest, gateway, 17, &udp(9, b"x"))),
        frame(0x0800, &ipv4(guest, gateway, 1, &[8, 0, 0, 0, 1, 2, 3, 4, 5])),
        frame(0x86dd, &six),
    ]
}

/// Random frames, most of them good ones that were changed. Opens a connection in the middle of things, whose segments
/// are among those.
fn frames(guest: &mut Guest, address: SocketAddr) -> impl Strategy<Value = Vec<u8>> + use<> {
    let connection = guest.open(by_gateway(address));
    let ports = guest.tcp(connection).local_endpoint().unwrap().port;
    let mut good = good_frames(address.port());
    let mut data = [ports.to_be_bytes(), address.port().to_be_bytes()].concat();
    data.extend_from_slice(&[0, 0, 0, 9, 0, 0, 0, 9, 5 << 4, 0x18, 0xff, 0xff, 0, 0, 0, 0, 1, 2, 3]);
    good.push(frame(0x0800, &ipv4(GUEST_IPV4.octets(), GATEWAY_IPV4.octets(), 6, &data)));
    let mutated = (
        proptest::sample::select(good),
        proptest::collection::vec((any::<u16>(), any::<u8>()), 0..4),
        0..80_usize,
    )
        .prop_map(|(mut frame, changes, cut)| {
            for (at, byte) in changes {
                let at = usize::from(at) % frame.len();
                frame[at] = byte;
            }
            let keep = if cut < 60 { frame.len() } else { frame.len().saturating_sub(cut - 59) };
            frame.truncate(keep.max(1));
            frame
        });
    let noise = proptest::collection::vec(any::<u8>(), 1..200);
    let aimed = (any::<bool>(), proptest::collection::vec(any::<u8>(), 0..120))
        .prop_map(|(four, bytes)| frame(if four { 0x0800 } else { 0x86dd }, &bytes));
    prop_oneof![6 => mutated, 1 => noise, 1 => aimed]
}

fn still_serves(guest: &mut Guest, address: SocketAddr) {
    let mut buffer = vec![0; 70000];
    while guest.wire.socket.recv(&mut buffer).is_ok() {}
    let connection = guest.open(by_gateway(address));
    guest.send(connection, b"still there?");
    assert_eq!(guest.receive(connection, 12), b"still there?");
    guest.tcp(connection).abort();
    guest.until("the reset to be sent", |_| Some(()));
    guest.sockets.remove(connection);
}

/// Nothing else may be reached: a changed address must not lead out of this machine, nor to another service on it.
fn only(address: SocketAddr) -> Egress {
    let to = Destination::Net { address: address.ip(), prefix: 32 };
    let ports = Some(PortRange { first: address.port(), last: address.port() });
    Egress::Rules { allow: vec![Rule { to, ports }], deny: Vec::new() }
}

#[test]
fn any_bytes_leave_the_stack_serving() {
    let address = echo();
    let (mut guest, handle) = start(only(address));
    let strategy = frames(&mut guest, address);
    let mut runner = TestRunner::deterministic();
    for _ in 0..FRAMES {
        let bytes = strategy.new_tree(&mut runner).unwrap().current();
        guest.raw(&bytes);
    }
    guest.raw(&vec![0xaa; 66_000]);
    still_serves(&mut guest, address);
    assert!(handle.counters().malformed.get() > 0 && handle.counters().spoofed.get() > 0);
    assert!(!handle.is_finished());
}

/// As [`any_bytes_leave_the_stack_serving`], with other frames in every run, for as long as `III_FUZZ_SECONDS` says:
/// `III_FUZZ_SECONDS=600 cargo nextest run --profile fuzz -p iii-netstack` is ten minutes. `III_FUZZ_SEED` sends the
/// frames of an earlier run again.
#[test]
fn fuzzing_leaves_the_stack_serving() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let time = Duration::from_secs(number("III_FUZZ_SECONDS").unwrap_or(FUZZ_SECONDS));
    let seed = number("III_FUZZ_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        now.as_secs() * 1_000_000 + u64::from(now.subsec_micros())
    });
    // Shown when the test fails.
    println!("III_FUZZ_SEED={seed}");
    let address = echo();
    let (mut guest, mut handle) = start(only(address));
    let strategy = frames(&mut guest, address);
    let bytes = [seed.to_le_bytes(); 4].concat();
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(ProptestConfig::default(), rng);
    let (started, mut sent) = (Instant::now(), 0);
    while started.elapsed() < time || sent == 0 {
        for _ in 0..FRAMES_BETWEEN_LOOKS {
            guest.raw(&strategy.new_tree(&mut runner).unwrap().current());
        }
        sent += FRAMES_BETWEEN_LOOKS;
        // Connections that the guest knows nothing of are reset by it, as by a kernel; else the table would be full
        // some day.
        guest.until("the answers to be read", |_| Some(()));
        still_serves(&mut guest, address);
        assert!(!handle.is_finished(), "after {sent} frames");
        // A shim reads them as well; nobody's queue fills.
        while handle.try_event().is_some() {}
    }
    let counters = handle.counters();
    println!("{sent} frames in {:?}", started.elapsed());
    assert!(counters.malformed.get() > 0 && counters.spoofed.get() > 0 && counters.tcp_opened.get() > 0);
}

#[test]
fn frames_of_other_addresses_do_not_count() {
    let address = echo();
    let (mut guest, handle) = start(Egress::All);
    let gateway = GATEWAY_IPV4.octets();
    let own = ipv4(GUEST_IPV4.octets(), gateway, 6, &syn(30000, address.port(), &[]));
    let mut other_mac = frame(0x0800, &own);
    other_mac[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    guest.raw(&other_mac);
    guest.raw(&frame(0x0800, &ipv4([10, 0, 0, 1], gateway, 6, &syn(30000, address.port(), &[]))));
    guest.raw(&frame(0x0800, &ipv4(gateway, gateway, 17, &[0x20, 0, 0, 9, 0, 9, 0, 0, 1])));
    eventually("the frames to be seen", || handle.counters().spoofed.get() == 3);
    assert_eq!(handle.counters().tcp_opened.get(), 0);
    still_serves(&mut guest, address);
}

#[test]
fn a_flood_of_refusals_is_counted_and_told_in_few_words() {
    let (mut guest, mut handle) = start(Egress::Public);
    for number in 0..200_u8 {
        let packet = ipv4(GUEST_IPV4.octets(), [10, 0, 0, number], 6, &syn(30000, 22, &[]));
        guest.raw(&frame(0x0800, &packet));
    }
    eventually("all to be counted", || handle.counters().denied.get() == 200);
    let mut told = 0;
    while let Some(event) = handle.try_event() {
        assert!(matches!(event, Event::Denied { .. }));
        told += 1;
    }
    assert!((1..=2 * REFUSALS_PER_SECOND).contains(&told), "{told}");
}

#[test]
fn a_refusal_names_what_and_why() {
    let (mut guest, mut handle) = start(Egress::Public);
    for (to, word) in [
        ("10.0.0.5:22", "private"),
        ("169.254.169.254:80", "metadata"),
        ("100.64.1.1:1", "cgnat"),
        ("[fe80::9]:22", "link-local"),
        ("198.19.249.1:22", "loopback"),
        ("[64:ff9b::7f00:1]:22", "loopback"),
    ] {
        let connection = guest.connect(to.parse().unwrap(), 1024);
        guest.until("a refusal", |guest| (guest.state(connection) == State::Closed).then_some(()));
        assert_eq!(event(&mut handle).to_string(), format!("egress denied tcp {to} ({word})"));
    }
    let own = nix::ifaddrs::getifaddrs().unwrap().find_map(|interface| {
        let address = interface.address?.as_sockaddr_in()?.ip();
        (!address.is_loopback()).then_some(IpAddr::V4(address))
    });
    if let Some(own) = own {
        let connection = guest.connect(SocketAddr::new(own, 22), 1024);
        guest.until("a refusal", |guest| (guest.state(connection) == State::Closed).then_some(()));
        assert!(event(&mut handle).to_string().ends_with("(host)"));
    }
}
