//! What goes in comes out.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;

use iii_archive::{Layout, PackSource, pack};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use crate::tree::{FRIEND, GUEST, Node, Tree, as_one, at, make, packed, read, unpacked};

/// A step of a name: any bytes a name may have, some of them long.
fn step() -> impl Strategy<Value = Vec<u8>> {
    let byte =
        prop_oneof![4 => b'a'..=b'e', 1 => Just(b' '), 1 => Just(b'\n'), 1 => Just(0xff), 1 => Just(b':')];
    prop_oneof![6 => vec(byte.clone(), 1..4), 1 => vec(byte, 90..200)]
        .prop_filter("not a step", |name| !matches!(&name[..], b"." | b".."))
}

fn node() -> impl Strategy<Value = Node> {
    // What the owner may not read, only root packs.
    let file_mode =
        prop_oneof![Just(0o644), Just(0o600), Just(0o4755), Just(0o755), Just(0o2711), Just(0o444)];
    let folder_mode = prop_oneof![Just(0o755), Just(0o700), Just(0o1777), Just(0o555), Just(0o2750)];
    let mtime = 0..4_000_000_000i64;
    let body = prop_oneof![4 => vec(any::<u8>(), 0..2000), 1 => vec(any::<u8>(), 511..514)];
    prop_oneof![
        3 => (folder_mode, mtime.clone()).prop_map(|(mode, mtime)| Node::Folder { mode, mtime }),
        5 => (file_mode, mtime, body).prop_map(|(mode, mtime, body)| Node::File { mode, mtime, body }),
        1 => vec(1..=255u8, 1..150).prop_map(|target| Node::Symlink { target }),
        1 => Just(Node::Fifo { mode: 0o640 }),
    ]
}

/// Places each node below some folder, or the top.
fn trees() -> impl Strategy<Value = Tree> {
    let nodes = btree_map(step(), (node(), any::<prop::sample::Index>(), any::<bool>()), 0..16);
    nodes.prop_map(|nodes| {
        let mut tree = Tree::from([(Vec::new(), Node::Folder { mode: 0o750, mtime: 1_000_000 })]);
        for (step, (node, parent, linked)) in nodes {
            let folders: Vec<_> =
                tree.iter().filter(|(_, n)| matches!(n, Node::Folder { .. })).map(|(name, _)| name).collect();
            let parent = parent.get(&folders);
            let slash = if parent.is_empty() { &b""[..] } else { b"/" };
            let name = [&parent[..], slash, &step].concat();
            if linked && !matches!(node, Node::Folder { .. }) {
                tree.insert([&name[..], b".too"].concat(), Node::HardLink { to: name.clone() });
            }
            tree.insert(name, node);
        }
        tree
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(150) })]

    #[test]
    fn a_tree_that_is_copied_is_the_same_tree(tree in trees()) {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        make(&from, &tree);
        let before = read(&from);
        let (archive, told) = packed(&from);
        prop_assert!(told.is_empty(), "{told:?}");
        unpacked(&archive, &to, as_one(), FRIEND).unwrap();
        prop_assert_eq!(&read(&to), &before);
        // Once more, onto what is there.
        let inside = Layout::As { name: None, contents: true };
        unpacked(&archive, &to, inside, FRIEND).unwrap();
        let (mut again, mut expected) = (read(&to), before);
        // The folder that was there is not the archive's.
        again.remove(&b""[..]);
        expected.remove(&b""[..]);
        prop_assert_eq!(again, expected);
    }
}

#[test]
fn a_folder_that_nobody_may_write_to_is_copied_with_what_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let tree = Tree::from([
        (b"".to_vec(), Node::Folder { mode: 0o555, mtime: 5 }),
        (b"in".to_vec(), Node::Folder { mode: 0o500, mtime: 6 }),
        (b"in/file".to_vec(), Node::File { mode: 0o400, mtime: 7, body: b"x".to_vec() }),
        (b"later".to_vec(), Node::Folder { mode: 0o755, mtime: 8 }),
    ]);
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    make(&from, &tree);
    unpacked(&packed(&from).0, &to, as_one(), GUEST).unwrap();
    assert_eq!(read(&to), tree);
}

