//! Commands beside the workload: streams, environment and exit codes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use iii_protocol::frame::read_frame;
use iii_protocol::session::{
    EndCause, Exec, KIND_CLOSE_STDERR, KIND_CLOSE_STDOUT, KIND_STDOUT, WINDOW_BYTES,
};

use crate::client::{Client, OK, exec, outcome, script, script_with_input, worker, worker_of};
use crate::shim::{Shim, until};

#[test]
fn both_streams_and_the_exit_code_are_the_commands() {
    let worker = worker();
    let (cause, stdout, stderr) = outcome(&worker, script("printf out; printf err >&2; exit 7"));
    assert_eq!((cause, stdout.as_str(), stderr.as_str()), (EndCause::Exit { code: 7 }, "out", "err"));
    for signal in [1, 6, 9, 15, 37] {
        let (cause, ..) = outcome(&worker, script(&format!("ulimit -c 0; kill -{signal} $$; sleep 600")));
        assert_eq!(cause, EndCause::Signal { signal });
    }
}

#[test]
fn sessions_are_counted_and_lead_their_own_process_session() {
    let worker = worker();
    for session in 1..4 {
        let mut client = Client::run(&worker, script("echo $$ $(cut -d' ' -f5,6 /proc/$$/stat)"));
        assert_eq!(client.finish(), OK);
        let pid = client.pid();
        assert_eq!(client.text(), format!("{pid} {pid} {pid}\n"));
        assert_eq!(client.started.expect("started").session, session);
    }
}

#[test]
fn input_goes_in_and_its_end_is_seen() {
    let worker = worker();
    let mut client = Client::run(&worker, script_with_input("cat; echo done"));
    client.input(b"one\0two");
    client.end_input();
    assert_eq!(client.finish(), OK);
    assert_eq!(client.stdout, b"one\0twodone\n");
    let (cause, stdout, _) = outcome(&worker, exec(&["cat"]));
    assert_eq!((cause, stdout.as_str()), (OK, ""));
}

/// Sends all of it while hearing what comes, and hears the end.
fn through(client: &mut Client, bytes: &[u8]) -> EndCause {
    client.input(bytes);
    client.end_input();
    client.finish()
}

