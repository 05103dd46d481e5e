//! How a session ends, well or not.

use iii_protocol::api::Phase;
use iii_protocol::exit::ExitCause;
use iii_protocol::session::*;
use jiff::Timestamp;

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal as Name;

use super::{Bench, Exec, command};
use crate::fake::{Project, exited, status};

#[tokio::test(flavor = "multi_thread")]
async fn each_end_has_the_exit_code_of_the_table() {
    let bench = Bench::new().await;
    let told = || ("it is as it is".to_owned(), Some("do this".to_owned()));
    let table = [
        (EndCause::Exit { code: 0 }, 0, ""),
        (EndCause::Exit { code: 255 }, 255, ""),
        (EndCause::Signal { signal: 15 }, 143, ""),
        (EndCause::TimedOut, 124, "error: killed, because 90s were over\n"),
        (
            EndCause::CouldNotStart { message: told().0, hint: told().1 },
            125,
            "error: it is as it is\n\nhint: do this\n",
        ),
        (EndCause::CannotExecute { message: told().0, hint: None }, 126, "error: it is as it is\n"),
        (EndCause::NotFound { message: told().0, hint: None }, 127, "error: it is as it is\n"),
    ];
    for (cause, code, stderr) in table {
        let exec = bench.exec(&["--timeout", "90s", "web", "probe"]);
        let (mut line, _) = bench.agent.begin();
        line.end(cause);
        let stderr = stderr.replace("90s", "1m 30s");
        exec.left().is(code, "", &stderr);
    }
    bench.daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_ends_meanwhile_is_told_with_its_cause() {
    let bench = Bench::new().await;
    for (requested, told) in [
        (true, "worker `web` was stopped while the command ran"),
        (false, "worker `web` ended while the command ran (exit 7)"),
    ] {
        bench.project.add(status("web", Phase::Running));
        let exec = bench.exec(&["web", "probe"]);
        let (mut line, _) = bench.agent.run();
        line.send(KIND_STDOUT, b"");
        drop(line);
        // The daemon notices later than the session's connection.
        let mut ended = exited(status("web", Phase::Stopped), ExitCause::Exit { code: 7 });
        ended.exits[0].at = Timestamp::now();
        ended.exits[0].requested = requested;
        bench.project.world.lock().unwrap().workers["web"].status.send_replace(ended);
        exec.left().says(125, &[told, "iii worker logs web"]);
    }
    bench.daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_lost_for_no_known_reason_says_so_too() {
    let bench = Bench::new().await;
    let exec = bench.exec(&["web", "probe"]);
    drop(bench.agent.run());
    exec.left().says(125, &["the connection to `web` was lost, though it runs on"]);
    let exec = bench.exec(&["web", "probe"]);
    let (mut line, _) = bench.agent.run();
    line.send(99, b"what?");
    exec.left().says(125, &["unknown kind 99", "restart web"]);
    bench.daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_sends_more_than_its_window_is_given_up() {
    let bench = Bench::new().await;
    let (_reader, writer) = std::io::pipe().unwrap();
    let mut command = bench.command(&["web", "flood"]);
    command.stdout(writer);
    let exec = Exec::spawn(command);
    let (mut line, _) = bench.agent.run();
    line.expect(KIND_STDIN_END);
    for _ in 0..WINDOW_BYTES / MAX_DATA_BYTES {
        line.send(KIND_STDOUT, &[b'x'; MAX_DATA_BYTES]);
    }
    // The first of these goes over it, so that the others may find the connection closed.
    for _ in 0..WINDOW_BYTES / MAX_DATA_BYTES {
        let _ = line.try_send(KIND_STDOUT, &[b'x'; MAX_DATA_BYTES]);
    }
    // Nobody reads its stdout, so that it cannot wait for that to be written.
    let mut exec = exec;
    while line.next().is_some() {}
    exec.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(exec.status().code(), Some(143));
    bench.daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_is_a_lost_connection() {
    let bench = Bench::new().await;
    let exec = bench.exec(&["web", "probe"]);
    let (line, _) = bench.agent.run();
    bench.daemon.vanish().await;
    // The sessions of a killed process are closed by the kernel.
    drop(line);
    exec.left().says(125, &["the connection was lost: the daemon is gone", "`iii`"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_ends_with_125_and_wrong_usage_with_2() {
    let bench = Bench::new().await;
    bench.exec(&["wbe", "ls"]).left().says(125, &["there is no worker `wbe`", "did you mean `web`?"]);
    bench.project.add(status("web", Phase::Booting));
    bench.exec(&["web", "ls"]).left().says(125, &["`web` is still booting", "iii worker start web"]);
    bench.exec(&["web"]).left().says(2, &["COMMAND"]);
    bench.exec(&["web", "--timeout", "0s", "ls"]).left().says(2, &["needs some time"]);
    bench.exec(&["web", "-e", "=x", "ls"]).left().says(2, &["needs a name"]);
    let long = "x".repeat(100_000);
    let mut many = vec!["web", "echo"];
    many.extend(std::iter::repeat_n(long.as_str(), 12));
    bench.exec(&many).left().says(126, &["argument list is too long"]);
    bench.daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_daemon_it_says_what_to_do() {
    let project = Project::new("workers:\n  - name: web\n    image: redis:7\n");
    let run = |args: &[&str]| Exec::spawn(command(&project, args)).left();
    run(&["web", "ls"]).says(125, &["no daemon is running for", "start it with `iii`"]);
    run(&["wbe", "ls"]).says(125, &["there is no worker `wbe`", "did you mean `web`?"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_does_not_end_in_time_is_given_up() {
    let bench = Bench::new().await;
    let exec = bench.exec(&["--timeout", "1ms", "web", "sleep"]);
    let (mut line, _) = bench.agent.run();
    exec.left().says(124, &["1ms were over", "did not say"]);
    line.expect(KIND_STDIN_END);
    assert_eq!(line.next(), None);
    bench.daemon.end().await;
}

/// What a guest that is paused or dead looks like, and a daemon that is.
#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_answer_is_told_of_once_and_can_be_left() {
    let bench = Bench::new().await;
    let mut waiting = Vec::new();
    let mut lines = Vec::new();
    for _ in 0..2 {
        waiting.push(bench.exec(&["web", "probe"]));
        lines.push(bench.agent.begin().0);
    }
    let (project, daemon) = silent_daemon();
    waiting.push(Exec::spawn(command(&project, &["web", "probe"])));
    let unheard = daemon.accept().unwrap();
    for exec in &mut waiting {
        let mut said = String::new();
        BufReader::new(exec.child.stderr.as_mut().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "warning: `web` does not answer yet; Ctrl-C leaves\n");
    }
    // One that answers after all is as any other.
    lines[0].tell(KIND_STARTED, &Started { session: 1, pid: 2 });
    lines[0].expect(KIND_STDIN_END);
    lines[0].exit(7);
    waiting.remove(0).left().is(7, "", "");
    for exec in waiting {
        exec.signal(Name::SIGINT);
        exec.left().is(130, "", "");
    }
    drop(unheard);
    bench.daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_limit_is_kept_though_nobody_answers() {
    let bench = Bench::new().await;
    let limit = ["--timeout", "1ms", "web", "sleep"];
    let unanswered = bench.exec(&limit);
    let (mut line, _) = bench.agent.begin();
    let (project, daemon) = silent_daemon();
    let unheard = Exec::spawn(command(&project, &limit));
    let _held = daemon.accept().unwrap();
    for exec in [unanswered, unheard] {
        exec.left().says(124, &["1ms were over", "did not say"]);
    }
    assert_eq!(line.next(), None);
    bench.daemon.end().await;
}

/// A socket where the daemon's should be.
fn silent_daemon() -> (Project, UnixListener) {
    let project = Project::new("workers:\n  - name: web\n    image: redis:7\n");
    let socket = project.ctx.home.daemon_socket(&project.ctx.project);
    std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    let listener = UnixListener::bind(socket).unwrap();
    (project, listener)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_none_ends_with_125() {
    let (project, daemon) = silent_daemon();
    for (answer, told) in [
        ("", "the daemon went away"),
        ("nonsense\r\n\r\n", "the daemon's answer cannot be read"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "the daemon's answer cannot be read"),
        ("HTTP/1.1 500 Oops\r\ncontent-length: 4\r\n\r\noops", "the daemon's answer cannot be read"),
    ] {
        let exec = Exec::spawn(command(&project, &["web", "ls"]));
        let (mut stream, _) = daemon.accept().unwrap();
        read_head(&mut stream);
        stream.write_all(answer.as_bytes()).unwrap();
        drop(stream);
        exec.left().says(125, &[told]);
    }
}

fn read_head(stream: &mut UnixStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_on_this_side_ends_with_125_too() {
    let bench = Bench::new().await;
    let mut command = bench.command(&["-d", "web", "probe"]);
    command.stdout(File::options().write(true).open("/dev/full").unwrap());
    let exec = Exec::spawn(command);
    let (mut line, _) = bench.agent.run();
    line.end(EndCause::Detached);
    exec.left().says(125, &["cannot write the output"]);

    let plain = bench.command(&["web", "probe"]);
    let mut command = Command::new("sh");
    let nowhere = "mkdir gone && cd gone && rmdir ../gone && exec \"$@\"";
    command.args(["-c", nowhere, "sh"]).arg(plain.get_program()).args(plain.get_args());
    command.current_dir(bench.project.ctx.config.parent().unwrap());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Exec::spawn(command).left().says(125, &["the current folder cannot be found"]);
    let mut command = bench.command(&["web", "probe"]);
    command.stdin(File::open("/proc/self").unwrap());
    let exec = Exec::spawn(command);
    let _line = bench.agent.run();
    exec.left().says(125, &["cannot read the input"]);
    bench.daemon.end().await;
}
