//! Every frame of a session as its bytes on the wire, one file each in `golden/session`, for clients in any language:
//! a change of the wire format is always a decision.
//!
//! One that is meant is written anew with `III_WRITE_GOLDEN=1 cargo nextest run -p iii-protocol --test session_frames`.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

use iii_protocol::frame::{Frame, FrameDecoder, MAX_FRAME_BYTES};
use iii_protocol::session::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// When set, the files are written instead of read.
const WRITE: &str = "III_WRITE_GOLDEN";

/// A frame, and the name of its file: that of its kind in docs/protocol.md, and then which of them.
struct Golden {
    name: &'static str,
    frame: Frame,
    /// Whether the value read from such a payload is the one that was written.
    reads_back: fn(&[u8]) -> bool,
}

fn raw(name: &'static str, kind: u8, payload: &[u8]) -> Golden {
    Golden { name, frame: Frame { kind, payload: payload.to_vec() }, reads_back: |_| true }
}

fn json<T: Serialize + DeserializeOwned>(name: &'static str, kind: u8, value: &T) -> Golden {
    // What is read says all that the payload did, or writing it again would give other bytes.
    let reads_back = |payload: &[u8]| {
        serde_json::from_slice::<T>(payload)
            .is_ok_and(|read| serde_json::to_vec(&read).is_ok_and(|again| again == payload))
    };
    Golden { name, frame: Frame::json(kind, value), reads_back }
}

fn open(name: &'static str, task: Task) -> Golden {
    json(name, KIND_OPEN, &Open { version: VERSION, task })
}

fn end(name: &'static str, cause: EndCause) -> Golden {
    json(name, KIND_END, &End { cause })
}

fn all() -> Vec<Golden> {
    let text = |text: &str| text.to_owned();
    let size = TerminalSize { rows: 24, columns: 80 };
    let whole = Exec {
        argv: vec![text("sh"), text("-c"), text("echo \"é\" '\n'"), text("")],
        env: vec![(text("KEY"), text("VALUE")), (text("EMPTY"), text(""))],
        cwd: Some(text("/tmp")),
        user: Some(text("app:app")),
        terminal: Some(Terminal { size, term: Some(text("xterm")) }),
        stdin: true,
        timeout_ms: Some(30_000),
        detach: false,
    };
    let unnamed = Some(Terminal { size: TerminalSize { rows: 0, columns: u16::MAX }, term: None });
    let unpack = |layout, owners| Task::Unpack { path: text("/srv"), layout, owners };
    let why = || (text("no such program: \u{7}"), Some(text("install it")));
    vec![
        open("open-exec", Task::Exec(whole)),
        open("open-exec-least", Task::Exec(Exec::new(["true"]))),
        open("open-exec-detach", Task::Exec(Exec { terminal: unnamed, detach: true, ..Exec::new(["true"]) })),
        open("open-pack", Task::Pack { path: text("/etc/."), follow: true }),
        open("open-unpack-inside", unpack(Layout::Inside, false)),
        open("open-unpack-as", unpack(Layout::As { contents: true }, true)),
        open("open-update", Task::Update { path: text("/workspace"), changes: 27 }),
        raw("stdin", KIND_STDIN, b"in\0\xff\r\n"),
        raw("stdin-end", KIND_STDIN_END, b""),
        json("signal", KIND_SIGNAL, &Signal { signal: 2 }),
        json("resize", KIND_RESIZE, &size),
        raw("kill", KIND_KILL, b""),
        raw("credit", KIND_CREDIT, &credit_payload(0x0102_0304)),
        raw("close-stdout", KIND_CLOSE_STDOUT, b""),
        raw("close-stderr", KIND_CLOSE_STDERR, b""),
        json("started", KIND_STARTED, &Started { session: 1, pid: 42 }),
        raw("stdout", KIND_STDOUT, b"out\0\xff\r\n"),
        raw("stderr", KIND_STDERR, b"err"),
        raw("stdin-closed", KIND_STDIN_CLOSED, b""),
        raw("again", KIND_AGAIN, b""),
        end("end-exit", EndCause::Exit { code: 7 }),
        end("end-signal", EndCause::Signal { signal: 9 }),
        end("end-timed-out", EndCause::TimedOut),
        end("end-detached", EndCause::Detached),
        end("end-not-found", EndCause::NotFound { message: why().0, hint: why().1 }),
        end("end-cannot-execute", EndCause::CannotExecute { message: why().0, hint: None }),
        end("end-could-not-start", EndCause::CouldNotStart { message: why().0, hint: why().1 }),
        end("end-copy-failed", EndCause::CopyFailed { message: why().0, hint: why().1 }),
    ]
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/session")
}

