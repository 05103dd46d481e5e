//! Archives are exchanged with GNU tar in both directions.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use iii_archive::Layout;

use crate::tree::{FRIEND, Node, Tree, make, packed, read, unpacked};

fn sample(top: &Path) {
    let tree = Tree::from([
        (b"".to_vec(), Node::Folder { mode: 0o750, mtime: 1 }),
        (b"a b".to_vec(), Node::File { mode: 0o4755, mtime: 2, body: vec![7; 70_000] }),
        (b"a b.too".to_vec(), Node::HardLink { to: b"a b".to_vec() }),
        (b"empty".to_vec(), Node::Folder { mode: 0o1777, mtime: 3 }),
        (b"\xff\xfe".to_vec(), Node::File { mode: 0o600, mtime: 4, body: Vec::new() }),
        (vec![b'n'; 180], Node::Folder { mode: 0o755, mtime: 5 }),
        ([&[b'n'; 180][..], b"/", "ä".repeat(90).as_bytes()].concat(), {
            Node::File { mode: 0o644, mtime: 6, body: b"x".to_vec() }
        }),
        (b"pipe".to_vec(), Node::Fifo { mode: 0o640 }),
    ]);
    make(top, &tree);
    symlink("x".repeat(300), top.join("empty").join("link")).unwrap();
}

#[test]
fn gnu_tar_unpacks_what_is_packed() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    sample(&from);
    let (archive, told) = packed(&from.join("."));
    assert_eq!(told, [""; 0]);
    fs::create_dir(&to).unwrap();
    let mut tar =
        Command::new("tar").args(["-xpf", "-", "-C"]).arg(&to).stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut tar.stdin.take().unwrap(), &archive).unwrap();
    assert!(tar.wait().unwrap().success());
    assert_eq!(read(&to), read(&from));
}

#[test]
fn what_gnu_tar_packs_is_unpacked() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    sample(&from);
    for format in ["gnu", "pax"] {
        let to = dir.path().join(format);
        fs::create_dir(&to).unwrap();
        let mut tar = Command::new("tar");
        tar.arg(format!("--format={format}")).args(["-cf", "-", "-C"]).arg(&from).arg(".");
        let archive = tar.output().unwrap();
        assert!(archive.status.success());
        unpacked(&archive.stdout, &to, Layout::Inside, FRIEND).unwrap();
        let (mut there, mut expected) = (read(&to), read(&from));
        // The destination stays what it is.
        there.remove(&b""[..]);
        expected.remove(&b""[..]);
        assert_eq!(there, expected, "{format}");
    }
}
