//! A guest that means harm: `scripts/images/attack.c` tries, and nothing comes of it.
//!
//! Whatever must not be reached has a server that would answer, and that counts who came: an attempt that fails because
//! nobody is there would prove nothing.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

use iii_protocol::api::{Phase, WorkerStatus};
use iii_protocol::engine::ENGINE_PORT;
use iii_protocol::guest::CONTROL_PORT;
use iii_protocol::network::{GATEWAY_IPV4, GATEWAY_IPV6};
use iii_protocol::session::SESSION_PORT;

use super::world::{
    HOST_LAN, HOST_PUBLIC, METADATA, METADATA6, Server, WORLD_LAN, WORLD_LAN6, listen, public, udp,
};
use super::{attacker, exec};
use crate::scenarios::Bed;

/// What a trap says.
const TRAPPED: &str = "trapped\n";
/// Attempts to which nobody answers at all take so long.
const SILENCE: &str = "III_ATTEMPT_MS=2000";
/// How long frames are sent, unless `III_ATTACK_SECONDS` says otherwise.
const ATTACK_SECONDS: &str = "5";
/// Which ones, unless `III_ATTACK_SEED` says otherwise.
const ATTACK_SEED: &str = "1";
/// The guest's own number on vsock, which libkrun gives every guest.
const GUEST_CID: u32 = 3;
/// The host's.
const HOST_CID: u32 = 2;

/// Servers where no worker may come, each at its address as the host has it.
struct Traps(Vec<Server>);

impl Traps {
    fn set() -> Traps {
        let bound = |at: &str| TcpListener::bind(at).unwrap();
        let own = |at: IpAddr| TcpListener::bind((at, 0)).unwrap();
        let mut traps = Vec::new();
        for listener in [
            bound("127.0.0.1:0"),
            bound("[::1]:0"),
            own(HOST_LAN),
            own(HOST_PUBLIC),
            listen(WORLD_LAN, 80),
            listen(WORLD_LAN6, 80),
            listen(METADATA, 80),
            listen(METADATA6, 80),
        ] {
            traps.push(Server::says(listener, TRAPPED));
        }
        for socket in [UdpSocket::bind("127.0.0.1:0").unwrap(), udp(WORLD_LAN, 81), udp(METADATA, 81)] {
            traps.push(Server::says_udp(socket, TRAPPED));
        }
        Traps(traps)
    }

    fn assert_empty(&self) {
        for trap in &self.0 {
            assert_eq!(trap.came(), 0, "somebody came to {}", trap.address);
        }
    }
}

/// The lines of one attack; there must be some.
fn attack(bed: &Bed, worker: &str, env: &[&str], arguments: &[String]) -> Vec<String> {
    let mut words = vec!["worker", "exec", "-e", SILENCE];
    for &variable in env {
        words.extend(["-e", variable]);
    }
    words.extend([worker, "/attack"]);
    words.extend(arguments.iter().map(String::as_str));
    let said = bed.ok(&words);
    let lines: Vec<String> = said.lines().map(str::to_owned).collect();
    assert!(!lines.is_empty(), "{arguments:?}");
    lines
}

fn assert_same_machine(before: &WorkerStatus, after: &WorkerStatus) {
    assert_eq!((after.generation, after.shim_pid), (before.generation, before.shim_pid));
    assert_eq!(after.phase, Phase::Running);
}

/// `reach` for these places.
fn places(transport: &str, places: &[SocketAddr]) -> Vec<String> {
    let mut arguments = vec!["reach".to_owned()];
    for place in places {
        arguments.extend([transport.to_owned(), place.ip().to_string(), place.port().to_string()]);
    }
    arguments
}

