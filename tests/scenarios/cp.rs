//! `iii worker cp`: bytes, modes and links both ways, and nothing outside of the destination.

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::Stdio;

use iii_protocol::api::Phase;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::bed::{Bed, Daemon};
use super::lifecycle::SERVE;
use super::person::Person;

/// A worker with an empty folder in it.
struct There {
    bed: Bed,
    folder: String,
    _daemon: Daemon,
}

impl There {
    fn new() -> There {
        let bed = Bed::new();
        let reference = bed.script_image("web", SERVE);
        bed.configure(&[bed.entry("web", &reference, &[])]);
        let daemon = bed.daemon();
        bed.wait_phase("web", Phase::Running);
        // Of its own even where the worker is a process of this host.
        let name = bed.home().parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
        let there = There { folder: format!("/tmp/there-{name}"), bed, _daemon: daemon };
        there.sh("mkdir -p $0");
        there
    }

    /// Output of a script in the worker; `$0` is the folder.
    fn sh(&self, script: &str) -> String {
        self.bed.ok(&["worker", "exec", "web", "--", "/bin/sh", "-c", script, &self.folder])
    }

    fn path(&self, rest: &str) -> String {
        format!("web:{}{rest}", self.folder)
    }

    fn cp(&self, from: &str, to: &str) {
        self.bed.ok(&["worker", "cp", from, to]);
    }

    fn local(&self, name: &str) -> std::path::PathBuf {
        self.bed.project().join(name)
    }
}

impl Drop for There {
    fn drop(&mut self) {
        let _ = self.bed.iii(&["worker", "exec", "web", "--", "rm", "-rf", &self.folder]);
    }
}

#[test]
fn folders_go_in_and_come_out_as_they_were() {
    let there = There::new();
    let tree = there.local("tree");
    fs::create_dir_all(tree.join("sub/empty")).unwrap();
    fs::write(tree.join("plain file"), b"bytes\0\xff").unwrap();
    fs::write(tree.join("sub/run.sh"), b"#!/bin/sh\n").unwrap();
    fs::set_permissions(tree.join("sub/run.sh"), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(tree.join("plain file"), Permissions::from_mode(0o640)).unwrap();
    symlink("plain file", tree.join("link")).unwrap();
    fs::hard_link(tree.join("sub/run.sh"), tree.join("sub/same.sh")).unwrap();

    there.cp("./tree", &there.path("/"));
    let seen = there.sh(
        "cd $0/tree && stat -c '%a %h %s' 'plain file' sub/run.sh && readlink link && ls -d sub/empty && \
         cat sub/same.sh",
    );
    assert_eq!(seen, "640 1 7\n755 2 10\nplain file\nsub/empty\n#!/bin/sh\n");

    there.cp(&there.path("/tree"), "./back");
    let back = there.local("back");
    assert_eq!(fs::read(back.join("plain file")).unwrap(), b"bytes\0\xff");
    assert_eq!(fs::read_link(back.join("link")).unwrap().to_str(), Some("plain file"));
    let mode = |name: &str| fs::metadata(back.join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("plain file"), mode("sub/run.sh")), (0o640, 0o755));
    assert!(back.join("sub/empty").is_dir());

    // Into an existing folder under its own name, and only its content.
    there.cp(&there.path("/tree"), "./back");
    assert!(back.join("tree/sub/run.sh").is_file());
    there.cp(&there.path("/tree/sub/."), "./back");
    assert!(back.join("run.sh").is_file());
}

