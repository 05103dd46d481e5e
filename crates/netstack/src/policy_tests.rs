//! Tables of each kind of rule, and a naive model over random rules.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::pins::PIN_GRACE;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str, ports: Option<(u16, u16)>) -> Rule {
    let (address, prefix) = text.split_once('/').unwrap();
    let to = Destination::Net { address: ip(address), prefix: prefix.parse().unwrap() };
    Rule { to, ports: ports.map(|(first, last)| PortRange { first, last }) }
}

fn name(name: &str, ports: Option<(u16, u16)>) -> Rule {
    let to = Destination::Name { name: name.to_owned() };
    Rule { to, ports: ports.map(|(first, last)| PortRange { first, last }) }
}

fn anywhere(ports: Option<(u16, u16)>) -> Rule {
    Rule { to: Destination::Any, ports: ports.map(|(first, last)| PortRange { first, last }) }
}

fn rules(allow: &[Rule], deny: &[Rule]) -> Egress {
    Egress::Rules { allow: allow.to_vec(), deny: deny.to_vec() }
}

struct World {
    pins: Pins,
    own: Vec<IpAddr>,
    now: Instant,
}

impl World {
    fn new() -> World {
        World {
            pins: Pins::default(),
            own: vec![ip("192.0.2.9"), ip("8.8.4.4"), ip("127.0.0.1")],
            now: Instant::now(),
        }
    }

    fn ask(&self, egress: &Egress, to: &str, port: u16) -> Result<IpAddr, Reason> {
        let knowledge = Knowledge { pins: &self.pins, own: &self.own, now: self.now };
        match judge(egress, knowledge, ip(to), Some(port)) {
            Verdict::Allowed { host } => Ok(host),
            Verdict::Denied { reason } => Err(reason),
        }
    }
}

#[test]
fn public_means_the_internet_and_nothing_of_the_host() {
    let world = World::new();
    for (to, expected) in [
        ("1.1.1.1", Ok(ip("1.1.1.1"))),
        ("2606:4700::1111", Ok(ip("2606:4700::1111"))),
        ("::ffff:1.1.1.1", Ok(ip("1.1.1.1"))),
        ("198.19.249.1", Err(Reason::Loopback)),
        ("fd69:6969:6969::1", Err(Reason::Loopback)),
        ("127.0.0.1", Err(Reason::Loopback)),
        ("::ffff:127.0.0.1", Err(Reason::Loopback)),
        ("10.0.0.5", Err(Reason::Private)),
        ("169.254.169.254", Err(Reason::Metadata)),
        ("8.8.4.4", Err(Reason::Host)),
        ("64:ff9b::808:404", Err(Reason::Host)),
        ("192.0.2.9", Err(Reason::Host)),
        ("224.0.0.1", Err(Reason::Multicast)),
    ] {
        assert_eq!(world.ask(&Egress::Public, to, 443), expected, "{to}");
    }
}

#[test]
fn all_reaches_the_hosts_loopback_by_the_gateway_and_none_reaches_nothing() {
    let world = World::new();
    for (to, expected) in [
        ("198.19.249.1", Ok(ip("127.0.0.1"))),
        ("fd69:6969:6969::1", Ok(ip("::1"))),
        ("10.0.0.5", Ok(ip("10.0.0.5"))),
        ("8.8.4.4", Ok(ip("8.8.4.4"))),
        ("127.0.0.1", Err(Reason::Loopback)),
        ("ff02::1", Err(Reason::Multicast)),
        ("255.255.255.255", Err(Reason::Multicast)),
    ] {
        assert_eq!(world.ask(&Egress::All, to, 80), expected, "{to}");
    }
    assert_eq!(world.ask(&Egress::None, "1.1.1.1", 80), Err(Reason::Policy));
    assert_eq!(world.ask(&Egress::None, "198.19.249.1", 80), Err(Reason::Policy));
}

