//! What the daemon prints.

use std::io::{self, Write};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use iii_protocol::api::{
    Desired, ErrorBody, ErrorCode, Phase, Refused, Resources, WorkerList, WorkerStatus, WorkerType,
};
use iii_protocol::exit::{ExitCause, ExitRecord};
use iii_protocol::network::Network;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::narrate::{MAX_WAITING_LINES, Narrator, Printer};
use super::{Event, who_is_slow};

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(1_767_355_200_000 + millis).unwrap()
}

fn web(phase: Phase, since: i64) -> WorkerStatus {
    WorkerStatus {
        name: "web".to_owned(),
        worker_type: WorkerType::Oci,
        phase,
        detail: None,
        cause: None,
        since: at(since),
        until: None,
        running_since: (phase == Phase::Running).then(|| at(since)),
        desired: Desired::Running,
        generation: 1,
        revision: 1,
        restarts: 0,
        exits: Vec::new(),
        image: None,
        image_digest: None,
        resources: Resources { memory_mib: 2048, cpus: 2, disk_bytes: 16 << 30 },
        network: Network::default(),
        refused: Refused::default(),
        shim_pid: None,
        vmm_pid: None,
        log_dir: String::new(),
    }
}

fn ended(mut status: WorkerStatus, when: i64, cause: ExitCause, requested: bool) -> WorkerStatus {
    let at = at(when);
    status.exits.insert(0, ExitRecord { generation: 1, at, uptime_ms: 192_000, cause, requested });
    status
}

fn tell(events: &[(i64, Event)]) -> String {
    let mut narrator = Narrator::new(TimeZone::UTC);
    let lines = events.iter().flat_map(|(now, event)| narrator.lines(at(*now), event));
    lines.collect::<Vec<_>>().join("\n")
}

fn worker(now: i64, status: &WorkerStatus) -> (i64, Event) {
    (now, Event::Worker(Box::new(status.clone())))
}

