//! Folders that are brought up to date by a session.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use iii_archive::read::EntryKind;
use iii_archive::write::{Head, Writer};
use iii_protocol::session::{EndCause, Task, WINDOW_BYTES};

use crate::client::{Client, OK, exec, outcome, worker};
use crate::shim::{Shim, process, until};

/// One file of an archive.
fn archive(path: &str, body: &[u8]) -> Vec<u8> {
    let (path, size) = (path.as_bytes(), body.len() as u64);
    let mut writer = Writer::new(Vec::new());
    let kind = EntryKind::File;
    writer
        .head(&Head { path, kind, link: b"", size, mode: 0o755, uid: 0, gid: 0, mtime: (1, 0) })
        .expect("head");
    writer.body(body).expect("body");
    writer.pad(size).expect("pad");
    writer.finish().expect("archive")
}

/// Opens an update of the folder `name` and sends it.
fn update(shim: &Shim, name: &str, list: &[u8], archive: &[u8]) -> Client {
    let changes = u32::try_from(list.len()).expect("small");
    let mut client = Client::open_task(shim, Task::Update { path: shim.path(name), changes });
    client.input(list);
    client.input(archive);
    client.end_input();
    client
}

#[test]
fn a_held_machine_gets_its_files_before_its_workload_runs_them() {
    let mut shim = Shim::new();
    let program = shim.path("project/bin/start");
    shim.hold(process(&[&program]));
    let mut client = update(&shim, "project", b"", &archive("bin/start", b"#!/bin/sh\necho started\n"));
    assert_eq!(client.finish(), OK);
    assert_eq!(client.started.expect("started").pid, 0);
    shim.go();
    assert_eq!(shim.hear_all().text(), "started\n");
}

#[test]
fn a_list_and_an_archive_of_many_windows_go_through() {
    const FILES: usize = 20_000;
    let worker = worker();
    fs::create_dir_all(worker.path("to/gone")).expect("folder");
    fs::write(worker.path("to/mode"), "").expect("file");
    fs::write(worker.path("to/gone/0"), "").expect("file");
    let long = "x".repeat(100);
    let list: String = (0..FILES).map(|n| format!("F gone/{n}\0F {long}/{n}\0")).collect();
    let list = format!("{list}E gone\0M 640 5000000000 mode\0");
    assert!(list.len() > 2 * WINDOW_BYTES);
    let body = vec![7; 3 * WINDOW_BYTES];
    let mut client = update(&worker, "to", list.as_bytes(), &archive("big", &body));
    assert_eq!(client.finish(), OK);
    assert!(fs::metadata(worker.path("to/gone")).is_err());
    assert!(fs::read(worker.path("to/big")).expect("file") == body, "the bytes differ");
    assert_eq!(fs::metadata(worker.path("to/mode")).expect("file").permissions().mode() & 0o7777, 0o640);
}

#[test]
fn nothing_to_do_is_an_update_that_only_flushes() {
    let worker = worker();
    let mut client = update(&worker, "to", b"", b"");
    assert_eq!(client.finish(), OK);
    assert!(client.started.is_some());
    assert!(fs::metadata(worker.path("to")).expect("made").is_dir());
}

#[test]
fn what_fails_says_where_and_what_cannot_begin_says_so() {
    let worker = worker();
    let mut client = update(&worker, "to", b"F ok\0F ../none\0", b"");
    match client.finish() {
        EndCause::CopyFailed { message, .. } => {
            assert_eq!(message, "the list of changes: `F ../none` is none");
        }
        other => panic!("{other:?}"),
    }
    fs::write(worker.path("file"), "").expect("file");
    let mut client = update(&worker, "file", b"", b"");
    match client.finish() {
        EndCause::CouldNotStart { message, .. } => assert!(message.contains("Not a directory"), "{message}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_client_that_leaves_ends_its_update() {
    let worker = worker();
    assert_eq!(outcome(&worker, exec(&["true"])).0, OK);
    let bare = worker.settled();
    fs::create_dir_all(worker.path("to")).expect("folder");
    fs::write(worker.path("to/a"), "").expect("file");
    let mut client = Client::open_task(&worker, Task::Update { path: worker.path("to"), changes: 100 });
    client.input(b"F a\0F b");
    until("the first record is carried out", || fs::metadata(worker.path("to/a")).is_err());
    drop(client);
    worker.until_settled(bare);
}
