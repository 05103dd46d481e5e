//! Output: every byte, in order, before the last word.

use std::fs;

use iii_protocol::exit::ExitCause;
use iii_protocol::guest::{KIND_STDERR, KIND_STDOUT};

use crate::shim::{Shim, live, sh};

/// Bytes with no pattern that a lost or doubled piece would hide in.
fn noise(length: usize, mut state: u64) -> Vec<u8> {
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

#[test]
fn large_binary_output_of_both_streams_arrives_byte_for_byte() {
    let mut shim = Shim::new();
    let (out, err) = (noise(5_000_003, 1), noise(3_000_001, 2));
    fs::write(shim.path("out"), &out).expect("write");
    fs::write(shim.path("err"), &err).expect("write");
    let script = format!("cat {} & cat {} >&2; wait; exit 5", shim.path("out"), shim.path("err"));
    shim.plan(sh(&script));
    let life = shim.hear_all();
    assert!(life.stdout == out, "stdout differs");
    assert!(life.stderr == err, "stderr differs");
    assert_eq!(life.exit.cause, ExitCause::Exit { code: 5 });
}

#[test]
fn what_was_written_right_before_the_end_is_not_lost() {
    for _ in 0..20 {
        let life = live(sh("printf last; printf words >&2; kill -9 $$"));
        assert_eq!((life.stdout.as_slice(), life.stderr.as_slice()), (&b"last"[..], &b"words"[..]));
    }
}

#[test]
fn both_streams_keep_the_order_in_which_they_were_written() {
    let mut script = String::new();
    for line in 0..10 {
        script.push_str(&format!("echo o{line}; sleep 0.03; echo e{line} >&2; sleep 0.03; "));
    }
    let life = live(sh(&script));
    let said: String =
        life.frames.iter().map(|(_, _, bytes)| String::from_utf8_lossy(bytes).replace('\n', " ")).collect();
    let expected: String = (0..10).map(|line| format!("o{line} e{line} ")).collect();
    assert_eq!(said, expected);
    assert!(life.frames.iter().all(|(kind, _, _)| [KIND_STDOUT, KIND_STDERR].contains(kind)));
}

#[test]
fn times_are_of_the_wall_clock_and_never_go_back() {
    let life = live(sh("for i in 1 2 3 4; do echo $i; sleep 0.02; done"));
    let times: Vec<u64> = life.frames.iter().map(|(_, at, _)| *at).collect();
    assert!(times.is_sorted(), "{times:?}");
    let now = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_nanos();
    let minute = 60_000_000_000;
    assert!(times.iter().all(|&at| now.abs_diff(u128::from(at)) < minute), "{times:?}");
}

#[test]
fn closing_its_output_does_not_end_a_workload() {
    let life = live(sh("echo before; exec >&- 2>&-; sleep 0.1; exit 6"));
    assert_eq!(life.text(), "before\n");
    assert_eq!(life.exit.cause, ExitCause::Exit { code: 6 });
}

#[test]
fn a_slow_reader_slows_the_workload_and_loses_nothing() {
    let mut shim = Shim::new();
    // Far more than all pipes and sockets on the way hold.
    let written = shim.path("written");
    shim.plan(sh(&format!("head -c 8000000 /dev/zero; echo $? > {written}")));
    shim.hear_started();
    // That something does not happen can only be seen by giving it time.
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(!std::path::Path::new(&written).exists(), "nobody has read it and yet it is written");
    let life = shim.hear_all();
    assert_eq!(life.stdout.len(), 8_000_000);
    assert!(life.stdout.iter().all(|&byte| byte == 0));
}