#[test]
fn an_attack_on_host_lan_metadata_and_other_workers_reaches_nothing() {
    let bed = Bed::new();
    let traps = Traps::set();
    let reference = attacker(&bed);
    let published = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let on_lan = TcpListener::bind((HOST_LAN, 0)).unwrap().local_addr().unwrap().port();
    let ports = format!("ports: ['{published}:80', '{HOST_LAN}:{on_lan}:80']");
    bed.configure(&[
        bed.entry("w", &reference, &[]),
        bed.entry("none", &reference, &["network: { egress: none }"]),
        bed.entry("victim", &reference, &[&ports]),
        bed.entry("open", &reference, &["network: { egress: all }"]),
    ]);
    let _daemon = bed.daemon();
    for name in ["w", "none", "victim", "open"] {
        bed.wait_phase(name, Phase::Running);
    }
    let tcp = &traps.0[..8];
    let datagrams = &traps.0[8..];
    let (loopback, loopback6) = (tcp[0].address.port(), tcp[1].address.port());
    let at = |address: &str, port: u16| SocketAddr::new(address.parse().unwrap(), port);

    // The program does tell when it comes through: where all is allowed, it finds the traps.
    let control = Server::says(TcpListener::bind("127.0.0.1:0").unwrap(), TRAPPED);
    let control = [
        SocketAddr::new(GATEWAY_IPV4.into(), control.address.port()),
        Server::says(listen(WORLD_LAN, 82), TRAPPED).address,
        Server::says(listen(METADATA, 82), TRAPPED).address,
    ];
    for line in attack(&bed, "open", &[], &places("tcp", &control)) {
        assert!(line.ends_with(" answered trapped"), "{line}");
    }

    let mut targets: Vec<SocketAddr> = tcp[2..].iter().map(|trap| trap.address).collect();
    targets.extend([
        // The host's loopback, by all its names.
        SocketAddr::new(GATEWAY_IPV4.into(), loopback),
        SocketAddr::new(GATEWAY_IPV6.into(), loopback6),
        at("127.0.0.1", loopback),
        at("::1", loopback6),
        at("::ffff:127.0.0.1", loopback),
        at("64:ff9b::7f00:1", loopback),
        at("2002:7f00:1::", loopback),
        at("0.0.0.0", loopback),
        // The LAN and the metadata service as IPv6 carries them.
        at("::ffff:10.77.0.2", 80),
        at("64:ff9b::a4d:2", 80),
        at("64:ff9b::a9fe:a9fe", 80),
        at("fe80::1", 80),
        // Other workers: by their addresses, and by what they published.
        at("198.19.249.3", 80),
        at("198.19.249.6", 80),
        at("fd69:6969:6969::3", 80),
        SocketAddr::new(GATEWAY_IPV4.into(), published),
        SocketAddr::new(HOST_LAN, on_lan),
        // Nobody's.
        at("255.255.255.255", 80),
        at("224.0.0.1", 80),
        at("240.0.0.1", 80),
    ]);
    let mut by_datagram = vec![
        SocketAddr::new(GATEWAY_IPV4.into(), datagrams[0].address.port()),
        at("127.0.0.1", datagrams[0].address.port()),
    ];
    by_datagram.extend(datagrams[1..].iter().map(|trap| trap.address));
    for worker in ["w", "none"] {
        for (transport, targets) in [("tcp", &targets), ("udp", &by_datagram)] {
            let lines = attack(&bed, worker, &[], &places(transport, targets));
            assert_eq!(lines.len(), targets.len(), "one line per attempt: {lines:#?}");
            for (line, to) in lines.iter().zip(targets) {
                let outcome = line.strip_prefix(&format!("{transport} {} {} ", to.ip(), to.port()));
                let outcome = outcome.unwrap_or_else(|| panic!("{worker}: {line} is not about {to}"));
                assert!(outcome.starts_with("failed "), "{worker} came through: {line}");
            }
            // What has a trap is refused by the policy, and so at once.
            for to in targets.iter().filter(|to| traps.0.iter().any(|trap| trap.address == **to)) {
                let line = lines.iter().find(|line| line.contains(&format!(" {} {} ", to.ip(), to.port())));
                assert!(!line.unwrap().ends_with(" ETIMEDOUT"), "{worker}: {line:?}");
            }
        }
        assert!(bed.status(worker).unwrap().refused.count > 0, "{worker}");
    }
    traps.assert_empty();
}

