//! Each kind of rule, as a guest finds it: what it opens, and what it leaves closed. Behind every closed place somebody
//! listens, and counts who came.

use std::net::{IpAddr, SocketAddr};

use iii_protocol::api::Phase;

use super::attacker;
use super::world::{Resolver, Server, WORLD_LAN, listen, public, public6, udp};
use crate::scenarios::Bed;

/// One place, and whether the rules let the guest there.
type Row = (&'static str, IpAddr, u16, bool);

/// What the test's resolver knows: the last number of a public address.
const NAMES: [(&str, u8); 6] = [
    ("a.wild.example.com", 80),
    ("b.c.wild.example.com", 81),
    ("bad.wild.example.com", 82),
    ("wild.example.com", 83),
    ("one.example.com", 84),
    ("other.example.com", 85),
];

const OPEN: bool = true;
const CLOSED: bool = false;

fn entry(bed: &Bed, name: &str, reference: &str, rules: &str) -> String {
    bed.entry(name, reference, &[&format!("network: {{ egress: {{ {rules} }} }}")])
}

/// Tries all of them in one go.
fn check(bed: &Bed, worker: &str, rows: &[Row]) {
    let servers: Vec<Server> = rows
        .iter()
        .map(|&(transport, at, port, _)| match transport {
            "tcp" => Server::says(listen(at, port), "here\n"),
            _ => Server::says_udp(udp(at, port), "here\n"),
        })
        .collect();
    let mut command: Vec<String> =
        ["worker", "exec", "-e", "III_ATTEMPT_MS=5000", worker, "/probe", "reach"].map(str::to_owned).into();
    for (transport, at, port, _) in rows {
        command.extend([(*transport).to_owned(), at.to_string(), port.to_string()]);
    }
    let said = bed.ok(&command.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(said.lines().count(), rows.len(), "{said}");
    for ((&(transport, at, port, open), server), line) in rows.iter().zip(&servers).zip(said.lines()) {
        let place = SocketAddr::new(at, port);
        let outcome = if open { " answered here" } else { " failed " };
        assert!(line.contains(outcome), "{transport} {place} should be {outcome}: {line}");
        assert_eq!(server.came() > 0, open, "{transport} {place}: {line}");
    }
}

#[test]
fn each_kind_of_rule_opens_and_closes_what_it_names() {
    let bed = Bed::new();
    let reference = attacker(&bed);
    let allowed = [
        format!("'{}'", public(40)),
        format!("'{}/29'", public(48)),
        format!("'{}:80'", public(60)),
        format!("'{}:8000-8002'", public(61)),
        format!("'[{}]:80'", public6(0x46)),
        format!("'{}/124'", public6(0x50)),
        format!("'{WORLD_LAN}/32:80'"),
        "'*.wild.example.com'".to_owned(),
        "'one.example.com:80'".to_owned(),
        "'*:7777'".to_owned(),
    ];
    let denied = [
        format!("'{}:81'", public(40)),
        format!("'{}'", public(50)),
        format!("'{}/126'", public6(0x58)),
        "'bad.wild.example.com'".to_owned(),
    ];
    let rules = format!("allow: [{}], deny: [{}]", allowed.join(", "), denied.join(", "));
    let alone = format!("deny: ['{}/28:80', '{}/64']", public(0), public6(0));
    bed.configure(&[entry(&bed, "w", &reference, &rules), entry(&bed, "d", &reference, &alone)]);
    let _resolver = Resolver::start(|asked| {
        NAMES.iter().filter(|(name, _)| *name == asked).map(|&(_, number)| public(number)).collect()
    });
    let _daemon = bed.daemon();
    for name in ["w", "d"] {
        bed.wait_phase(name, Phase::Running);
    }
    // Names open what the guest was told for them, and only then.
    for (name, _) in NAMES {
        // Whether one that is refused gets an answer is another matter.
        bed.iii(&["worker", "exec", "w", "nslookup", "-type=a", name]);
    }
    check(
        &bed,
        "w",
        &[
            ("tcp", public(40), 80, OPEN),
            ("udp", public(40), 80, OPEN),
            ("tcp", public(40), 81, CLOSED),
            ("tcp", public(41), 80, CLOSED),
            ("udp", public(41), 80, CLOSED),
            ("tcp", public(48), 80, OPEN),
            ("tcp", public(55), 80, OPEN),
            ("tcp", public(50), 80, CLOSED),
            ("tcp", public(56), 80, CLOSED),
            ("tcp", public(60), 80, OPEN),
            ("tcp", public(60), 82, CLOSED),
            ("tcp", public(61), 8002, OPEN),
            ("tcp", public(61), 8003, CLOSED),
            ("tcp", public6(0x46), 80, OPEN),
            ("tcp", public6(0x46), 82, CLOSED),
            ("tcp", public6(0x47), 80, CLOSED),
            ("tcp", public6(0x51), 80, OPEN),
            ("tcp", public6(0x59), 80, CLOSED),
            ("tcp", WORLD_LAN, 80, OPEN),
            ("tcp", WORLD_LAN, 82, CLOSED),
            ("tcp", public(80), 443, OPEN),
            ("tcp", public(81), 443, OPEN),
            ("tcp", public(82), 443, CLOSED),
            ("tcp", public(83), 443, CLOSED),
            ("tcp", public(84), 80, OPEN),
            ("tcp", public(84), 443, CLOSED),
            ("tcp", public(85), 80, CLOSED),
            ("tcp", public(86), 7777, OPEN),
            ("tcp", WORLD_LAN, 7777, CLOSED),
        ],
    );
    check(
        &bed,
        "d",
        &[
            ("tcp", public(1), 80, CLOSED),
            ("tcp", public(1), 81, OPEN),
            ("tcp", public(16), 80, OPEN),
            ("tcp", public6(1), 81, CLOSED),
            ("tcp", WORLD_LAN, 81, CLOSED),
        ],
    );
    for name in ["w", "d"] {
        assert!(bed.status(name).unwrap().refused.count > 0, "{name}");
    }
}