#[test]
fn much_goes_both_ways_within_the_windows_and_byte_for_byte() {
    const SIZE: usize = 64 * 1024 * 1024;
    let worker = worker();
    let mut client = Client::run(&worker, script_with_input("exec cat"));
    let bytes: Vec<u8> =
        (0..SIZE / 4).flat_map(|n| (n as u32).wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    assert_eq!(through(&mut client, &bytes), OK);
    // The client has checked every frame and credit against the windows.
    assert!(client.stdout == bytes, "the bytes differ");
    let status = fs::read_to_string(format!("/proc/{}/status", worker.agent_pid())).expect("status");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("peak");
    let kib: usize = peak.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(kib < 32 * 1024, "the agent took {kib} KiB for it");
}

#[test]
fn a_client_that_reads_nothing_gets_one_window_and_stops_the_command() {
    let worker = worker();
    let mut client = Client::run(&worker, script("head -c 8000000 /dev/zero; echo done >&2; sleep 600"));
    let mut got = 0;
    while got < WINDOW_BYTES {
        let frame = read_frame(&mut client.stream).expect("reads").expect("a frame");
        assert_eq!(frame.kind, KIND_STDOUT);
        got += frame.payload.len();
    }
    assert_eq!(got, WINDOW_BYTES);
    // That nothing more comes can only be seen by giving it time.
    client.stream.set_read_timeout(Some(std::time::Duration::from_millis(200))).expect("timeout");
    assert!(read_frame(&mut client.stream).is_err(), "more than the window allows");
}

#[test]
fn what_is_written_last_is_not_lost() {
    let worker = worker();
    for _ in 0..30 {
        let (_, stdout, stderr) = outcome(&worker, script("printf last; printf words >&2; kill -9 $$"));
        assert_eq!((stdout.as_str(), stderr.as_str()), ("last", "words"));
    }
}

#[test]
fn a_command_that_does_not_read_takes_a_window_of_input_and_no_more() {
    let worker = worker();
    let mut client = Client::run(&worker, script_with_input("read go; wc -c"));
    // The agent takes all of it, though the command reads one byte at a time.
    let bytes = vec![b'x'; WINDOW_BYTES - 3];
    client.input(&bytes);
    client.input(b"\ngo");
    client.end_input();
    assert_eq!(client.finish(), OK);
    assert_eq!(client.text().trim(), "2");
}

#[test]
fn closed_input_is_said_once_and_the_rest_is_thrown_away() {
    let worker = worker();
    let mut client = Client::run(
        &worker,
        script_with_input("exec <&-; echo closed; read x < /dev/null; sleep 0.2; echo end"),
    );
    client.until_said("closed");
    client.input(&vec![7; 4 * WINDOW_BYTES]);
    client.end_input();
    assert_eq!(client.finish(), OK);
    assert_eq!((client.stdin_closed, client.text().as_str()), (1, "closed\nend\n"));
}

#[test]
fn nobody_reads_output_any_more_is_a_broken_pipe() {
    let worker = worker();
    let mut client = Client::run(&worker, exec(&["yes"]));
    client.until_said("y");
    client.say(KIND_CLOSE_STDOUT, &[]);
    assert_eq!(client.finish(), EndCause::Signal { signal: 13 });
    let mut client = Client::run(&worker, script("yes >&2; echo still here; exit 3"));
    while client.stderr.is_empty() {
        assert!(client.hear().is_none());
    }
    client.say(KIND_CLOSE_STDERR, &[]);
    assert_eq!(client.finish(), EndCause::Exit { code: 3 });
    assert_eq!(client.text(), "still here\n");
}

#[test]
fn the_environment_is_the_workloads_and_then_the_sessions() {
    let mut workload = crate::shim::sh("exec sleep 3600");
    workload.env.extend([("A".into(), "image".into()), ("B".into(), "image".into())]);
    let worker = worker_of(workload);
    let mut exec = exec(&["env"]);
    exec.env = vec![("B".into(), "own".into()), ("C".into(), "x=y\nz".into()), ("B".into(), "last".into())];
    let (_, stdout, _) = outcome(&worker, exec.clone());
    assert_eq!(stdout, "PATH=/usr/local/bin:/usr/bin:/bin\nA=image\nB=last\nC=x=y\nz\n");
    exec.env = vec![("A=B".into(), "x".into())];
    assert!(matches!(outcome(&worker, exec).0, EndCause::CouldNotStart { .. }));
}

#[test]
fn a_user_is_taken_on_with_its_home_or_named_as_missing() {
    let worker = worker();
    let mut exec = script("id -u; id -g; echo $HOME");
    exec.user = Some("nobodyxyz".into());
    let EndCause::CouldNotStart { message, hint } = outcome(&worker, exec.clone()).0 else {
        panic!("it ran")
    };
    assert!(message.contains("nobodyxyz") && hint.is_some(), "{message}");
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: switching users needs root");
        return;
    }
    exec.user = Some("12345:23456".into());
    assert_eq!(outcome(&worker, exec.clone()).1, "12345\n23456\n/\n");
    // The caller's own home is the image's business only when the image says nothing.
    exec.env = vec![("HOME".into(), "/elsewhere".into())];
    assert_eq!(outcome(&worker, exec).1, "12345\n23456\n/elsewhere\n");
}

#[test]
fn the_working_directory_must_exist() {
    let worker = worker();
    let mut exec = exec(&["pwd"]);
    exec.cwd = Some("/usr/lib".into());
    assert_eq!(outcome(&worker, exec.clone()).1, "/usr/lib\n");
    exec.cwd = Some("/no/such/folder".into());
    let EndCause::CannotExecute { message, .. } = outcome(&worker, exec.clone()).0 else { panic!("it ran") };
    assert_eq!(message, "working directory: /no/such/folder: no such file or directory");
    exec.cwd = Some("relative".into());
    assert!(matches!(outcome(&worker, exec).0, EndCause::CouldNotStart { .. }));
}

fn program(shim: &Shim, name: &str, content: &[u8], mode: u32) -> String {
    let path = shim.path(name);
    fs::write(&path, content).expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
    path
}

#[test]
fn what_cannot_be_executed_is_told_from_what_is_not_there() {
    let worker = worker();
    let not_found = |argv: &[&str]| match outcome(&worker, exec(argv)).0 {
        EndCause::NotFound { message, hint } => (message, hint.expect("hint")),
        other => panic!("{argv:?}: {other:?}"),
    };
    let cannot = |argv: &[&str]| match outcome(&worker, exec(argv)).0 {
        EndCause::CannotExecute { message, .. } => message,
        other => panic!("{argv:?}: {other:?}"),
    };
    let (message, hint) = not_found(&["no-such-command"]);
    assert_eq!(message, "`no-such-command`: not found in PATH (/usr/local/bin:/usr/bin:/bin)");
    assert!(!hint.contains("Entrypoint"), "{hint}");
    assert_eq!(not_found(&["/no/such"]).0, "`/no/such`: no such file or directory");
    not_found(&[""]);
    assert!(cannot(&["/etc"]).ends_with("is a directory"));
    assert!(cannot(&["/etc/passwd/x"]).ends_with("not a directory"));
    assert!(cannot(&[&program(&worker, "plain", b"#!/bin/sh\n", 0o644)]).contains("not executable"));
    assert!(
        cannot(&[&program(&worker, "bad", b"#!/no/such\n", 0o755)]).contains("`/no/such` does not exist")
    );
    assert!(cannot(&[&program(&worker, "text", b"echo\n", 0o755)]).contains("exec format error"));
    let mut elf = [0u8; 64];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[18] = 243;
    assert!(cannot(&[&program(&worker, "riscv", &elf, 0o755)]).contains("built for riscv"));
    assert!(cannot(&["true", &"x".repeat(200_000)]).contains("argument list too long"));
    assert!(matches!(outcome(&worker, exec(&[])).0, EndCause::CouldNotStart { .. }));
    assert!(matches!(outcome(&worker, exec(&["true", "a\0b"])).0, EndCause::CouldNotStart { .. }));
    // None of them is left as a zombie.
    let children = || fs::read_to_string(format!("/proc/{0}/task/{0}/children", worker.agent_pid()));
    until("all failed processes are reaped", || {
        children().is_ok_and(|text| text.split_ascii_whitespace().count() <= 1)
    });
}

