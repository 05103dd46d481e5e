//! Archives whose author wants something outside of the destination.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use iii_archive::read::EntryKind;
use iii_archive::write::{Head, Writer};
use iii_archive::{Layout, Rules, UnpackError, Written};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use tempfile::TempDir;

use crate::tree::{GUEST, Tree, as_one, read, unpacked};

/// One entry of a hostile archive.
#[derive(Debug, Clone)]
struct Evil {
    path: Vec<u8>,
    kind: EntryKind,
    link: Vec<u8>,
    body: Vec<u8>,
    mode: u32,
}

fn evil(kind: EntryKind, path: &str, link: &str) -> Evil {
    let body = if kind == EntryKind::File { b"evil".to_vec() } else { Vec::new() };
    Evil { path: path.into(), kind, link: link.into(), body, mode: 0o777 }
}

fn archive(entries: &[Evil]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for entry in entries {
        let size = entry.body.len() as u64;
        let head = Head {
            path: &entry.path,
            kind: entry.kind,
            link: &entry.link,
            size,
            mode: entry.mode,
            uid: 0,
            gid: 0,
            mtime: (1, 0),
        };
        writer.head(&head).unwrap();
        writer.body(&entry.body).unwrap();
        writer.pad(size).unwrap();
    }
    writer.finish().unwrap()
}

