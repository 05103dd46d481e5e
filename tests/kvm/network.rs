//! A worker's network as its guest finds it. Here the host has its loopback; `outside` and `attack` have hosts beyond it,
//! which are this machine's too (`world`): nothing goes any further.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use iii_protocol::api::Phase;
use sha2::{Digest as _, Sha256};

use crate::scenarios::Bed;

mod attack;
mod outside;
mod rules;
mod world;

/// The image of `scripts/images/probe.c` and `attack.c`, which waits for them to be run; its reference.
fn attacker(bed: &Bed) -> String {
    crate::guest::load(bed, "attack");
    bed.registry.reference("attack:latest")
}

/// What a command in worker `w` prints; it must succeed.
fn exec(bed: &Bed, options: &[&str], command: &[&str]) -> String {
    bed.ok(&[&["worker", "exec"], options, &["w"], command].concat())
}

/// Answers every connection with `answer` once it has heard something, or its end.
pub(crate) fn server(answer: Vec<u8>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            std::thread::spawn(move || {
                let mut stream = stream;
                // A client that leaves at once needs no answer.
                let _ = stream.read(&mut [0; 100]);
                let _ = stream.write_all(&answer);
            });
        }
    });
    port
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn the_guest_has_one_device_and_is_told_of_nothing_that_leads_nowhere() {
    let bed = Bed::new();
    let script = "ip addr show eth0; ip route; ip -6 route; cat /etc/resolv.conf; cat /etc/hosts; echo looked; \
                  exec sleep 1000";
    let reference = bed.script_image("look", script);
    bed.configure(&[
        bed.entry("public", &reference, &[]),
        bed.entry("none", &reference, &["network: { egress: none }"]),
        bed.entry("all", &reference, &["network: { egress: all }"]),
    ]);
    let _daemon = bed.daemon();
    for (name, asks, has_host) in [("public", true, false), ("none", false, false), ("all", true, true)] {
        bed.wait_log(name, "looked\n");
        let log = bed.ok(&["worker", "logs", name]);
        for line in [
            "mtu 65520",
            "inet 198.19.249.2/30",
            "inet6 fd69:6969:6969::2/64",
            "default via 198.19.249.1 dev eth0",
            "default via fd69:6969:6969::1 dev eth0",
            "link/ether 02:69:69:69:00:02",
        ] {
            assert!(log.contains(line), "{name}: no `{line}` in\n{log}");
        }
        assert!(!log.contains("tentative"), "{log}");
        assert_eq!(log.contains("nameserver 198.19.249.1\n"), asks, "{name}: {log}");
        assert_eq!(log.contains("198.19.249.1\thost.iii.internal\n"), has_host, "{name}: {log}");
    }
}

#[test]
fn the_hosts_loopback_is_reached_with_egress_all_and_refused_otherwise() {
    let bed = Bed::new();
    let port = server(b"hello from the host\n".to_vec());
    let script = format!(
        "echo hi | nc -w 10 198.19.249.1 {port} || echo refused; echo hi | nc -w 10 10.0.0.5 22 || echo refused; \
         echo tried; exec sleep 1000"
    );
    let reference = bed.script_image("reach", &script);
    let rules = format!("network: {{ egress: {{ allow: ['127.0.0.1:{port}'] }} }}");
    bed.configure(&[
        bed.entry("all", &reference, &["network: { egress: all }"]),
        bed.entry("rules", &reference, &[&rules]),
        bed.entry("public", &reference, &[]),
        bed.entry("none", &reference, &["network: { egress: none }"]),
    ]);
    let _daemon = bed.daemon();
    for name in ["all", "rules"] {
        bed.wait_log(name, "hello from the host\n");
    }
    for name in ["public", "none"] {
        bed.wait_log(name, "tried\n");
        let log = bed.ok(&["worker", "logs", name]);
        assert!(log.contains("refused\nrefused\n") && !log.contains("hello"), "{name}: {log}");
        assert!(!log.contains("denied"), "an event is not what the worker wrote: {log}");
        bed.until("both refusals are told", || {
            let events = bed.ok(&["worker", "logs", name, "--events"]);
            events.contains(&format!(":{port} (")) && events.contains("egress denied tcp 10.0.0.5:22 (")
        });
        let status = bed.wait(name, "counted", |status| status.refused.count >= 2);
        assert!(status.refused.last.unwrap().contains("10.0.0.5:22"));
        let shown = bed.ok(&["worker", "status", name]);
        assert!(shown.contains("\nRefused:    2, last: tcp 10.0.0.5:22 ("), "{shown}");
        let record = bed.ok(&["worker", "logs", name, "--events", "--json", "-n", "1"]);
        assert!(record.contains("\"stream\":\"event\""), "{record}");
    }
}

