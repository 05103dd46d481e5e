//! Which connections to a guest carry another session, and which do not.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use iii_protocol::frame::{Frame, HEADER_BYTES, encode};
use iii_protocol::session::*;

use super::Bench;
use super::agent::Line;
use super::edge::{switched, upgrading};

const OK: EndCause = EndCause::Exit { code: 0 };

/// END and AGAIN, in one piece as the agent sends them.
fn end_again(line: &mut Line, cause: EndCause) {
    let mut bytes = Frame::json(KIND_END, &End { cause }).to_bytes().unwrap();
    encode(KIND_AGAIN, b"", &mut bytes).unwrap();
    line.stream.write_all(&bytes).unwrap();
}

/// The program of the next session on this connection.
fn next_argv(line: &mut Line) -> Vec<String> {
    loop {
        let frame = line.next().expect("the connection is kept");
        if frame.kind == KIND_OPEN {
            let Task::Exec(exec) = frame.parse::<Open>().unwrap().task else { panic!("{frame:?}") };
            return exec.argv;
        }
    }
}

fn open() -> Vec<u8> {
    let task = Task::Exec(iii_protocol::session::Exec::new(["raw"]));
    Frame::json(KIND_OPEN, &Open { version: VERSION, task }).to_bytes().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_command_after_the_other_goes_over_one_connection_until_the_machine_ends() {
    let bench = Bench::new().await;
    let exec = bench.exec(&["web", "zero"]);
    let (mut line, _) = bench.agent.run();
    line.send(KIND_STDOUT, b"0");
    end_again(&mut line, OK);
    exec.left().is(0, "0", "");
    for (name, code) in [("one", 1), ("two", 2), ("three", 3)] {
        let exec = bench.exec(&["web", name]);
        assert_eq!(next_argv(&mut line), [name]);
        line.tell(KIND_STARTED, &Started { session: 4, pid: 78 });
        line.send(KIND_STDERR, name.as_bytes());
        end_again(&mut line, EndCause::Exit { code });
        exec.left().is(code, "", name);
    }
    // The machine ends, and another one begins behind the same socket.
    drop(line);
    let exec = bench.exec(&["web", "four"]);
    let (mut line, asked) = bench.agent.run();
    assert_eq!(asked.argv, ["four"]);
    // One that says nothing of another session closes, or waits to be closed.
    line.exit(0);
    exec.left().is(0, "", "");
    assert_eq!(line.next(), None);
    bench.daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_commands_at_a_time_never_share_one() {
    let bench = Bench::new().await;
    let first = bench.exec(&["web", "first"]);
    let (mut line, _) = bench.agent.run();
    let second = bench.exec(&["web", "second"]);
    let (mut other, asked) = bench.agent.run();
    assert_eq!(asked.argv, ["second"]);
    end_again(&mut line, EndCause::Exit { code: 1 });
    end_again(&mut other, EndCause::Exit { code: 2 });
    first.left().is(1, "", "");
    second.left().is(2, "", "");
    bench.daemon.end().await;
    // Both end with the daemon, behind what the clients said last.
    for mut line in [line, other] {
        while line.next().is_some() {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_in_the_middle_of_anything_takes_its_connection_along() {
    let bench = Bench::new().await;
    let half = encode_half();
    let twice = [open(), open()].concat();
    for (what, words, ends) in [
        ("half a frame", [open(), half].concat(), true),
        ("a second OPEN of its own", twice, true),
        ("before the end", open(), false),
        ("nothing at all", Vec::new(), true),
    ] {
        let mut client = upgrading(&bench.project, "web");
        let mut line = bench.agent.accept();
        switched(&mut client);
        client.write_all(&words).unwrap();
        let mut heard = vec![0; words.len()];
        line.stream.read_exact(&mut heard).unwrap();
        if ends {
            end_again(&mut line, OK);
            let mut end = vec![0; Frame::json(KIND_END, &End { cause: OK }).payload.len() + HEADER_BYTES];
            client.read_exact(&mut end).unwrap();
        }
        drop(client);
        assert_eq!(line.stream.read(&mut [0]).unwrap(), 0, "{what}");
    }
    bench.daemon.end().await;
}

fn encode_half() -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(KIND_CREDIT, &credit_payload(1), &mut bytes).unwrap();
    bytes.truncate(6);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_sees_nothing_behind_the_end_and_is_left_when_it_stays() {
    let bench = Bench::new().await;
    let mut client = upgrading(&bench.project, "web");
    let mut line = bench.agent.accept();
    switched(&mut client);
    client.write_all(&open()).unwrap();
    line.expect(KIND_OPEN);
    // More than the socket holds: the time to leave begins when all is told.
    let much = vec![7; MAX_DATA_BYTES];
    for _ in 0..3 {
        line.send(KIND_STDOUT, &much);
    }
    let ended = Instant::now();
    end_again(&mut line, OK);
    std::thread::sleep(Duration::from_millis(END_LINGER_MS + 500));
    let mut all = Vec::new();
    client.read_to_end(&mut all).unwrap();
    assert!(ended.elapsed() >= Duration::from_millis(2 * END_LINGER_MS), "it reads late, and has its time");
    let end = Frame::json(KIND_END, &End { cause: OK }).to_bytes().unwrap();
    assert_eq!(all.len(), 3 * (HEADER_BYTES + MAX_DATA_BYTES) + end.len());
    assert!(all.ends_with(&end), "and no AGAIN");
    // It had said nothing but OPEN, so the next one is served where it was.
    let exec = bench.exec(&["web", "next"]);
    assert_eq!(next_argv(&mut line), ["next"]);
    line.exit(0);
    exec.left().is(0, "", "");
    bench.daemon.end().await;
}