#[test]
fn an_attack_over_vsock_finds_only_what_is_the_workers_own() {
    let bed = Bed::new();
    let reference = attacker(&bed);
    bed.configure(&[bed.entry("w", &reference, &["network: { egress: none }"])]);
    let _daemon = bed.daemon();
    let before = bed.wait_phase("w", Phase::Running);
    let own = [CONTROL_PORT, SESSION_PORT, ENGINE_PORT];
    let lowest = *own.iter().min().unwrap();
    let highest = *own.iter().max().unwrap();
    let ranges: [(u32, u32, u32); 7] = [
        // There the guest listens, and the host does not.
        (HOST_CID, SESSION_PORT, SESSION_PORT),
        (HOST_CID, 1, 8),
        (HOST_CID, lowest - 4, lowest - 1),
        (HOST_CID, highest + 1, highest + 4),
        (HOST_CID, 49134, 49134),
        // Other guests, as they would be numbered if they had a number.
        (GUEST_CID + 1, CONTROL_PORT, ENGINE_PORT),
        (0, CONTROL_PORT, ENGINE_PORT),
    ];
    for (cid, first, last) in ranges {
        let arguments = ["vsock".into(), cid.to_string(), first.to_string(), last.to_string()];
        let lines = attack(&bed, "w", &[], &arguments);
        assert_eq!(lines.len(), (last - first + 1) as usize, "{lines:#?}");
        for line in lines {
            assert!(line.contains(" failed "), "{line}");
        }
    }
    // The host's own sockets have no path into the guest, and no name.
    let mut sockets = bed.files();
    sockets.retain(|path| path.extension().is_some_and(|extension| extension == "sock"));
    assert!(sockets.len() >= 5, "{sockets:?}");
    let mut arguments = vec!["sockets".to_owned()];
    arguments.extend(sockets.iter().map(|path| path.display().to_string()));
    let lines = attack(&bed, "w", &[], &arguments);
    assert_eq!(lines.len(), 2 * sockets.len(), "{lines:#?}");
    for line in lines {
        assert!(line.contains(" failed "), "{line}");
    }
    // Nor does the VMM connect for its guest, as it would with TSI.
    let traps = [
        Server::says(TcpListener::bind("127.0.0.1:0").unwrap(), TRAPPED),
        Server::says(listen(WORLD_LAN, 80), TRAPPED),
        Server::says(listen(public(31), 80), TRAPPED),
    ];
    for trap in &traps {
        let (address, port) = (trap.address.ip().to_string(), trap.address.port().to_string());
        let lines = attack(&bed, "w", &[], &["tsi".into(), address, port]);
        assert_eq!(lines.len(), 2, "{lines:#?}");
        for line in lines {
            assert!(line.contains(" failed "), "{line}");
        }
        assert_eq!(trap.came(), 0, "somebody came to {}", trap.address);
    }
    // Even if it wanted to: no thread of it can make a socket for that any more.
    for task in fs::read_dir(format!("/proc/{}/task", before.vmm_pid.unwrap())).unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        assert!(status.contains("\nSeccomp:\t2\n"), "{status}");
    }
    // The agent's link is taken: a second one hears nothing, and the first one goes on.
    let port = CONTROL_PORT.to_string();
    let lines = attack(&bed, "w", &[], &["vsock".into(), HOST_CID.to_string(), port.clone(), port]);
    assert!(!lines[0].contains(" answered "), "{lines:?}");
    let after = bed.status("w").unwrap();
    assert_same_machine(&before, &after);
    assert_eq!(exec(&bed, &[], &["echo", "still there"]), "still there\n");
    bed.ok(&["worker", "stop", "w"]);
}

#[test]
fn malformed_frames_reach_nothing_and_leave_the_network_serving() {
    let bed = Bed::new();
    let traps = Traps::set();
    let reference = attacker(&bed);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    bed.configure(&[bed.entry("w", &reference, &[&format!("ports: ['{port}:80']")])]);
    let _daemon = bed.daemon();
    let before = bed.wait_phase("w", Phase::Running);
    let from_environment = |name: &str, otherwise: &str| {
        format!("{name}={}", std::env::var(name).unwrap_or_else(|_| otherwise.to_owned()))
    };
    let seconds = from_environment("III_ATTACK_SECONDS", ATTACK_SECONDS);
    let seed = from_environment("III_ATTACK_SEED", ATTACK_SEED);
    println!("{seed} {seconds}");
    // Many of the frames are about a place that would answer.
    let lan = traps.0[4].address;
    let arguments = ["frames".into(), lan.ip().to_string(), lan.port().to_string()];
    let lines = attack(&bed, "w", &[&seconds, &seed], &arguments);
    for line in &lines {
        let words: Vec<&str> = line.split(' ').collect();
        let ["frames", _, "sent", sent, "refused", _] = words[..] else { panic!("{line}") };
        assert!(sent.parse::<u64>().unwrap() > 0, "none of this kind was sent: {line}");
    }
    assert_eq!(lines.len(), 8, "{lines:#?}");
    traps.assert_empty();

    let after = bed.status("w").unwrap();
    assert_same_machine(&before, &after);
    assert!(after.refused.count > 0, "some of them did ask for the LAN");
    let server = Server::says(listen(public(30), 80), "still served\n");
    let line = attack(&bed, "w", &[], &places("tcp", &[server.address]));
    assert!(line[0].ends_with(" answered still served"), "{line:?}");
}