#[test]
fn a_published_port_answers_with_what_the_worker_says_and_outlives_the_daemon() {
    let bed = Bed::new();
    // One listener per connection: this one is asked twice.
    let script = "while true; do echo served | nc -l -p 80; done";
    let reference = bed.script_image("serve", script);
    let port = free_port();
    bed.configure(&[bed.entry("web", &reference, &[&format!("ports: ['{port}:80']")])]);
    let daemon = bed.daemon();
    bed.wait_phase("web", Phase::Running);
    let ask = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut heard = [0; 7];
        stream.read_exact(&mut heard).ok()?;
        Some(heard)
    };
    bed.until("the worker answers", || ask() == Some(*b"served\n"));
    daemon.kill();
    bed.until("the worker answers without a daemon", || ask() == Some(*b"served\n"));
    let _daemon = bed.daemon();
    bed.wait_phase("web", Phase::Running);
    bed.until("the worker answers the next daemon", || ask() == Some(*b"served\n"));
}

#[test]
fn the_engine_is_reached_whatever_the_policy_and_nothing_else_is() {
    let bed = Bed::new();
    let engine = server(b"the engine says so\n".to_vec());
    let other = server(b"nobody should hear this\n".to_vec());
    let script = format!(
        "port=${{III_URL##*:}}; for at in localhost 127.0.0.1 ::1; do echo \"$at: $(echo hi | nc -w 10 $at $port)\"; \
         done; echo hi | nc -w 10 127.0.0.1 {other} || echo refused; echo tried; exec sleep 1000"
    );
    let reference = bed.script_image("ask", &script);
    let url = format!("config: {{ III_URL: 'ws://127.0.0.1:{engine}' }}");
    bed.configure(&[bed.entry("w", &reference, &["network: { egress: none }", &url])]);
    let _daemon = bed.daemon();
    bed.wait_log("w", "tried\n");
    let log = bed.ok(&["worker", "logs", "w"]);
    for at in ["localhost", "127.0.0.1", "::1"] {
        assert!(log.contains(&format!("{at}: the engine says so\n")), "{log}");
    }
    assert!(log.contains("refused\ntried\n") && !log.contains("nobody"), "{log}");
}

#[test]
fn an_engine_that_is_not_there_is_a_reset_and_an_event() {
    let bed = Bed::new();
    let port = free_port();
    let script = "while ! echo hi | nc -w 10 localhost ${III_URL##*:} | grep -q here; do echo lost; sleep 1; done; \
                  echo found; exec sleep 1000";
    let reference = bed.script_image("ask", script);
    let url = format!("config: {{ III_URL: 'ws://localhost:{port}' }}");
    bed.configure(&[bed.entry("w", &reference, &[&url])]);
    let _daemon = bed.daemon();
    bed.wait_log("w", "lost\n");
    bed.until("it is told", || {
        let events = bed.ok(&["worker", "logs", "w", "--events"]);
        events.contains(&format!("engine localhost:{port} cannot be reached: "))
    });
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 100]);
            let _ = stream.write_all(b"here\n");
        }
    });
    bed.wait_log("w", "found\n");
}

#[test]
fn much_arrives_whole_from_the_host_and_from_the_engine() {
    const BYTES: usize = 8 << 20;
    let bed = Bed::new();
    let mut content = Vec::with_capacity(BYTES);
    let mut seed = 1u64;
    while content.len() < BYTES {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        content.extend_from_slice(&seed.to_be_bytes());
    }
    let sum: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
    let port = server(content);
    let script = format!(
        "echo hi | nc 198.19.249.1 {port} | sha256sum; echo hi | nc localhost {port} | sha256sum; echo done; \
         exec sleep 1000"
    );
    let reference = bed.script_image("fetch", &script);
    let url = format!("config: {{ III_URL: 'ws://localhost:{port}' }}");
    bed.configure(&[bed.entry("w", &reference, &["network: { egress: all }", &url])]);
    let started = Instant::now();
    let _daemon = bed.daemon();
    bed.wait_log("w", "done\n");
    let log = bed.ok(&["worker", "logs", "w"]);
    assert_eq!(log.matches(&sum).count(), 2, "after {:?}: {log}", started.elapsed());
}
