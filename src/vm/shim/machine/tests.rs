use std::path::Path;
use std::sync::Arc;

use iii_protocol::api::Resources;
use iii_protocol::engine::Engine;
use iii_protocol::guest::{ProcessPlan, Started};
use iii_protocol::network::Network;
use tokio::net::UnixStream;

use tokio::net::unix::pipe;
use tokio::process::Command;

use super::last_word::MAX_GUEST_CHARS;
use super::*;
use crate::logs::LogRing;
use crate::vm::spec::MachineSpec;

/// A machine whose guest is the test; its VMM is any process that stays.
pub(super) fn machine(dir: &Path) -> (Machine, Child, UnixStream) {
    let process = ProcessPlan {
        // More than a socket takes at once.
        argv: vec!["x".repeat(900_000)],
        env: Vec::new(),
        cwd: "/".into(),
        user: String::new(),
    };
    let spec = MachineSpec {
        worker: "web".into(),
        generation: 1,
        resources: Resources { memory_mib: 1, cpus: 1, disk_bytes: 1 },
        root_disk: dir.into(),
        process,
        project: None,
        network: Network::default(),
        engine: Engine::default(),
        stop_signal: 15,
        stop_timeout_ms: 1000,
        boot_timeout_ms: 1000,
        orphan_grace_ms: 1000,
    };
    let spec = ShimSpec {
        machine: spec,
        run_dir: dir.into(),
        log_dir: dir.into(),
        scratch_disk: dir.into(),
        base_changed: false,
        first_seq: 0,
        libkrunfw: None,
    };
    let (console, _) = std::io::pipe().unwrap();
    let console = pipe::Receiver::from_owned_fd(console.into()).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut vmm = Command::new("sleep").arg("1000").kill_on_drop(true).spawn().unwrap();
    let phase = MachinePhase::Booting { since: Timestamp::now(), deadline: Timestamp::now(), detail: None };
    let mut machine = Machine {
        status: watch::Sender::new(ShimStatus {
            worker: "web".into(),
            generation: 1,
            spec_hash: String::new(),
            shim_pid: 1,
            vmm_pid: vmm.id(),
            phase,
            next_seq: 1,
            refused: Refused::default(),
            activity: None,
        }),
        output: Output::open(dir, 1, 0, Arc::new(LogRing::new(1000))).unwrap(),
        console: Console::start(console, dir).unwrap(),
        spec,
        born: Instant::now(),
        agent: Agent::Absent,
        greeted: false,
        preparation: None,
        refresh: Refresh::default(),
        skipped: Vec::new(),
        running_since: None,
        last_word: None,
        is_written: false,
        verdict: None,
        stop_requested: false,
        kill_at: None,
        orphaned_at: None,
    };
    machine.on_agent(FromAgent::Connected(ours.into_split().1), &mut vmm);
    (machine, vmm, theirs)
}

pub(super) fn hello() -> Frame {
    Frame::json(guest::KIND_HELLO, &Hello { version: guest::VERSION, kernel: "k".into(), uptime_ms: 1 })
}

fn exit(cause: ExitCause) -> Frame {
    Frame::json(guest::KIND_EXIT, &Exit { cause, uptime_ms: u64::MAX })
}

#[tokio::test]
async fn a_guest_that_does_not_read_its_plan_can_be_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let (mut machine, mut vmm, _guest) = machine(dir.path());
    machine.on_frame(&hello()).unwrap();
    // The plan is stuck half way now.
    tokio::task::yield_now().await;
    for _ in 0..100 {
        machine.stop(u64::MAX, &mut vmm);
    }
    machine.stop(0, &mut vmm);
    assert!(machine.kill_at.unwrap() <= Instant::now() + STOP_MARGIN);
    machine.on_deadline(&mut vmm);
    assert!(!vmm.wait().await.unwrap().success());
}

#[tokio::test]
async fn after_its_last_word_a_guest_cannot_put_off_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let (mut machine, _vmm, _guest) = machine(dir.path());
    machine.on_frame(&hello()).unwrap();
    machine.on_frame(&exit(ExitCause::Exit { code: 7 })).unwrap();
    let kill_at = machine.kill_at;
    assert!(kill_at.is_some());
    machine.on_frame(&Frame::json(guest::KIND_STARTED, &Started { pid: 1 })).unwrap();
    machine.on_frame(&exit(ExitCause::Exit { code: 0 })).unwrap();
    assert_eq!(machine.kill_at, kill_at);
    let word = machine.last_word.unwrap();
    assert_eq!(word.cause, ExitCause::Exit { code: 7 });
    assert!(word.uptime_ms < 60_000, "a run longer than its machine");
}