#[test]
fn the_life_of_a_worker_is_one_line_per_change() {
    let mut pulling = web(Phase::Preparing, 0);
    pulling.detail = Some("pulling redis:7: 0/5 layers".to_owned());
    let mut pulled = pulling.clone();
    pulled.detail = Some("pulling redis:7: 5/5 layers".to_owned());
    let crash = ended(web(Phase::Backoff, 200_000), 200_000, ExitCause::Exit { code: 7 }, false);
    let crash = WorkerStatus { until: Some(at(204_000)), ..crash };
    let again = WorkerStatus { exits: crash.exits.clone(), ..web(Phase::Booting, 204_000) };
    let stopping = WorkerStatus {
        exits: crash.exits.clone(),
        until: Some(at(310_000)),
        ..web(Phase::Stopping, 300_000)
    };
    let stopped = WorkerStatus { exits: crash.exits.clone(), ..web(Phase::Stopped, 301_000) };
    let stopped = ended(stopped, 301_000, ExitCause::Signal { signal: 15 }, true);
    insta::assert_snapshot!(tell(&[
        worker(0, &web(Phase::Stopped, 0)),
        worker(0, &pulling),
        worker(900, &pulled),
        worker(1000, &web(Phase::Booting, 1000)),
        worker(3800, &web(Phase::Running, 3800)),
        worker(200_000, &crash),
        worker(204_000, &again),
        worker(300_000, &stopping),
        worker(301_000, &stopped),
    ]), @r"
    12:00:00 web  preparing: pulling redis:7: 0/5 layers
    12:00:01 web  booting
    12:00:03 web  running (boot 2.8s)
    12:03:20 web  ended: exit 7 after 3m 12s
    12:03:20 web  restarts in 4.0s
    12:03:24 web  booting
    12:05:00 web  stopping (killed in 10s)
    12:05:01 web  stopped (signal 15)
    ");
}

#[test]
fn an_adopted_worker_and_one_that_failed_say_so() {
    let mut failed = web(Phase::Failed, 1000);
    failed.cause = Some(ErrorBody {
        code: ErrorCode::Host,
        message: "/dev/kvm cannot be opened".to_owned(),
        hint: Some("add yourself to the group `kvm`".to_owned()),
    });
    let error = "config.yaml:3:5: unknown key".to_owned();
    insta::assert_snapshot!(tell(&[
        worker(60_000, &web(Phase::Running, 0)),
        worker(61_000, &failed),
        (62_000, Event::ConfigRefused { error }),
        (63_000, Event::ConfigInForce { changed: vec!["web".to_owned()] }),
    ]), @r"
    12:01:00 web  running (up 1m)
    12:01:01 web  failed: /dev/kvm cannot be opened
      hint: add yourself to the group `kvm`
    12:01:02 config.yaml is not in force, the last good one still is:
    config.yaml:3:5: unknown key
    12:01:03 config.yaml was read again: web
    ");
}

#[test]
fn a_restart_in_place_is_one_line_and_so_is_an_edit_that_is_not_in_force() {
    let running = web(Phase::Running, 0);
    let busy = |detail: &str| WorkerStatus { detail: Some(detail.to_owned()), ..running.clone() };
    let failed = busy("the project's last change is not in force: install failed (exit code 1)");
    let restarted = WorkerStatus { running_since: Some(at(70_000)), ..running.clone() };
    insta::assert_snapshot!(tell(&[
        worker(60_000, &running),
        worker(61_000, &busy("install runs")),
        worker(62_000, &failed),
        worker(63_000, &failed),
        worker(64_000, &busy("copying the project: 1 to copy")),
        worker(65_000, &failed),
        worker(70_000, &WorkerStatus { detail: Some("restarting".to_owned()), ..restarted.clone() }),
        worker(71_000, &restarted),
    ]), @r"
    12:01:00 web  running (up 1m)
    12:01:02 web  the project's last change is not in force: install failed (exit code 1)
    12:01:05 web  the project's last change is not in force: install failed (exit code 1)
    12:01:10 web  restarted in place: its project has changed
    ");
}

#[test]
fn a_project_that_is_made_ready_has_a_line_for_each_step() {
    let booting = web(Phase::Booting, 60_000);
    let step = |detail: &str| WorkerStatus { detail: Some(detail.to_owned()), ..booting.clone() };
    insta::assert_snapshot!(tell(&[
        worker(60_000, &booting),
        worker(61_000, &step("copying the project: 300 to copy")),
        worker(62_000, &step("copying the project: 200 of 300, 1 MiB of 2 MiB")),
        worker(63_000, &step("install runs (requirements.txt changed)")),
        worker(64_000, &step("install runs (requirements.txt changed)")),
        worker(70_000, &web(Phase::Running, 70_000)),
    ]), @r"
    12:01:00 web  booting
    12:01:01 web  copying the project
    12:01:03 web  install runs (requirements.txt changed)
    12:01:10 web  running (boot 10s)
    ");
}

#[test]
fn those_that_are_slow_to_stop_are_named() {
    let list = |workers| WorkerList { workers, config_error: None };
    let slow = who_is_slow(&list(vec![web(Phase::Stopping, 0), web(Phase::Stopped, 0)]));
    assert_eq!(slow.as_deref(), Some("still stopping: web (Ctrl-C again kills)"));
    assert_eq!(who_is_slow(&list(vec![web(Phase::Stopped, 0), web(Phase::Failed, 0)])), None);
}

/// A terminal on which somebody pressed Ctrl-S.
struct Stuck(Sender<()>, std::sync::mpsc::Receiver<()>);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.send(());
        // Until the test ends.
        let _ = self.1.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_terminal_that_takes_nothing_does_not_hold_up_the_daemon() {
    let (stuck, is_stuck) = channel();
    let (_go_on, wait) = channel();
    let printer = Printer::start(Stuck(stuck, wait)).unwrap();
    for line in 0..MAX_WAITING_LINES * 2 {
        printer.line(line.to_string());
    }
    is_stuck.recv().unwrap();
    printer.finish(Duration::from_millis(1));
}
