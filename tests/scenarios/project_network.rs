//! A local project has ports, a network and an engine like any other worker. What takes a guest is in
//! `tests/kvm/projects.rs`.

use std::net::TcpListener;

use iii_protocol::api::Phase;

use super::project::Local;

const SHOW: &str = "echo \"at [$III_URL|$III_ENGINE_URL|$III_WORKER_NAME|$III_ISOLATION|$LEVEL|$BOTH]\"";

/// A project that shows its variables, in its install and when it starts.
fn shows() -> Local {
    let local = Local::new("");
    local.write(
        "iii.worker.yaml",
        &format!(
            "name: app\nruntime: {{kind: python, base_image: '{}'}}\nresources: {{memory: 256, cpus: 1}}\n\
             env: {{III_URL: 'ws://evil:1', III_WORKER_NAME: liar, LEVEL: manifest, BOTH: manifest}}\n\
             scripts:\n  setup: ''\n  install: |\n    echo ran >> ran; {SHOW}\n  start: |\n    {SHOW}\n    exec sleep 1000\n",
            local.base()
        ),
    );
    local
}

#[test]
fn a_project_is_told_where_its_engine_is_and_cannot_say_otherwise() {
    let local = shows();
    local.configure_with(
        "    config: {III_URL: 'ws://127.0.0.1:50123/x', III_ISOLATION: none, LEVEL: config}\n",
    );
    let _daemon = local.bed.daemon();
    local.bed.wait_phase("app", Phase::Running);
    let url = "ws://localhost:50123/x";
    let shown = format!("at [{url}|{url}|app|libkrun|config|manifest]\n");
    local.bed.wait_log("app", &shown);
    let logs = local.logs();
    assert_eq!(logs.matches(shown.trim_end()).count(), 2, "the install has them too: {logs}");
    assert_eq!(local.sh("echo $FROM $III_URL"), format!("base {url}\n"));
    let dry = local.bed.iii(&["worker", "add", "./app", "--dry-run"]).stderr;
    for name in ["III_URL", "III_WORKER_NAME"] {
        assert!(dry.contains(&format!("`{name}` is set by iii itself; this one is left out")), "{dry}");
    }

    // Another engine is another machine, and no reason to install again.
    local.configure_with("    config: {III_ENGINE_URL: 'ws://127.0.0.1:50124'}\n");
    let url = "ws://localhost:50124";
    local.bed.wait_log("app", &format!("at [{url}|{url}|app|libkrun|manifest|manifest]\n"));
    assert_eq!(local.sh("cat ran"), "ran\n");
}

#[test]
fn a_projects_ports_and_rules_are_shown_taken_and_changed_like_those_of_an_image() {
    let local = shows();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let rules = "    network: {egress: {allow: ['api.example.com:443']}}\n";
    local.configure_with(&format!("    ports: ['{port}:80']\n{rules}    restart: {{delay: 10ms}}\n"));
    let daemon = local.bed.daemon();
    let cause = local.bed.wait_phase("app", Phase::Failed).cause.unwrap();
    assert!(cause.message.contains(&format!("127.0.0.1:{port}")), "{cause:?}");
    drop(taken);
    local.bed.ok(&["worker", "start", "app"]);
    let first = local.bed.wait_phase("app", Phase::Running);
    assert!(local.bed.ok(&["worker", "list"]).contains(&format!("{port}->80")));
    let status = local.bed.ok(&["worker", "status", "app"]);
    assert!(status.contains("\nEgress:     allow api.example.com:443\n"), "{status}");
    assert!(status.contains(&format!("\nPorts:      127.0.0.1:{port}->80/tcp\n")), "{status}");

    // It is the machine's, so it outlives the daemon.
    daemon.kill();
    assert!(TcpListener::bind(("127.0.0.1", port)).is_err(), "held without a daemon");
    let _daemon = local.bed.daemon();
    let adopted = local.bed.wait_phase("app", Phase::Running);
    assert_eq!((adopted.generation, adopted.vmm_pid), (first.generation, first.vmm_pid));

    local.configure_with("    network: {egress: none}\n");
    local.bed.wait("app", "restarted", |s| s.phase == Phase::Running && s.generation > first.generation);
    assert!(TcpListener::bind(("127.0.0.1", port)).is_ok(), "free again");
    assert!(local.bed.ok(&["worker", "status", "app"]).contains("\nEgress:     none\n"));
    assert_eq!(local.sh("cat ran"), "ran\n", "no edit of the network installs anything again");
}
