//! How a copy ends when one of its sides does not.

use std::fs;
use std::io::Write as _;

use iii_protocol::session::*;
use nix::sys::signal::Signal as Name;

use super::{Bench, Exec};

fn refused() -> EndCause {
    EndCause::CopyFailed {
        message: "/srv: the archive is damaged".into(),
        hint: Some("pack it again".into()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guests_answer_ends_a_copy_whose_input_stays_open() {
    let bench = Bench::new().await;
    let refusal = "error: in `web`: /srv: the archive is damaged\n\nhint: pack it again\n";
    for (cause, code, told) in [(refused(), 1, refusal), (EndCause::Exit { code: 0 }, 0, "")] {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut command = bench.copy("-", "web:/srv");
        command.stdin(reader);
        let copy = Exec::spawn(command);
        let (mut line, task) = bench.agent.open();
        let inside = Task::Unpack { path: "/srv".to_owned(), layout: Layout::Inside, owners: false };
        assert_eq!(task, inside);
        line.tell(KIND_STARTED, &Started { session: 1, pid: 0 });
        writer.write_all(b"the first bytes").unwrap();
        let first = [line.next().unwrap(), line.next().unwrap()];
        let bytes = first.iter().find(|frame| frame.kind == KIND_STDIN).unwrap();
        assert_eq!(bytes.payload, b"the first bytes");
        line.send(KIND_STDERR, b"a warning\n");
        line.end(cause);
        copy.left().is(code, "", &format!("warning: in `web`: a warning\n{told}"));
        drop(writer);
    }
    bench.daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_from_an_open_input_ends_with_a_signal() {
    let bench = Bench::new().await;
    for (signal, code) in [(Name::SIGINT, 130), (Name::SIGTERM, 143), (Name::SIGHUP, 129)] {
        let (reader, _writer) = std::io::pipe().unwrap();
        let mut command = bench.copy("-", "web:/srv");
        command.stdin(reader);
        let copy = Exec::spawn(command);
        let (mut line, _) = bench.agent.open();
        line.expect(KIND_CLOSE_STDOUT);
        copy.signal(signal);
        copy.left().is(code, "", "error: interrupted\n");
        assert_eq!(line.next(), None, "the guest's side is over too");
    }
    bench.daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_the_guest_does_not_answer_ends_with_a_signal() {
    let bench = Bench::new().await;
    let from = bench.project.ctx.home.root().join("file");
    fs::write(&from, "bytes").unwrap();
    let copy = Exec::spawn(bench.copy(from.to_str().unwrap(), "web:/srv"));
    let (mut line, _) = bench.agent.open();
    // All was sent, and only the guest's last word is missing.
    while line.next().unwrap().kind != KIND_STDIN_END {}
    copy.signal(Name::SIGINT);
    copy.left().is(130, "", "error: interrupted\n");
    assert_eq!(line.next(), None);
    bench.daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_to_a_reader_that_does_not_read_ends_with_a_signal() {
    let bench = Bench::new().await;
    let (_reader, writer) = std::io::pipe().unwrap();
    let mut command = bench.copy("web:/srv", "-");
    command.stdout(writer);
    let mut copy = Exec::spawn(command);
    let (mut line, _) = bench.agent.open();
    line.tell(KIND_STARTED, &Started { session: 1, pid: 0 });
    // More than a pipe holds: its writer waits.
    for _ in 0..WINDOW_BYTES / MAX_DATA_BYTES {
        line.send(KIND_STDOUT, &[b'x'; MAX_DATA_BYTES]);
    }
    line.exit(0);
    copy.signal(Name::SIGINT);
    assert_eq!(copy.status().code(), Some(130));
    bench.daemon.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_takes_away_what_is_not_whole() {
    let bench = Bench::new().await;
    let folder = bench.project.ctx.home.root().join("here");
    fs::create_dir(&folder).unwrap();
    let copy = Exec::spawn(bench.copy("web:/big", folder.to_str().unwrap()));
    let (mut line, _) = bench.agent.open();
    line.tell(KIND_STARTED, &Started { session: 1, pid: 0 });
    line.send(KIND_STDOUT, &half_an_archive());
    while fs::read_dir(&folder).unwrap().next().is_none() {
        tokio::task::yield_now().await;
    }
    copy.signal(Name::SIGINT);
    copy.left().is(130, "", "error: interrupted\n");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    bench.daemon.end().await;
}

/// The head of a file and some of its bytes.
fn half_an_archive() -> Vec<u8> {
    let mut whole = Vec::new();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("big"), vec![b'x'; 100_000]).unwrap();
    let source = iii_archive::PackSource { path: &dir.path().join("big"), follow: false };
    iii_archive::pack(source, &mut whole, &mut |warning| panic!("{warning}")).unwrap();
    whole.truncate(50_000);
    whole
}