#[test]
fn sockets_are_left_out_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fs::create_dir(&from).unwrap();
    let _socket = UnixListener::bind(from.join("sock")).unwrap();
    fs::write(from.join("file"), "x").unwrap();
    let (archive, told) = packed(&from);
    assert_eq!(told, [format!("{}/sock is a socket: left out", from.display())]);
    let to = dir.path().join("to");
    unpacked(&archive, &to, as_one(), GUEST).unwrap();
    assert_eq!(read(&to).keys().collect::<Vec<_>>(), [&b""[..], b"file"]);
    let alone = pack(PackSource { path: &from.join("sock"), follow: false }, Vec::new(), &mut |_| {});
    assert!(alone.unwrap_err().to_string().ends_with("is a socket, which cannot be copied"));
}

#[test]
fn a_file_that_changes_its_size_keeps_the_size_it_was_announced_with() {
    // Changes the file when the archive has its header, that is, between announcing and reading it.
    struct Meddling<'a> {
        file: &'a Path,
        new_size: u64,
        archive: Vec<u8>,
    }
    impl std::io::Write for Meddling<'_> {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if self.archive.is_empty() {
                fs::File::options().write(true).open(self.file)?.set_len(self.new_size)?;
            }
            self.archive.write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    for (new_size, kept, word) in [(1000, 1000, "shrank"), (0, 0, "shrank"), (9000, 5000, "grew")] {
        let file = dir.path().join("file");
        fs::write(&file, [b'x'; 5000]).unwrap();
        let mut out = Meddling { file: &file, new_size, archive: Vec::new() };
        let mut told = Vec::new();
        pack(PackSource { path: &file, follow: false }, &mut out, &mut |warning| told.push(warning)).unwrap();
        assert!(told.len() == 1 && told[0].contains(word), "{told:?}");
        let to = dir.path().join("to");
        unpacked(&out.archive, &to, as_one(), GUEST).unwrap();
        let mut expected = vec![b'x'; kept];
        expected.resize(5000, 0);
        assert!(fs::read(&to).unwrap() == expected, "{new_size}");
    }
}

#[test]
fn a_file_that_says_it_is_empty_is_read_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("version");
    let (archive, told) = packed(Path::new("/proc/version"));
    assert_eq!(told, [""; 0]);
    unpacked(&archive, &to, as_one(), GUEST).unwrap();
    assert_eq!(fs::read(&to).unwrap(), fs::read("/proc/version").unwrap());
}

#[test]
fn a_link_is_copied_as_a_link_unless_it_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let top = |name: &str| dir.path().join(name);
    fs::create_dir(top("real")).unwrap();
    fs::write(top("real/file"), "x").unwrap();
    std::os::unix::fs::symlink("real", top("link")).unwrap();
    std::os::unix::fs::symlink("real/file", top("to-file")).unwrap();
    for (path, follow, expected) in [
        ("link", false, vec![&b"link"[..]]),
        ("link", true, vec![b"link/", b"link/file"]),
        ("link/", false, vec![b"link/", b"link/file"]),
        ("link/.", false, vec![b"./", b"./file"]),
        ("real/.", false, vec![b"./", b"./file"]),
        ("to-file", false, vec![b"to-file"]),
        ("to-file", true, vec![b"to-file"]),
    ] {
        let mut archive = Vec::new();
        pack(PackSource { path: &top(path), follow }, &mut archive, &mut |_| {}).unwrap();
        let mut archive = tar::Archive::new(&archive[..]);
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            assert_eq!(entry.header().entry_type().is_symlink(), !follow && !path.contains('/'), "{path}");
            entry.path_bytes().into_owned()
        });
        assert_eq!(entries.collect::<Vec<_>>(), expected, "{path} {follow}");
    }
    let file = pack(PackSource { path: &top("real/file/"), follow: false }, Vec::new(), &mut |_| {});
    assert!(file.unwrap_err().to_string().contains("Not a directory"));
    assert!(at(dir.path(), b"link").is_symlink());
}