#[test]
fn large_files_arrive_whole_both_ways() {
    let there = There::new();
    let bytes: Vec<u8> = (0..16 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(there.local("big"), &bytes).unwrap();
    there.cp("big", &there.path("/renamed"));
    assert_eq!(there.sh("stat -c %s $0/renamed"), format!("{}\n", bytes.len()));
    there.cp(&there.path("/renamed"), "returned");
    assert!(fs::read(there.local("returned")).unwrap() == bytes, "other bytes came back");
}

#[test]
fn tar_streams_go_through_stdin_and_stdout() {
    let there = There::new();
    there.sh("mkdir $0/from && echo inside > $0/from/file");
    let output = there
        .bed
        .command(&["worker", "cp", &there.path("/from"), "-"])
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success());
    fs::write(there.local("stream.tar"), &output.stdout).unwrap();
    there.sh("mkdir $0/to");
    let input = fs::File::open(there.local("stream.tar")).unwrap();
    let status = there.bed.command(&["worker", "cp", "-", &there.path("/to")]).stdin(input).status().unwrap();
    assert!(status.success());
    assert_eq!(there.sh("cat $0/to/from/file"), "inside\n");
}

#[test]
fn an_interrupted_copy_leaves_nothing_that_is_not_whole() {
    let there = There::new();
    let file = there.local("file");
    fs::write(&file, vec![b'x'; 1 << 20]).unwrap();
    let tar =
        std::process::Command::new("tar").args(["-c", "file"]).current_dir(there.bed.project()).output();
    let archive = tar.unwrap().stdout;
    let mut child = there.bed.command(&["worker", "cp", "-", &there.path("/")]);
    let mut child = child.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&archive[..archive.len() / 2]).unwrap();
    there.bed.until("the copy has begun", || !there.sh("ls -A $0").is_empty());
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "error: interrupted\n");
    there.bed.until("nothing of it is left", || there.sh("ls -A $0").is_empty());
    drop(stdin);
}

#[test]
fn a_refused_stream_ends_though_it_could_go_on() {
    let there = There::new();
    let mut child = there.bed.command(&["worker", "cp", "-", &there.path("/missing")]);
    let mut child = child.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let stdin = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.starts_with("error: in `web`: ") && told.contains("/missing"), "{told}");
    drop(stdin);
}

#[test]
fn no_archive_goes_to_a_terminal_or_comes_from_one() {
    let there = There::new();
    for (from, to, told) in [
        (there.path("/"), "-".to_owned(), "error: a tar stream is not written to a terminal\r\n\r\nhint: "),
        ("-".to_owned(), there.path("/"), "error: a tar stream is not read from a terminal\r\n\r\nhint: "),
    ] {
        let (code, shown) = Person::runs(&there.bed, &["worker", "cp", &from, &to], &[]).leaves();
        assert_eq!(code, 2, "{shown}");
        assert!(shown.starts_with(told), "{shown:?}");
    }
}

#[test]
fn nothing_is_written_through_a_link_out_of_the_destination() {
    let there = There::new();
    there.sh("mkdir -p $0/from/out && echo stolen > $0/from/out/file");
    let elsewhere = there.local("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::create_dir_all(there.local("into/from")).unwrap();
    symlink(&elsewhere, there.local("into/from/out")).unwrap();
    let run = there.bed.iii(&["worker", "cp", &there.path("/from"), "into"]);
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(run.stderr.contains("out"), "it names the place: {run:?}");
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
}

#[test]
fn what_cannot_be_copied_is_told_and_leaves_nothing() {
    let there = There::new();
    for (from, to, code, says) in [
        ("a", "b", 2, "worker"),
        ("web:/a", "web:/b", 2, "worker"),
        ("./missing", "web:/tmp", 1, "missing"),
        ("web:/no/such/file", "here", 1, "/no/such/file"),
        ("wbe:/etc/passwd", "here", 1, "did you mean `web`"),
    ] {
        let run = there.bed.iii(&["worker", "cp", from, to]);
        assert_eq!(run.code, Some(code), "{from} {to}: {run:?}");
        assert!(run.stderr.contains(says), "{from} {to}: {run:?}");
    }
    assert!(!there.local("here").exists());
    there.bed.ok(&["worker", "stop", "web"]);
    let run = there.bed.iii(&["worker", "cp", "web:/etc/passwd", "here"]);
    assert_eq!(run.code, Some(1));
    assert!(run.stderr.contains("stopped") && run.stderr.contains("iii worker start web"), "{run:?}");
}
