//! That a session leaves nothing in its worker, and says so when the worker leaves it.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

use iii_protocol::api::Phase;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::super::bed::Bed;
use super::web;

/// `iii worker exec web` of a script that has said its first line, with the input open, and the words of that line.
fn said(bed: &Bed, script: &str) -> (Child, Vec<String>) {
    let mut command = bed.command(&["worker", "exec", "web", "--", "/bin/sh", "-c", script]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    // Nothing comes behind it that the reader could swallow.
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    (child, line.split_whitespace().map(str::to_owned).collect())
}

/// Whether the worker has such a process, even as a zombie.
fn is_there(bed: &Bed, pid: &str) -> bool {
    let run = bed.iii(&["worker", "exec", "web", "--", "/bin/sh", "-c", "test -e /proc/$0", pid]);
    match run.code {
        Some(code @ (0 | 1)) => code == 0,
        _ => panic!("{run:?}"),
    }
}

fn end(mut child: Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
    child.wait().unwrap();
}

#[test]
fn a_killed_cli_is_a_hangup_for_its_command_and_then_a_kill() {
    let (bed, _daemon) = web();
    // The first one tells of its hangup and stays; the second one, twice forked, is deaf.
    let script = "file=/tmp/hangup-$$; deaf='trap \"\" HUP; echo $PPID $$ $0; exec sleep 1000'; \
                  trap 'echo hung up > $file' HUP; (setsid /bin/sh -c \"$deaf\" $file &); \
                  while :; do sleep 1 & wait $!; done";
    let (child, words) = said(&bed, script);
    let [_, deaf, file] = words.as_slice() else { panic!("{words:?}") };
    let command = file.rsplit('-').next().unwrap();
    assert!(is_there(&bed, command) && is_there(&bed, deaf));
    end(child, Signal::SIGKILL);
    bed.until("both are gone", || !is_there(&bed, command) && !is_there(&bed, deaf));
    assert_eq!(bed.ok(&["worker", "exec", "web", "--", "cat", file]), "hung up\n");
    bed.ok(&["worker", "exec", "web", "--", "rm", file]);
}

#[test]
fn a_session_takes_along_what_has_left_it_by_a_double_fork() {
    let (bed, _daemon) = web();
    let daemon = "echo $$; exec sleep 1000 >/dev/null 2>&1 </dev/null";
    let (child, words) = said(&bed, &format!("(setsid /bin/sh -c '{daemon}' & exit); cat; exit 4"));
    assert!(is_there(&bed, &words[0]));
    // Closes its input first, which ends the command.
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(4));
    assert!(!is_there(&bed, &words[0]), "it is gone when the command's end is told");
}

#[test]
fn orphans_leave_no_zombie_while_their_session_runs() {
    let (bed, _daemon) = web();
    let orphans =
        "for i in 1 2 3 4 5; do /bin/sh -c '(exit 1) & echo $! $(/bin/sh -c \"true & echo \\$!\")'; done";
    let (child, pids) = said(&bed, &format!("echo $({orphans}); exec sleep 1000"));
    assert_eq!(pids.len(), 10, "{pids:?}");
    for pid in &pids {
        bed.until("the orphan is gone, not a zombie", || !is_there(&bed, pid));
    }
    end(child, Signal::SIGTERM);
}

#[test]
fn a_worker_that_is_killed_ends_its_sessions_with_the_cause() {
    let (bed, _daemon) = web();
    let (child, _) = said(&bed, "echo ready; exec sleep 1000");
    let machine = bed.status("web").unwrap().vmm_pid.unwrap();
    kill(Pid::from_raw(i32::try_from(machine).unwrap()), Signal::SIGKILL).unwrap();
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{told}");
    assert!(told.starts_with("error: worker `web` ended while the command ran (vmm-died"), "{told}");
    assert!(told.contains("iii worker logs web"), "{told}");
}

#[test]
fn commands_go_on_after_their_machine_was_another_one() {
    let (bed, daemon) = web();
    let exec = |word: &str| bed.ok(&["worker", "exec", "web", "--", "echo", word]);
    for round in ["first", "second"] {
        assert_eq!(exec(round), format!("{round}\n"));
        bed.ok(&["worker", "restart", "web"]);
        assert_eq!(exec("restarted"), "restarted\n");
        let shim = bed.status("web").unwrap().shim_pid.unwrap();
        kill(Pid::from_raw(i32::try_from(shim).unwrap()), Signal::SIGKILL).unwrap();
        bed.wait("web", "another machine", |now| {
            now.phase == Phase::Running && now.shim_pid.is_some_and(|pid| pid != shim)
        });
        assert_eq!(exec("crashed"), "crashed\n");
    }
    // Nor does the daemon's end take long, or that of a daemon that was killed leave anything.
    daemon.kill();
    let daemon = bed.daemon();
    bed.wait_phase("web", Phase::Running);
    assert_eq!(exec("adopted"), "adopted\n");
    daemon.stop();
}
