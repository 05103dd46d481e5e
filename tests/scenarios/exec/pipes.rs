//! Bytes, exit codes, surroundings.

use std::fs::File;
use std::io::Write as _;
use std::process::Stdio;

use sha2::{Digest as _, Sha256};

use super::web;

#[test]
fn exit_codes_are_those_of_the_table() {
    let (bed, _daemon) = web();
    for (args, code) in [
        (&["web", "/bin/sh", "-c", "exit 0"][..], 0),
        (&["web", "/bin/sh", "-c", "exit 7"], 7),
        (&["web", "/bin/sh", "-c", "kill -9 $$"], 137),
        (&["--timeout", "300ms", "web", "sleep", "1000"], 124),
        (&["-w", "/no/such/folder", "web", "true"], 126),
        (&["-u", "nosuchuser", "web", "true"], 125),
        (&["wbe", "true"], 125),
        (&["web", "/etc/passwd"], 126),
        (&["web", "/no/such/program"], 127),
        (&["web", "no-such-program"], 127),
        (&["web"], 2),
    ] {
        let run = bed.iii(&[&["worker", "exec"], args].concat());
        assert_eq!(run.code, Some(code), "{args:?}: {run:?}");
        assert!(run.stdout.is_empty(), "{run:?}");
    }
    bed.ok(&["worker", "stop", "web"]);
    let run = bed.iii(&["worker", "exec", "web", "true"]);
    assert_eq!(run.code, Some(125));
    assert!(
        run.stderr.contains("`web` is stopped") && run.stderr.contains("iii worker start web"),
        "{run:?}"
    );
}

#[test]
fn streams_are_apart_and_byte_exact_and_the_surroundings_as_asked() {
    let (bed, _daemon) = web();
    let script = "printf 'a\\000\\377\\r\\n'; printf 'b' >&2; printf \"$A $PWD\"";
    let run = bed.iii(&["worker", "exec", "web", "-e", "A=1 2", "-w", "/tmp", "--", "/bin/sh", "-c", script]);
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), "b"));
    assert_eq!(run.stdout, b"a\0\xff\r\n1 2 /tmp");
}

#[test]
fn variables_are_given_and_taken_from_the_caller() {
    let (bed, _daemon) = web();
    let args =
        ["worker", "exec", "-e", "TAKEN", "-e", "NOT_SET", "-e", "GIVEN=1", "web", "--", "/bin/sh", "-c"];
    let mut command = bed.command(&args);
    command.arg("echo \"$TAKEN, ${NOT_SET-not set}, $GIVEN, ${OTHER-not taken}\"");
    command.env("TAKEN", "from \u{e9} here").env("OTHER", "x").env_remove("NOT_SET");
    let output = command.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "from \u{e9} here, not set, 1, not taken\n");
}

#[test]
fn docker_habits_are_taken() {
    let (bed, _daemon) = web();
    let printed = bed.ok(&["worker", "exec", "-itd", "web", "/bin/sh", "-c", "exec sleep 1000"]);
    assert!(printed.trim().parse::<u64>().is_ok_and(|number| number > 0), "{printed:?}");
    assert_eq!(bed.ok(&["worker", "exec", "-i", "web", "echo", "-it"]), "-it\n");
}

#[test]
fn sixty_four_mebibytes_of_input_arrive() {
    let (bed, _daemon) = web();
    let mut file = tempfile::tempfile().unwrap();
    let mut hash = Sha256::new();
    for round in 0..64_u32 {
        let piece: Vec<u8> = (0..1 << 20).map(|i: u32| (i.wrapping_mul(31) ^ round) as u8).collect();
        hash.update(&piece);
        file.write_all(&piece).unwrap();
    }
    std::io::Seek::rewind(&mut file).unwrap();
    let expected: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let output = bed.command(&["worker", "exec", "web", "sha256sum"]).stdin(file).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.starts_with(&expected), "{told} {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_reader_that_leaves_ends_an_endless_command() {
    let (bed, _daemon) = web();
    let mut child = bed.command(&["worker", "exec", "web", "yes"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 2];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(141));
    assert_eq!(&first, b"y\n");
}

#[test]
fn sixty_four_at_once_wait_for_nobody() {
    let (bed, _daemon) = web();
    // None ends before all have begun: each holds its input open until then.
    let mut running = Vec::new();
    for number in 0..64 {
        let script = format!("echo {number}; cat >/dev/null; exit {number}");
        let mut child = bed
            .command(&["worker", "exec", "web", "/bin/sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        running.push((number, child.stdin.take(), child));
    }
    for (number, _, child) in &mut running {
        let mut line = vec![0; number.to_string().len() + 1];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        assert_eq!(line, format!("{number}\n").into_bytes());
    }
    for (number, stdin, mut child) in running {
        drop(stdin);
        assert_eq!(child.wait().unwrap().code(), Some(number));
    }
}

#[test]
fn a_time_limit_fires_while_the_input_is_open() {
    let (bed, _daemon) = web();
    let (reader, _writer) = std::io::pipe().unwrap();
    let mut command = bed.command(&["worker", "exec", "web", "--timeout", "300ms", "cat"]);
    let status = command.stdin(reader).stderr(File::create("/dev/null").unwrap()).status().unwrap();
    assert_eq!(status.code(), Some(124));
}
