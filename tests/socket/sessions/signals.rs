//! Signals to the CLI.

use std::io::Write as _;

use iii_protocol::session::*;
use nix::sys::signal::Signal as Name;
use portable_pty::{CommandBuilder, PtySize, native_pty_system};

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
async fn a_signal_before_the_command_has_begun_ends_the_cli() {
    let bench = Bench::new().await;
    for signal in [Name::SIGINT, Name::SIGTERM, Name::SIGHUP, Name::SIGQUIT] {
        let exec = bench.exec(&["web", "probe"]);
        // Not answered: the agent says neither STARTED nor END.
        let (mut line, _) = bench.agent.begin();
        exec.signal(signal);
        exec.left().is(128 + signal as i32, "", "");
        assert_eq!(line.next(), None);
    }
    bench.daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn control_c_on_a_terminal_leaves_a_command_that_has_not_begun() {
    let bench = Bench::new().await;
    let size = PtySize { rows: 24, cols: 80, pixel_width: 0, pixel_height: 0 };
    let pair = native_pty_system().openpty(size).unwrap();
    let before = pair.master.get_termios().unwrap();
    let plain = bench.command(&["web", "sh"]);
    let mut command = CommandBuilder::new(plain.get_program());
    command.args(plain.get_args());
    for (key, value) in plain.get_envs() {
        command.env(key, value.unwrap());
    }
    let mut child = pair.slave.spawn_command(command).unwrap();
    let mut keys = pair.master.take_writer().unwrap();
    let (mut line, asked) = bench.agent.begin();
    assert!(asked.terminal.is_some());
    // Raw by then, and nevertheless left.
    while pair.master.get_termios().unwrap() == before {
        tokio::task::yield_now().await;
    }
    keys.write_all(b"\x03").unwrap();
    assert_eq!(child.wait().unwrap().exit_code(), 130);
    assert_eq!(line.next(), None);
    assert_eq!(pair.master.get_termios().unwrap(), before, "the terminal is as it was before");
    bench.daemon.end().await;
}
