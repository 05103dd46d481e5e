//! A worker's network as far as its entry, its environment and its status show it; `tests/kvm/network.rs` has what takes
//! a guest.

use std::net::TcpListener;

use iii_protocol::api::Phase;

use super::Bed;

#[test]
fn a_worker_is_told_where_its_engine_is_and_cannot_be_told_otherwise() {
    let bed = Bed::new();
    let show = "echo \"[$III_URL|$III_ENGINE_URL|$III_WORKER_NAME|$III_ISOLATION]\"; exec sleep 1000";
    let reference = bed.script_image("env", show);
    bed.configure(&[
        bed.entry("plain", &reference, &["network: { egress: none }"]),
        bed.entry(
            "chosen",
            &reference,
            &["config: { III_URL: 'ws://127.0.0.1:50123/x?w=1', III_ISOLATION: no }"],
        ),
    ]);
    let _daemon = bed.daemon();
    bed.wait_log("plain", "[ws://localhost:49134|ws://localhost:49134|plain|libkrun]");
    bed.wait_log("chosen", "[ws://localhost:50123/x?w=1|ws://localhost:50123/x?w=1|chosen|libkrun]");
}

#[test]
fn an_address_on_the_images_command_line_is_its_engines() {
    let bed = Bed::new();
    let config = serde_json::json!({
        "Entrypoint": ["/bin/sh", "-c", "echo \"got: $*\"; exec sleep 1000", "sh"],
        "Cmd": ["--url", "ws://engine:1", "--url=ws://engine:2", "--verbose"],
    });
    let reference = bed.push("url", &crate::support::registry::image(&[super::shell_layer()], config));
    bed.configure(&[bed.entry("w", &reference, &["config: { III_ENGINE_URL: 'ws://127.0.0.1:50123' }"])]);
    let _daemon = bed.daemon();
    bed.wait_log("w", "got: --url ws://localhost:50123 --url=ws://localhost:50123 --verbose");
}

#[test]
fn an_engine_that_is_none_fails_its_worker_alone_and_says_where() {
    let bed = Bed::new();
    let reference = bed.script_image("idle", "exec sleep 1000");
    bed.configure(&[
        bed.entry("wrong", &reference, &["config: { III_URL: 'tcp://localhost:49134' }"]),
        bed.entry("right", &reference, &[]),
    ]);
    let _daemon = bed.daemon();
    bed.wait_phase("right", Phase::Running);
    let status = bed.wait_phase("wrong", Phase::Failed);
    let cause = status.cause.unwrap();
    assert!(cause.message.contains("config.yaml:") && cause.message.contains("`tcp://`"), "{cause:?}");
    assert!(cause.hint.unwrap().contains("ws://localhost:49134"));
}

#[test]
fn policy_and_ports_are_shown_and_an_edit_of_them_restarts_the_worker() {
    let bed = Bed::new();
    let reference = bed.script_image("idle", "exec sleep 1000");
    let port = free_port();
    let ports = format!("ports: ['{port}:80']");
    bed.configure(&[bed.entry("web", &reference, &[&ports]), bed.entry("db", &reference, &[])]);
    let _daemon = bed.daemon();
    let first = bed.wait_phase("web", Phase::Running);
    let other = bed.wait_phase("db", Phase::Running);
    let list = bed.ok(&["worker", "list"]);
    assert!(list.lines().next().unwrap().ends_with("LAST-EXIT  PORTS"), "{list}");
    assert!(list.contains(&format!("{port}->80")), "{list}");
    let status = bed.ok(&["worker", "status", "web"]);
    assert!(status.contains("\nEgress:     public\n"), "{status}");
    assert!(status.contains(&format!("\nPorts:      127.0.0.1:{port}->80/tcp\n")), "{status}");

    let rules = "network: { egress: { allow: ['api.example.com:443'], deny: ['10.0.0.0/8'] } }";
    bed.configure(&[bed.entry("web", &reference, &[rules]), bed.entry("db", &reference, &[])]);
    bed.wait("web", "restarted", |s| s.phase == Phase::Running && s.generation > first.generation);
    let status = bed.ok(&["worker", "status", "web"]);
    assert!(status.contains("\nEgress:     allow api.example.com:443, deny 10.0.0.0/8\n"), "{status}");
    assert!(!status.contains("Ports:"), "{status}");
    assert!(!bed.ok(&["worker", "list"]).contains("PORTS"));
    assert_eq!(bed.status("db").unwrap().generation, other.generation, "the other one was left alone");
}