#[test]
fn a_network_opens_what_is_private_and_only_a_loopback_network_opens_the_host() {
    let world = World::new();
    let lan = rules(&[net("10.0.0.0/8", Some((5432, 5433)))], &[]);
    assert_eq!(world.ask(&lan, "10.0.0.5", 5432), Ok(ip("10.0.0.5")));
    assert_eq!(world.ask(&lan, "10.0.0.5", 5434), Err(Reason::Private));
    assert_eq!(world.ask(&lan, "::ffff:10.0.0.5", 5433), Ok(ip("10.0.0.5")));
    assert_eq!(world.ask(&lan, "1.1.1.1", 5432), Err(Reason::Policy));
    let everything = rules(&[net("0.0.0.0/0", None)], &[]);
    assert_eq!(world.ask(&everything, "192.168.1.1", 1), Ok(ip("192.168.1.1")));
    assert_eq!(world.ask(&everything, "198.19.249.1", 1), Err(Reason::Loopback));
    assert_eq!(world.ask(&everything, "192.0.2.9", 1), Err(Reason::Host));
    assert_eq!(world.ask(&everything, "224.0.0.1", 1), Err(Reason::Multicast));
    let host = rules(&[net("127.0.0.0/8", Some((80, 80)))], &[]);
    assert_eq!(world.ask(&host, "198.19.249.1", 80), Ok(ip("127.0.0.1")));
    assert_eq!(world.ask(&host, "192.0.2.9", 80), Ok(ip("192.0.2.9")));
    assert_eq!(world.ask(&host, "198.19.249.1", 81), Err(Reason::Loopback));
    assert_eq!(world.ask(&host, "fd69:6969:6969::1", 80), Err(Reason::Loopback));
    let host = rules(&[net("::1/128", None)], &[]);
    assert_eq!(world.ask(&host, "fd69:6969:6969::1", 80), Ok(ip("::1")));
    let exact = rules(&[net("192.0.2.9/32", None)], &[]);
    assert_eq!(world.ask(&exact, "192.0.2.9", 80), Ok(ip("192.0.2.9")));
    for nobody in ["0.0.0.0", "::", "::ffff:0.0.0.0", "198.19.249.2", "fd69:6969:6969::2"] {
        let everything = rules(&[net("0.0.0.0/0", None), net("::/0", None)], &[]);
        assert!(world.ask(&everything, nobody, 80).is_err(), "{nobody}");
        assert!(world.ask(&Egress::All, nobody, 80).is_err(), "{nobody}");
    }
    let nonsense = rules(&[net("10.0.0.0/77", None)], &[]);
    assert_eq!(world.ask(&nonsense, "10.0.0.5", 80), Err(Reason::Private));
}

#[test]
fn a_refusal_wins_and_refusals_alone_leave_the_rest_of_the_internet() {
    let world = World::new();
    let egress = rules(&[anywhere(None)], &[net("1.1.1.0/24", Some((53, 53)))]);
    assert_eq!(world.ask(&egress, "1.1.1.1", 53), Err(Reason::Policy));
    assert_eq!(world.ask(&egress, "::ffff:1.1.1.1", 53), Err(Reason::Policy));
    assert_eq!(world.ask(&egress, "64:ff9b::101:101", 53), Err(Reason::Policy));
    assert_eq!(world.ask(&egress, "1.1.1.1", 443), Ok(ip("1.1.1.1")));
    assert_eq!(world.ask(&egress, "10.0.0.1", 443), Err(Reason::Private));
    let egress = rules(&[], &[net("1.1.1.1/32", None)]);
    assert_eq!(world.ask(&egress, "1.1.1.1", 1), Err(Reason::Policy));
    assert_eq!(world.ask(&egress, "9.9.9.9", 1), Ok(ip("9.9.9.9")));
    assert_eq!(world.ask(&egress, "198.19.249.1", 1), Err(Reason::Loopback));
    assert_eq!(world.ask(&rules(&[anywhere(None)], &[anywhere(None)]), "9.9.9.9", 1), Err(Reason::Policy));
}

#[test]
fn a_rule_with_ports_says_nothing_about_what_has_none() {
    let world = World::new();
    let knowledge = Knowledge { pins: &world.pins, own: &world.own, now: world.now };
    let ping = |egress: &Egress| judge(egress, knowledge, ip("9.9.9.9"), None);
    assert!(matches!(
        ping(&rules(&[anywhere(Some((1, 65535)))], &[])),
        Verdict::Denied { reason: Reason::Policy }
    ));
    assert!(matches!(
        ping(&rules(&[anywhere(None)], &[anywhere(Some((1, 65535)))])),
        Verdict::Allowed { .. }
    ));
}

#[test]
fn a_name_opens_what_dns_gave_for_it_while_it_is_good_and_public() {
    let mut world = World::new();
    let egress = rules(&[name("*.example.com", Some((443, 443)))], &[]);
    assert_eq!(world.ask(&egress, "9.9.9.9", 443), Err(Reason::NotResolved));
    assert_eq!(world.ask(&egress, "9.9.9.9", 80), Err(Reason::Policy));
    let start = world.now;
    world.pins.permit(ip("9.9.9.9"), "a.b.example.com", Duration::from_secs(5), start);
    world.pins.permit(ip("10.0.0.1"), "a.b.example.com", Duration::from_secs(5), start);
    world.pins.rebind(ip("10.0.0.2"), Duration::from_secs(5), start);
    assert_eq!(world.ask(&egress, "9.9.9.9", 443), Ok(ip("9.9.9.9")));
    assert_eq!(world.ask(&egress, "10.0.0.1", 443), Err(Reason::Private));
    assert_eq!(world.ask(&egress, "10.0.0.2", 443), Err(Reason::Rebinding));
    assert_eq!(world.ask(&Egress::Public, "10.0.0.2", 443), Err(Reason::Rebinding));
    world.now += Duration::from_secs(5) + PIN_GRACE;
    assert_eq!(world.ask(&egress, "9.9.9.9", 443), Err(Reason::NotResolved));
    assert_eq!(world.ask(&egress, "10.0.0.2", 443), Err(Reason::Private));
    let egress = rules(&[], &[name("bad.example", Some((25, 25)))]);
    world.pins.refuse(ip("9.9.9.9"), "bad.example", Duration::from_secs(5), world.now).unwrap();
    assert_eq!(world.ask(&egress, "9.9.9.9", 25), Err(Reason::Policy));
    assert_eq!(world.ask(&egress, "9.9.9.9", 443), Ok(ip("9.9.9.9")));
}

