//! The network of a local project as its guest finds it: what its install may fetch, its port, and its engine.

use std::io::Read as _;
use std::net::TcpStream;
use std::time::Duration;

use iii_protocol::api::Phase;

use crate::network::{free_port, server};
use crate::scenarios::Local;

/// Answers with the greeting on port 80; one listener per connection.
const SERVE: &str = "echo serving; while true; do nc -l -p 80 < greeting; done";

/// What its port says; `None` if nobody does.
fn ask(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut heard = String::new();
    stream.read_to_string(&mut heard).ok()?;
    Some(heard).filter(|heard| !heard.is_empty())
}

#[test]
fn a_projects_port_answers_over_an_edit_and_without_a_daemon() {
    let local = Local::new("  setup: ''\n  install: ''\n");
    local.manifest_with(SERVE, "  setup: ''\n  install: ''\n");
    let port = free_port();
    local.configure_with(&format!("    ports: ['{port}:80']\n    watch: true\n    stop_timeout: 1s\n"));
    let daemon = local.bed.daemon();
    let before = local.bed.wait_phase("app", Phase::Running);
    local.bed.until("the worker answers", || ask(port).as_deref() == Some("hello"));
    local.write("greeting", "changed");
    local.bed.until("it answers with what was edited", || ask(port).as_deref() == Some("changed"));
    daemon.kill();
    local.bed.until("it answers without a daemon", || ask(port).as_deref() == Some("changed"));
    let _daemon = local.bed.daemon();
    let after = local.bed.wait_phase("app", Phase::Running);
    assert_eq!((after.generation, after.vmm_pid), (before.generation, before.vmm_pid));
}

#[test]
fn an_install_reaches_what_the_rules_open_and_fails_with_what_they_do_not() {
    let port = server(b"a package\n".to_vec());
    let local = Local::new(&format!(
        "  setup: ''\n  install: echo hi | nc -w 10 198.19.249.1 {port} > fetched && grep package fetched\n"
    ));
    local.configure_with("    network: {egress: public}\n");
    let _daemon = local.bed.daemon();
    let cause = local.bed.wait_phase("app", Phase::Failed).cause.unwrap();
    assert!(cause.message.starts_with("install failed"), "{cause:?}");
    let events = local.events();
    assert!(events.contains("egress denied tcp") && events.contains(&format!(":{port} (")), "{events}");

    local.configure_with(&format!("    network: {{egress: {{allow: ['127.0.0.1:{port}']}}}}\n"));
    local.bed.wait_phase("app", Phase::Running);
    assert_eq!(local.sh("cat fetched"), "a package\n");
    let other = server(b"nobody should hear this\n".to_vec());
    assert_eq!(local.sh(&format!("echo hi | nc -w 10 198.19.249.1 {other} || echo refused")), "refused\n");
}

#[test]
fn a_project_reaches_its_engine_from_install_and_start_and_nothing_else() {
    let engine = server(b"the engine says so\n".to_vec());
    let asks = "echo hi | nc -w 10 localhost ${III_URL##*:}";
    let scripts = format!("  setup: ''\n  install: {asks} > heard; cat heard\n");
    let local = Local::new(&scripts);
    local.manifest_with(&format!("{asks}; echo asked; exec sleep 1000"), &scripts);
    local.configure_with(&format!(
        "    network: {{egress: none}}\n    config: {{III_URL: 'ws://127.0.0.1:{engine}'}}\n"
    ));
    let _daemon = local.bed.daemon();
    local.bed.wait_log("app", "asked\n");
    let logs = local.logs();
    assert_eq!(logs.matches("the engine says so").count(), 2, "{logs}");
    assert_eq!(local.sh("echo hi | nc -w 10 198.19.249.1 80 || echo refused"), "refused\n");
}
