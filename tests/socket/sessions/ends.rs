//! How a session ends, well or not.

use iii_protocol::api::Phase;
use iii_protocol::exit::ExitCause;
use iii_protocol::session::*;
use jiff::Timestamp;

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