#[test]
fn names_are_asked_for_as_the_rules_say() {
    assert!(!may_ask(&Egress::None, "a.example"));
    assert!(may_ask(&Egress::All, "a.example") && may_ask(&Egress::Public, "a.example"));
    let only = rules(&[name("a.example", None), name("*.b.example", None)], &[]);
    for (asked, expected) in [
        ("a.example", true),
        ("x.a.example", false),
        ("b.example", false),
        ("x.b.example", true),
        ("x.y.b.example", true),
        ("xb.example", false),
        (".b.example", false),
        ("", false),
    ] {
        assert_eq!(may_ask(&only, asked), expected, "{asked}");
    }
    assert!(may_ask(&rules(&[name("a.example", None), anywhere(None)], &[]), "c.example"));
    let refused = rules(&[], &[name("a.example", None), name("b.example", Some((25, 25)))]);
    assert!(!may_ask(&refused, "a.example"));
    assert!(may_ask(&refused, "b.example") && may_ask(&refused, "c.example"));
    assert_eq!(is_ruled(&refused, "b.example"), (false, true));
    assert_eq!(is_ruled(&only, "a.example"), (true, false));
}

/// The rules once more, as a person would read them aloud, for plain IPv4 addresses.
fn naive(allow: &[Rule], deny: &[Rule], address: [u8; 4], port: u16) -> bool {
    let is_private = matches!(address, [10, ..] | [192, 168, ..]);
    let covers = |rule: &Rule| {
        let in_ports = match rule.ports {
            None => true,
            Some(range) => range.first <= port && port <= range.last,
        };
        let in_net = match &rule.to {
            Destination::Any => true,
            Destination::Net { address: IpAddr::V4(net), prefix } => {
                let bits =
                    |octets: [u8; 4]| octets.iter().map(|octet| format!("{octet:08b}")).collect::<String>();
                bits(net.octets())[..usize::from(*prefix)] == bits(address)[..usize::from(*prefix)]
            }
            _ => false,
        };
        in_ports && in_net
    };
    if deny.iter().any(covers) {
        return false;
    }
    if allow.is_empty() {
        return !is_private;
    }
    allow.iter().any(|rule| covers(rule) && (rule.to != Destination::Any || !is_private))
}

fn a_rule() -> impl Strategy<Value = Rule> {
    let to = prop_oneof![
        Just(Destination::Any),
        (an_address(), 0..=32_u8)
            .prop_map(|(address, prefix)| Destination::Net { address: address.into(), prefix }),
    ];
    let ports = proptest::option::of((1..6_u16, 0..3_u16));
    (to, ports).prop_map(|(to, ports)| Rule {
        to,
        ports: ports.map(|(first, more)| PortRange { first, last: first + more }),
    })
}

fn an_address() -> impl Strategy<Value = [u8; 4]> {
    let head = prop_oneof![Just([10, 0]), Just([192, 168]), Just([9, 9]), Just([9, 8])];
    (head, 0..3_u8, 0..3_u8).prop_map(|([a, b], c, d)| [a, b, c, d])
}

proptest! {
    #[test]
    fn rules_mean_what_the_naive_model_says(
        allow in proptest::collection::vec(a_rule(), 0..4),
        deny in proptest::collection::vec(a_rule(), 0..3),
        address in an_address(),
        port in 1..8_u16,
    ) {
        let expected = naive(&allow, &deny, address, port);
        let world = World::new();
        let to = IpAddr::from(address).to_string();
        let verdict = world.ask(&Egress::Rules { allow, deny }, &to, port);
        prop_assert_eq!(verdict.is_ok(), expected, "{:?}", verdict);
    }

    #[test]
    fn public_never_leads_to_a_special_address_however_it_is_written(four in any::<u32>(), form in 0..6_usize) {
        let [a, b, c, d] = four.to_be_bytes();
        let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        let written = [
            Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, high, low),
            Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
            Ipv6Addr::new(0x2001, 0, 0x101, 0x101, 0, 0, !high, !low),
            Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, high, low),
        ][form];
        let plain = special(IpAddr::V4(Ipv4Addr::new(a, b, c, d)));
        let world = World { own: Vec::new(), ..World::new() };
        let verdict = world.ask(&Egress::Public, &written.to_string(), 80);
        prop_assert_eq!(verdict.is_ok(), plain.is_none(), "{} {:?}", written, verdict);
    }
}