/// `dst` with links that lead out of it, beside `precious`.
fn bed() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path();
    fs::create_dir_all(top.join("precious/deep")).unwrap();
    fs::write(top.join("precious/secret"), "secret").unwrap();
    fs::set_permissions(top.join("precious/secret"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir_all(top.join("dst/a/b")).unwrap();
    symlink("../precious", top.join("dst/out")).unwrap();
    symlink(top.join("precious"), top.join("dst/a/abs")).unwrap();
    symlink("../../../precious/secret", top.join("dst/a/b/file")).unwrap();
    symlink(".", top.join("dst/self")).unwrap();
    fs::write(top.join("dst/a/old"), "old").unwrap();
    fs::set_permissions(top, fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// All that is not the destination, with the count of names of each file.
fn outside(dir: &TempDir) -> (Tree, Vec<(u64, u32)>) {
    let mut tree = read(dir.path());
    tree.retain(|name, _| !name.starts_with(b"dst"));
    let counts = tree.keys().map(|name| crate::tree::at(dir.path(), name).symlink_metadata().unwrap());
    // The folder that the destination is in counts it.
    let counts = counts.skip(1).map(|meta| (meta.nlink(), meta.uid())).collect();
    (tree, counts)
}

fn attack(dir: &TempDir, entries: &[Evil], layout: Layout, rules: Rules) -> Result<Written, UnpackError> {
    unpacked(&archive(entries), &dir.path().join("dst"), layout, rules)
}

#[test]
fn every_known_way_out_is_closed() {
    use EntryKind::{CharDevice, File, Folder, HardLink, Symlink};
    let device = CharDevice { major: 1, minor: 3 };
    for (entries, says) in [
        (vec![evil(File, "../precious/new", "")], "must not contain `..`"),
        (vec![evil(File, "a/../../precious/new", "")], "must not contain `..`"),
        (vec![evil(File, "out/new", "")], "`out` on its way is a link"),
        (vec![evil(File, "out/secret", "")], "`out` on its way is a link"),
        (vec![evil(File, "a/abs/secret", "")], "`abs` on its way is a link"),
        (vec![evil(Folder, "out/", "")], "cannot overwrite non-directory with directory"),
        (vec![evil(Folder, "out/deep/", "")], "is a link"),
        (vec![evil(Symlink, "l", "../precious"), evil(File, "l/new", "")], "`l` on its way is a link"),
        (vec![evil(Symlink, "l", "/"), evil(Folder, "l/", ""), evil(File, "l/new", "")], "cannot overwrite"),
        (vec![evil(Symlink, "self", ".."), evil(File, "self/precious/secret", "")], "is a link"),
        (vec![evil(HardLink, "h", "../precious/secret")], "must not contain `..`"),
        (vec![evil(HardLink, "h", "out/secret")], "`out` on its way is a link"),
        (vec![evil(HardLink, "h", "/etc/passwd")], "which does not exist"),
        (vec![evil(HardLink, "h", "a/b")], ""),
        (vec![evil(File, "a/old/x", "")], "`old` on its way is not a folder"),
        (vec![evil(File, "a", "")], "cannot overwrite directory with non-directory"),
        (vec![evil(Symlink, "a", "../precious")], "cannot overwrite directory with non-directory"),
        (vec![evil(device, "zero", ""), evil(File, "zero/x", "")], ""),
    ] {
        let dir = bed();
        let before = outside(&dir);
        let result = attack(&dir, &entries, Layout::Inside, GUEST);
        assert_eq!(outside(&dir), before, "{entries:?}");
        if says.is_empty() {
            continue;
        }
        let error = result.expect_err(says).to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn links_that_lead_out_are_replaced_by_what_has_their_name() {
    let dir = bed();
    let before = outside(&dir);
    let entries = [
        evil(EntryKind::File, "out", ""),
        evil(EntryKind::File, "a/b/file", ""),
        // A hard link to a link is the link once more, and what is written to it later replaces it.
        evil(EntryKind::Symlink, "l", "../precious/secret"),
        evil(EntryKind::HardLink, "h", "l"),
        evil(EntryKind::File, "h", ""),
    ];
    attack(&dir, &entries, Layout::Inside, GUEST).unwrap();
    assert_eq!(outside(&dir), before);
    for name in ["out", "a/b/file", "h"] {
        let path = dir.path().join("dst").join(name);
        assert!(!path.is_symlink() && fs::read(&path).unwrap() == b"evil", "{name}");
    }
    assert!(dir.path().join("dst/l").is_symlink());
}

#[test]
fn absolute_names_are_names_below_the_destination() {
    let dir = bed();
    attack(&dir, &[evil(EntryKind::File, "/a/new", "")], Layout::Inside, GUEST).unwrap();
    assert_eq!(fs::read(dir.path().join("dst/a/new")).unwrap(), b"evil");
}

#[test]
fn an_archive_of_one_thing_holds_nothing_else() {
    use EntryKind::{File, Folder, HardLink};
    for entries in [
        // Asked for one file, it brings a second one.
        vec![evil(File, "f", ""), evil(File, ".bashrc", "")],
        vec![evil(File, "f", ""), evil(File, "f", "")],
        vec![evil(Folder, "f/", ""), evil(File, "a/new", "")],
        vec![evil(Folder, "f/", ""), evil(HardLink, "f/h", "a/old")],
        vec![evil(Folder, "./", ""), evil(File, "../precious/new", "")],
        vec![evil(File, "f/deeper", "")],
        vec![evil(HardLink, "f", "a/old")],
    ] {
        let dir = bed();
        let before = outside(&dir);
        let layout = Layout::As { name: Some(b"asked".to_vec()), contents: false };
        let error = attack(&dir, &entries, layout, GUEST).unwrap_err().to_string();
        assert!(error.contains("not a part of what was asked for") || error.contains(".."), "{error}");
        assert_eq!(outside(&dir), before);
        let tree = read(&dir.path().join("dst"));
        let new = |name: &&Vec<u8>| name.starts_with(b".bashrc") || name.starts_with(b"a/new");
        assert_eq!(tree.keys().find(new), None);
        assert!(tree.keys().all(|name| *name != b"f"), "it has the name that was asked for, or none");
    }
}

#[test]
fn devices_are_left_out_and_rights_of_others_are_not_given() {
    let dir = bed();
    let mut setuid = evil(EntryKind::File, "suid", "");
    setuid.mode = 0o6755;
    let device = EntryKind::BlockDevice { major: 8, minor: 0 };
    let entries = [evil(device, "disk", ""), setuid];
    let written = attack(&dir, &entries, Layout::Inside, GUEST).unwrap();
    assert_eq!(written.entries, 1);
    assert!(!dir.path().join("dst/disk").exists());
    let mode = dir.path().join("dst/suid").metadata().unwrap().mode();
    assert_eq!(mode & 0o7777, 0o755);
    let alone = attack(&dir, &[evil(device, "disk", "")], as_one(), GUEST).unwrap_err().to_string();
    assert!(alone.contains("it is a device, which is not copied"), "{alone}");
}

#[test]
fn a_name_cannot_write_to_the_terminal() {
    let dir = bed();
    let error = attack(&dir, &[evil(EntryKind::File, "out/\x1b[2J", "")], Layout::Inside, GUEST);
    assert!(error.unwrap_err().to_string().contains("\\u{1b}[2J"));
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    let step =
        select(&["a", "b", "out", "abs", "self", "file", "old", "l", "h", "..", ".", "", "precious"][..]);
    (any::<bool>(), vec(step, 1..4)).prop_map(|(absolute, steps)| {
        format!("{}{}", if absolute { "/" } else { "" }, steps.join("/")).into_bytes()
    })
}

fn entries() -> impl Strategy<Value = Vec<Evil>> {
    let kind = select(
        &[
            EntryKind::File,
            EntryKind::File,
            EntryKind::Folder,
            EntryKind::Symlink,
            EntryKind::Symlink,
            EntryKind::HardLink,
            EntryKind::Fifo,
            EntryKind::CharDevice { major: 1, minor: 3 },
        ][..],
    );
    let link = prop_oneof![
        path(),
        select(&["../precious", "../precious/secret", "..", "/", "out/secret", "../../precious"][..])
            .prop_map(|link| link.as_bytes().to_vec()),
    ];
    let mode = select(&[0o777, 0o000, 0o4755, 0o555][..]);
    let entry = (kind, path(), link, vec(any::<u8>(), 0..600), mode);
    vec(
        entry.prop_map(|(kind, path, link, body, mode)| {
            let body = if kind == EntryKind::File { body } else { Vec::new() };
            Evil { path, kind, link, body, mode }
        }),
        1..12,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(600) })]

    #[test]
    fn nothing_outside_of_the_destination_ever_changes(
        entries in entries(),
        damage in proptest::option::of((any::<prop::sample::Index>(), any::<u8>())),
        one in any::<bool>(),
        contents in any::<bool>(),
    ) {
        let dir = bed();
        let before = outside(&dir);
        let mut bytes = archive(&entries);
        if let Some((at, byte)) = damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let layout = if one { Layout::As { name: Some(b"x".to_vec()), contents } } else { Layout::Inside };
        // As root does it too, owners kept: the most that could go wrong.
        let rules = Rules { owners: nix::unistd::geteuid().is_root(), set_ids: true, devices: false };
        let _ = unpacked(&bytes, &dir.path().join("dst"), layout, rules);
        prop_assert_eq!(outside(&dir), before);
        // Nothing unfinished stays either.
        let unfinished = |name: &&Vec<u8>| name.windows(8).any(|part| part == b".iii-cp-");
        let dst = dir.path().join("dst");
        unlock(&dst);
        let tree = read(&dst);
        prop_assert_eq!(tree.keys().find(unfinished), None);
    }
}

/// Lets an ordinary user look into what was unpacked.
fn unlock(folder: &Path) {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            unlock(&entry.path());
        } else if kind.is_file() {
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o644)).unwrap();
        }
    }
}
