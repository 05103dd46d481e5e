//! Pipe mode: bytes in, bytes out, and who waits for whom.

use std::fs::File;
use std::io::Write as _;
use std::process::Stdio;

use iii_protocol::session::*;

use super::{Bench, Exec};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_arrives_and_streams_stay_apart_byte_for_byte() {
    let bench = Bench::new().await;
    let mut command = bench.command(&[
        "-e",
        "A=1",
        "web",
        "-e",
        "HERE",
        "-w",
        "/tmp",
        "-u",
        "app:users",
        "--timeout",
        "90s",
        "--",
        "probe",
        "-x",
    ]);
    command.env("HERE", "yes");
    let exec = Exec::spawn(command);
    let (mut line, asked) = bench.agent.run();
    let text = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert_eq!(
        asked,
        iii_protocol::session::Exec {
            argv: text(&["probe", "-x"]),
            env: vec![pair("A", "1"), pair("HERE", "yes")],
            cwd: Some("/tmp".to_owned()),
            user: Some("app:users".to_owned()),
            terminal: None,
            stdin: true,
            timeout_ms: Some(90_000),
            detach: false,
        }
    );
    line.expect(KIND_STDIN_END);
    line.send(KIND_STDOUT, b"\0\xff\r\nout");
    line.send(KIND_STDERR, b"oops");
    line.send(KIND_STDOUT, b" without end");
    line.exit(7);
    let left = exec.left();
    assert_eq!((left.code, left.stdout.as_slice()), (Some(7), &b"\0\xff\r\nout without end"[..]));
    assert_eq!(left.stderr, "oops");
    bench.daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn input_streams_within_the_window_and_ends_where_it_ends() {
    let bench = Bench::new().await;
    let sent: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let mut command = bench.command(&["web", "cat"]);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&sent).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    command.stdin(file);
    let exec = Exec::spawn(command);
    let (mut line, _) = bench.agent.run();
    let mut received = Vec::new();
    let mut window = ReceiveWindow::default();
    let mut held = 0;
    loop {
        let frame = line.next().unwrap();
        match frame.kind {
            KIND_STDIN => {
                assert!(!frame.payload.is_empty() && frame.payload.len() <= MAX_DATA_BYTES);
                window.received(frame.payload.len()).expect("within the window");
                received.extend_from_slice(&frame.payload);
                held += frame.payload.len();
                // Nothing is credited until the window is closed: then the client has to wait.
                if held == WINDOW_BYTES || received.len() == sent.len() {
                    let credit = window.taken(std::mem::take(&mut held));
                    line.send(KIND_CREDIT, &credit_payload(credit.unwrap_or_default()));
                }
            }
            KIND_STDIN_END => break,
            kind => panic!("{kind}"),
        }
    }
    assert!(received == sent);
    line.exit(0);
    exec.left().is(0, "", "");
    bench.daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_input_that_stays_open_holds_up_nothing() {
    let bench = Bench::new().await;
    let (reader, _writer) = std::io::pipe().unwrap();
    let mut command = bench.command(&["web", "true"]);
    command.stdin(reader);
    let exec = Exec::spawn(command);
    let (mut line, _) = bench.agent.run();
    line.exit(3);
    exec.left().is(3, "", "");
    bench.daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn input_is_not_read_for_a_command_that_does_not_start_nor_further_once_nobody_reads_it() {
    let bench = Bench::new().await;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![b'x'; 64 << 20]).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    let mut command = bench.command(&["web", "nope"]);
    command.stdin(file.try_clone().unwrap());
    let exec = Exec::spawn(command);
    let (mut line, _) = bench.agent.begin();
    line.end(EndCause::NotFound { message: "no such program: nope".to_owned(), hint: None });
    exec.left().is(127, "", "error: no such program: nope\n");
    assert_eq!(std::io::Seek::stream_position(&mut file).unwrap(), 0);

    let mut command = bench.command(&["web", "head"]);
    command.stdin(file.try_clone().unwrap());
    let exec = Exec::spawn(command);
    let (mut line, _) = bench.agent.run();
    line.expect(KIND_STDIN);
    line.send(KIND_STDIN_CLOSED, &[]);
    line.exit(0);
    exec.left().is(0, "", "");
    let read = std::io::Seek::stream_position(&mut file).unwrap();
    // What may be on the way, and a few pieces behind it.
    assert!(read <= (WINDOW_BYTES + 4 * MAX_DATA_BYTES) as u64, "{read} bytes were read for nobody");
    bench.daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_leaves_is_told_to_the_guest_and_the_codes_stay_the_commands() {
    let bench = Bench::new().await;
    for (close, data) in [(KIND_CLOSE_STDOUT, KIND_STDOUT), (KIND_CLOSE_STDERR, KIND_STDERR)] {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut command = bench.command(&["web", "yes"]);
        match data {
            KIND_STDOUT => command.stdout(writer),
            _ => command.stderr(writer),
        };
        let mut exec = Exec::spawn(command);
        let (mut line, _) = bench.agent.run();
        line.expect(KIND_STDIN_END);
        drop(reader);
        line.send(data, b"y\n");
        line.expect(close);
        // What was on the way meanwhile is thrown away.
        line.send(data, b"y\n");
        line.end(EndCause::Signal { signal: 13 });
        assert_eq!(exec.status().code(), Some(141));
    }
    bench.daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_closes_the_window_and_gets_every_byte() {
    let bench = Bench::new().await;
    let mut exec = bench.exec(&["web", "seq"]);
    let (mut line, _) = bench.agent.run();
    line.expect(KIND_STDIN_END);
    let mut window = SendWindow::default();
    let mut sent = 0;
    while window.room() > 0 {
        line.send(KIND_STDOUT, &vec![b'x'; 50_000.min(window.room())]);
        sent += 50_000.min(window.room());
        window.sent(50_000.min(window.room()));
    }
    assert_eq!(sent, WINDOW_BYTES);
    // The pipe is made to hold a large frame, and one piece may be on its way: no more than that can be credited.
    let mut read = 0;
    let mut credited = 0;
    while credited < WINDOW_BYTES / 2 {
        read += exec.read_stdout(10_000).len();
        // Only asks when there must be some.
        while read >= credited + WINDOW_BYTES / 8 * 3 + 50_000 {
            let bytes = parse_credit(&line.expect(KIND_CREDIT).payload).unwrap();
            window.credited(bytes).unwrap();
            credited += bytes as usize;
            assert!(credited <= read + MAX_DATA_BYTES + 50_000, "{credited} credited, {read} read");
        }
    }
    line.exit(0);
    let left = exec.left();
    assert_eq!((left.code, left.stdout.len() + read), (Some(0), sent));
    bench.daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn output_that_cannot_be_written_is_an_error() {
    let bench = Bench::new().await;
    let mut command = bench.command(&["web", "seq"]);
    command.stdout(File::options().write(true).open("/dev/full").unwrap());
    let exec = Exec::spawn(command);
    let (mut line, _) = bench.agent.run();
    line.expect(KIND_STDIN_END);
    line.send(KIND_STDOUT, b"1\n");
    line.expect(KIND_CLOSE_STDOUT);
    line.end(EndCause::Signal { signal: 13 });
    exec.left().says(125, &["cannot write the output", "No space left"]);
    let mut command = bench.command(&["web", "cat"]);
    command.stdin(File::open("/").unwrap()).stdout(Stdio::piped());
    let exec = Exec::spawn(command);
    let (mut line, _) = bench.agent.run();
    exec.left().says(125, &["cannot read the input", "directory"]);
    assert_eq!(line.next(), None, "half an input is not taken for all of it");
    bench.daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn from_dev_null_no_input_is_sent() {
    let bench = Bench::new().await;
    let mut command = bench.command(&["web", "cat"]);
    command.stdin(Stdio::null());
    let exec = Exec::spawn(command);
    let (mut line, asked) = bench.agent.run();
    assert!(!asked.stdin);
    line.exit(0);
    assert_eq!(line.next(), None);
    exec.left().is(0, "", "");
    bench.daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detached_command_prints_its_sessions_number() {
    let bench = Bench::new().await;
    let exec = bench.exec(&["-d", "web", "sleep", "1000"]);
    let (mut line, asked) = bench.agent.run();
    assert!(asked.detach && !asked.stdin);
    line.end(EndCause::Detached);
    exec.left().is(0, "3\n", "");
    bench.daemon.end().await;
}