#[test]
fn a_port_that_is_taken_fails_its_worker_alone_and_says_who_has_it() {
    let bed = Bed::new();
    let reference = bed.script_image("idle", "exec sleep 1000");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let ports = format!("ports: ['{port}:80']");
    bed.configure(&[
        bed.entry("unlucky", &reference, &[&ports, "restart: { delay: 10ms }"]),
        bed.entry("lucky", &reference, &[]),
    ]);
    let _daemon = bed.daemon();
    bed.wait_phase("lucky", Phase::Running);
    let status = bed.wait_phase("unlucky", Phase::Failed);
    let cause = status.cause.unwrap();
    let holder = format!("process {}", std::process::id());
    assert!(
        cause.message.contains(&format!("127.0.0.1:{port}")) && cause.message.contains(&holder),
        "{cause:?}"
    );
    assert!(cause.hint.unwrap().contains("ports:"));
    // Once it is free, the worker has it.
    drop(taken);
    bed.ok(&["worker", "start", "unlucky"]);
    assert!(TcpListener::bind(("127.0.0.1", port)).is_err(), "the shim has the port");
}

#[test]
fn a_port_that_another_projects_worker_has_is_told_with_its_name() {
    let bed = Bed::new();
    let reference = bed.script_image("idle", "exec sleep 1000");
    let ports = format!("ports: [{}]", free_port());
    bed.configure(&[bed.entry("web", &reference, &[&ports])]);
    let _daemon = bed.daemon();
    bed.wait_phase("web", Phase::Running);
    let other = bed.project().join("other");
    std::fs::create_dir(&other).unwrap();
    let config = other.join("config.yaml");
    let entry = bed.entry("db", &reference, &[&ports, "restart: { delay: 10ms }"]);
    std::fs::write(&config, format!("workers:\n{entry}")).unwrap();
    let config = config.to_str().unwrap();
    let mut second = bed.command(&["-c", config]).spawn().unwrap();
    bed.until("the second project says who has the port", || {
        let said = bed.iii(&["worker", "status", "db", "-c", config]).text();
        said.contains("failed") && said.contains("that is the machine of worker `web`")
    });
    second.kill().unwrap();
    second.wait().unwrap();
}

#[test]
fn a_file_in_which_two_workers_want_one_port_changes_nothing() {
    let bed = Bed::new();
    let reference = bed.script_image("idle", "exec sleep 1000");
    let port = free_port();
    let ports = format!("ports: [{port}]");
    bed.configure(&[bed.entry("a", &reference, &[&ports])]);
    let _daemon = bed.daemon();
    let before = bed.wait_phase("a", Phase::Running);
    bed.configure(&[bed.entry("a", &reference, &[&ports]), bed.entry("b", &reference, &[&ports])]);
    bed.until("the file is refused", || {
        let said = bed.iii(&["worker", "list"]).stderr;
        said.contains("is published by worker `a` already") && said.contains("first here")
    });
    assert_eq!(bed.status("a").unwrap().generation, before.generation);
}

#[test]
fn a_published_port_stays_its_workers_over_the_death_of_the_daemon() {
    let bed = Bed::new();
    let reference = bed.script_image("idle", "exec sleep 1000");
    let port = free_port();
    let ports = format!("ports: ['{port}:80']");
    bed.configure(&[bed.entry("web", &reference, &[&ports])]);
    let daemon = bed.daemon();
    let before = bed.wait_phase("web", Phase::Running);
    daemon.kill();
    assert!(TcpListener::bind(("127.0.0.1", port)).is_err(), "held without a daemon");
    let daemon = bed.daemon();
    let after = bed.wait_phase("web", Phase::Running);
    assert_eq!((after.generation, after.shim_pid), (before.generation, before.shim_pid));
    daemon.stop();
    assert!(TcpListener::bind(("127.0.0.1", port)).is_ok(), "free with the worker's end");
}

/// A port that nobody had a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
