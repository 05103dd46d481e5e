//! Signals to the CLI.

use iii_protocol::session::*;
use nix::sys::signal::Signal as Name;

use super::Bench;

#[tokio::test(flavor = "multi_thread")]
async fn signals_are_passed_on_and_the_command_has_the_last_word() {
    let bench = Bench::new().await;
    for signal in [Name::SIGINT, Name::SIGTERM, Name::SIGHUP, Name::SIGQUIT] {
        let exec = bench.exec(&["web", "probe"]);
        let (mut line, _) = bench.agent.run();
        line.expect(KIND_STDIN_END);
        exec.signal(signal);
        line.expect_signal(signal as i32);
        line.send(KIND_STDOUT, b"caught it\n");
        line.exit(42);
        exec.left().is(42, "caught it\n", "");
    }
    bench.daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_one_within_a_second_kills_whatever_the_guest_does() {
    let bench = Bench::new().await;
    for (signal, code) in [(Name::SIGINT, 130), (Name::SIGTERM, 143)] {
        for answers in [true, false] {
            let exec = bench.exec(&["web", "stubborn"]);
            let (mut line, _) = bench.agent.run();
            line.expect(KIND_STDIN_END);
            exec.signal(signal);
            line.expect_signal(signal as i32);
            exec.signal(signal);
            line.expect(KIND_KILL);
            if answers {
                line.end(EndCause::Signal { signal: 9 });
            }
            exec.left().is(code, "", "");
        }
    }
    bench.daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_cli_is_a_closed_connection() {
    let bench = Bench::new().await;
    let exec = bench.exec(&["web", "probe"]);
    let (mut line, _) = bench.agent.run();
    line.expect(KIND_STDIN_END);
    exec.signal(Name::SIGKILL);
    assert_eq!(line.next(), None);
    exec.left();
    bench.daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_before_the_session_has_begun_ends_the_cli() {
    let bench = Bench::new().await;
    let exec = bench.exec(&["web", "probe"]);
    // Not answered: the agent says neither STARTED nor END, and the second one is for that.
    let (mut line, _) = bench.agent.begin();
    exec.signal(Name::SIGINT);
    line.expect_signal(2);
    exec.signal(Name::SIGINT);
    line.expect(KIND_KILL);
    exec.left().is(130, "", "");
    bench.daemon.end().await;
}