#[tokio::test]
async fn a_guest_that_speaks_out_of_turn_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut machine, _vmm, _guest) = machine(dir.path());
    let output = Frame { kind: guest::KIND_STDOUT, payload: guest::output_payload(1, b"x\n") };
    assert!(machine.on_frame(&output).is_err());
    machine.on_frame(&hello()).unwrap();
    assert!(machine.on_frame(&hello()).is_err());
    assert!(machine.on_frame(&output).is_err());
    assert!(machine.on_frame(&exit(ExitCause::ShimDied)).is_err());
    let started = Frame::json(guest::KIND_STARTED, &Started { pid: 1 });
    machine.on_frame(&started).unwrap();
    machine.on_frame(&output).unwrap();
    assert!(machine.on_frame(&started).is_err());
}

#[tokio::test]
async fn a_full_disk_does_not_change_how_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let (mut machine, mut vmm, _guest) = machine(dir.path());
    machine.spec.run_dir = dir.path().join("nowhere");
    machine.on_frame(&hello()).unwrap();
    let message = "\u{1b}[31mred\n".repeat(10_000);
    let cause = ExitCause::CouldNotStart { what: "exec".into(), message, hint: None };
    machine.on_frame(&exit(cause)).unwrap();
    kill(&mut vmm);
    let status = vmm.wait().await.unwrap();
    assert!(machine.conclude(status).await.is_err());
    let phase = machine.status.borrow().phase.clone();
    let MachinePhase::Ended { exit } = phase else { panic!("{phase:?}") };
    let ExitCause::CouldNotStart { message, .. } = exit.cause else { panic!("{:?}", exit.cause) };
    assert!(message.starts_with("[31mred\n") && message.len() <= MAX_GUEST_CHARS);
}

/// A machine whose console has said `line`.
async fn with_console(dir: &Path, line: &str) -> (Machine, Child, UnixStream) {
    let (mut machine, vmm, guest) = machine(dir);
    let (console, mut writer) = std::io::pipe().unwrap();
    let console = pipe::Receiver::from_owned_fd(console.into()).unwrap();
    machine.console = Console::start(console, dir).unwrap();
    std::io::Write::write_all(&mut writer, line.as_bytes()).unwrap();
    let read = async {
        while machine.console.tail().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(10), read).await.expect("the console is read");
    (machine, vmm, guest)
}

/// How the machine ended, as it was told and as it is on disk.
async fn conclude(mut machine: Machine, mut vmm: Child) -> ExitCause {
    let dir = machine.spec.run_dir.clone();
    machine.conclude(vmm.wait().await.unwrap()).await.unwrap();
    let phase = machine.status.borrow().phase.clone();
    let MachinePhase::Ended { exit } = phase else { panic!("{phase:?}") };
    let written = std::fs::read(dir.join(crate::vm::shim::EXIT_FILE)).unwrap();
    assert_eq!(serde_json::from_slice::<ExitRecord>(&written).unwrap(), exit);
    exit.cause
}

const KERNEL: &str = "[    0.1] erofs: cannot find valid erofs superblock\n";

#[tokio::test]
async fn a_boot_that_hangs_ends_at_its_deadline_with_the_consoles_last_lines() {
    let dir = tempfile::tempdir().unwrap();
    let (mut machine, mut vmm, _guest) = with_console(dir.path(), KERNEL).await;
    machine.on_deadline(&mut vmm);
    let ExitCause::CouldNotStart { what, message, hint } = conclude(machine, vmm).await else { panic!() };
    assert_eq!(what, "boot");
    assert!(message.contains("was not running 1s after the machine's start"), "{message}");
    assert!(message.ends_with(&format!("the console's last lines:\n{}", KERNEL.trim_end())), "{message}");
    assert!(hint.unwrap().contains("boot_timeout"));
}

#[tokio::test]
async fn a_boot_that_fails_by_the_agents_word_has_the_consoles_last_lines() {
    let could_not = |what: &str| ExitCause::CouldNotStart {
        what: what.into(),
        message: "invalid argument".into(),
        hint: None,
    };
    for (what, is_running, is_with_console) in [
        ("root disk", false, true),
        ("scratch disk", false, true),
        ("mounts", false, true),
        // The machine is well.
        ("exec", false, false),
        ("user", false, false),
        // A restart in place.
        ("cgroup", true, false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (mut machine, mut vmm, _guest) = with_console(dir.path(), KERNEL).await;
        machine.on_frame(&hello()).unwrap();
        if is_running {
            machine.on_frame(&Frame::json(guest::KIND_STARTED, &Started { pid: 1 })).unwrap();
        }
        machine.on_frame(&exit(could_not(what))).unwrap();
        kill(&mut vmm);
        let ExitCause::CouldNotStart { message, hint, .. } = conclude(machine, vmm).await else { panic!() };
        assert!(message.starts_with("invalid argument"), "{what}: {message}");
        let hint = hint.unwrap_or_default();
        assert_eq!(
            hint.starts_with("`iii worker start web` looks whether "),
            what == "root disk",
            "{what}: {hint}"
        );
        assert_eq!(hint.starts_with("`e2fsck -fy "), what == "scratch disk", "{what}: {hint}");
        assert_eq!(
            message.contains("cannot find valid erofs superblock"),
            is_with_console,
            "{what}: {message}"
        );
    }
}