fn file(name: &str) -> PathBuf {
    folder().join(format!("{name}.frame"))
}

#[test]
fn each_frame_is_the_bytes_of_its_file_and_each_file_is_a_frame() {
    let write = std::env::var_os(WRITE).is_some();
    let mut names = BTreeSet::new();
    for Golden { name, frame, reads_back } in all() {
        assert!(names.insert(format!("{name}.frame")), "{name} twice");
        let bytes = frame.to_bytes().expect("fits into a frame");
        if write {
            fs::write(file(name), &bytes).expect("written");
        }
        let golden = fs::read(file(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let shown = |bytes: &[u8]| bytes.escape_ascii().to_string();
        assert_eq!(shown(&bytes), shown(&golden), "{name}: if this is meant, set {WRITE}");
        let mut decoder = FrameDecoder::with_limit(MAX_FRAME_BYTES);
        decoder.feed(&golden);
        let read = decoder.next_frame().expect("a frame").expect("a whole one");
        assert_eq!(read, frame, "{name}");
        decoder.finish().expect("nothing behind it");
        assert!(reads_back(&read.payload), "{name} is read as something else than was written");
    }
    let files = fs::read_dir(folder()).expect("the folder");
    let files = files.map(|it| it.expect("an entry").file_name().into_string().expect("a name")).collect();
    assert_eq!(names, files);
}

/// Numbers and names of the kinds, `STDIN_END` as `stdin-end`.
type Kinds = BTreeSet<(u8, String)>;

fn kinds_of(text: &str, take: impl Fn(&str) -> Option<(&str, &str)>) -> Kinds {
    let kind = |(name, number): (&str, &str)| {
        Some((number.trim().parse().ok()?, name.trim().to_lowercase().replace('_', "-")))
    };
    text.lines().filter_map(|line| take(line).and_then(kind)).collect()
}

#[test]
fn each_kind_has_a_file_and_a_row_in_the_docs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| fs::read_to_string(root.join(path)).expect("it is there");
    let declared = kinds_of(&read("src/session.rs"), |line| {
        line.strip_prefix("pub const KIND_")?.strip_suffix(';')?.split_once(": u8 = ")
    });
    assert!(declared.len() >= 14, "{declared:?}");
    let documented = kinds_of(&read("../../docs/protocol.md"), |line| {
        let mut cells = line.strip_prefix("| ")?.split(" | ");
        let (number, _from, name) = (cells.next()?, cells.next()?, cells.next()?);
        Some((name, number))
    });
    assert_eq!(documented, declared);
    for (kind, name) in declared {
        let its = |golden: &Golden| {
            golden.frame.kind == kind
                && golden.name.strip_prefix(name.as_str()).is_some_and(|rest| {
                    rest.is_empty() || matches!(kind, KIND_OPEN | KIND_END) && rest.starts_with('-')
                })
        };
        assert!(all().iter().any(its), "no golden file is of kind {kind}, {name}");
        let wrong = |golden: &Golden| golden.frame.kind == kind && !its(golden);
        assert!(!all().iter().any(wrong), "a golden file of kind {kind} is not named {name}");
    }
}

/// A client may leave out what has a default, as docs/protocol.md says.
#[test]
fn what_may_be_left_out_has_its_default() {
    fn is<T: DeserializeOwned + PartialEq + Debug>(json: &str, value: &T) {
        assert_eq!(&serde_json::from_str::<T>(json).expect(json), value);
    }
    is(r#"{"kind":"exec","argv":["true"]}"#, &Task::Exec(Exec::new(["true"])));
    is(r#"{"kind":"pack","path":"/a"}"#, &Task::Pack { path: "/a".into(), follow: false });
    let unpack = Task::Unpack { path: "/a".into(), layout: Layout::Inside, owners: false };
    is(r#"{"kind":"unpack","path":"/a","layout":{"layout":"inside"}}"#, &unpack);
    is(
        r#"{"size":{"rows":1,"columns":2}}"#,
        &Terminal { size: TerminalSize { rows: 1, columns: 2 }, term: None },
    );
    for unknown in [
        r#"{"version":1,"task":{"kind":"exec","argv":["true"]},"more":1}"#,
        r#"{"version":1,"task":{"kind":"exec","argv":["true"],"more":1}}"#,
        r#"{"version":1,"task":{"kind":"fly"}}"#,
    ] {
        assert!(serde_json::from_str::<Open>(unknown).is_err(), "{unknown}");
    }
}
