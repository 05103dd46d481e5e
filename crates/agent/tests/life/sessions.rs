//! Commands beside the workload: streams, environment and ends.

use std::path::Path;
use std::time::{Duration, Instant};

use iii_protocol::session::{
    EndCause, Exec, KIND_CLOSE_STDOUT, KIND_KILL, KIND_SIGNAL, KIND_STDIN, MAX_DATA_BYTES, Signal,
    WINDOW_BYTES,
};

use crate::client::{Client, exec, outcome, script, script_with_input, worker, worker_of};
use crate::shim::{is_alive, sh, until};

const OK: EndCause = EndCause::Exit { code: 0 };

#[test]
fn both_streams_and_the_exit_code_are_the_commands() {
    let worker = worker();
    let (cause, stdout, stderr) = outcome(&worker, script("printf out; printf err >&2; exit 7"));
    assert_eq!((cause, stdout.as_str(), stderr.as_str()), (EndCause::Exit { code: 7 }, "out", "err"));
    let (cause, ..) = outcome(&worker, script("kill -37 $$"));
    assert_eq!(cause, EndCause::Signal { signal: 37 });
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