#[test]
fn a_program_is_looked_up_as_its_user_may() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: switching users needs root");
        return;
    }
    let worker = worker();
    fs::set_permissions(worker.path(""), fs::Permissions::from_mode(0o755)).expect("chmod");
    fs::create_dir(worker.path("closed")).expect("folder");
    fs::create_dir(worker.path("open")).expect("folder");
    program(&worker, "closed/tool", b"#!/bin/sh\necho closed\n", 0o755);
    program(&worker, "open/tool", b"#!/bin/sh\necho open\n", 0o755);
    fs::set_permissions(worker.path("closed"), fs::Permissions::from_mode(0o700)).expect("chmod");
    let mut exec = exec(&["tool"]);
    exec.env =
        vec![("PATH".into(), format!("{}:{}:/usr/bin:/bin", worker.path("closed"), worker.path("open")))];
    assert_eq!(outcome(&worker, exec.clone()).1, "closed\n");
    exec.user = Some("12345".into());
    assert_eq!(outcome(&worker, exec).1, "open\n");
}

#[test]
fn many_sessions_at_once_do_not_wait_for_each_other() {
    let worker = worker();
    let mut clients: Vec<Client> = (0..64)
        .map(|_| Client::run(&worker, script_with_input("read line; echo got $line; exit 5")))
        .collect();
    // All of them run now; the last is served first.
    for (number, client) in clients.iter_mut().enumerate().rev() {
        client.input(format!("{number}\n").as_bytes());
        assert_eq!(client.finish(), EndCause::Exit { code: 5 });
        assert_eq!(client.text(), format!("got {number}\n"));
    }
}

#[test]
fn one_session_too_many_is_told_so_and_the_next_end_makes_room() {
    let worker = worker();
    let waits = || script_with_input("read line");
    let mut clients: Vec<Client> =
        (0..iii_protocol::session::MAX_SESSIONS).map(|_| Client::run(&worker, waits())).collect();
    let EndCause::CouldNotStart { message, .. } = outcome(&worker, script("true")).0 else {
        panic!("it ran")
    };
    assert_eq!(message, "the worker has 256 sessions already");
    let mut first = clients.swap_remove(0);
    first.end_input();
    first.finish();
    drop(first);
    until("there is room again", || outcome(&worker, script("true")).0 == OK);
}

#[test]
fn a_signal_kills_or_is_handled_by_the_whole_group() {
    use iii_protocol::session::{KIND_KILL, KIND_SIGNAL, Signal};
    let worker = worker();
    let mut client = Client::run(
        &worker,
        script("trap 'echo caught; exit 4' INT; echo ready; while :; do sleep 0.02; done"),
    );
    client.until_said("ready");
    client.say_json(KIND_SIGNAL, &Signal { signal: 2 });
    assert_eq!(client.finish(), EndCause::Exit { code: 4 });
    assert_eq!(client.text(), "ready\ncaught\n");
    let stubborn = Exec { ..script("trap '' INT TERM HUP; echo ready; while :; do sleep 0.02; done") };
    let mut client = Client::run(&worker, stubborn);
    client.until_said("ready");
    client.say(KIND_KILL, &[]);
    assert_eq!(client.finish(), EndCause::Signal { signal: 9 });
}

#[test]
fn order_within_each_stream_is_kept() {
    let worker = worker();
    let mut client = Client::run(&worker, script("for i in $(seq 2000); do echo o$i; echo e$i >&2; done"));
    assert_eq!(client.finish(), OK);
    let expected = |letter: char| (1..=2000).map(|n| format!("{letter}{n}\n")).collect::<String>();
    assert!(client.stdout == expected('o').as_bytes() && client.stderr == expected('e').as_bytes());
}
