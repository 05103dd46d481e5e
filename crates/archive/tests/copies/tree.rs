//! Trees on disk: made of a description, and read back into one.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use iii_archive::{Destination, Layout, PackSource, Rules, UnpackError, Written, pack, unpack};
use nix::sys::stat::Mode;

/// Everything that a copy keeps of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    Folder {
        mode: u32,
        mtime: i64,
    },
    File {
        mode: u32,
        mtime: i64,
        body: Vec<u8>,
    },
    Symlink {
        target: Vec<u8>,
    },
    Fifo {
        mode: u32,
    },
    /// The same file as another name.
    HardLink {
        to: Vec<u8>,
    },
}

/// Names from the top, `/` between the steps; the top itself is empty.
pub(crate) type Tree = BTreeMap<Vec<u8>, Node>;

pub(crate) fn at(folder: &Path, name: &[u8]) -> PathBuf {
    if name.is_empty() { folder.to_owned() } else { folder.join(OsStr::from_bytes(name)) }
}

/// Reads what is there; of several names of a file the first in order is the file.
pub(crate) fn read(top: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut files = BTreeMap::new();
    let mut waiting = vec![Vec::new()];
    while let Some(name) = waiting.pop() {
        let path = at(top, &name);
        let meta = path.symlink_metadata().unwrap();
        let (mode, mtime) = (meta.mode() & 0o7777, meta.mtime());
        let kind = meta.file_type();
        let node = if kind.is_dir() {
            let mut below: Vec<_> = fs::read_dir(&path).unwrap().map(|e| e.unwrap().file_name()).collect();
            below.sort();
            waiting.extend(below.into_iter().rev().map(|base| {
                let slash = if name.is_empty() { &b""[..] } else { b"/" };
                [&name[..], slash, base.as_bytes()].concat()
            }));
            Node::Folder { mode, mtime }
        } else if kind.is_symlink() {
            Node::Symlink { target: fs::read_link(&path).unwrap().into_os_string().into_vec() }
        } else if let Some(to) = files.get(&meta.ino()) {
            Node::HardLink { to: Vec::clone(to) }
        } else {
            if meta.nlink() > 1 {
                files.insert(meta.ino(), name.clone());
            }
            if kind.is_file() {
                Node::File { mode, mtime, body: fs::read(&path).unwrap() }
            } else {
                Node::Fifo { mode }
            }
        };
        tree.insert(name, node);
    }
    tree
}

/// Makes a tree; folders get what they should have when they are full.
pub(crate) fn make(top: &Path, tree: &Tree) {
    for (name, node) in tree {
        let path = at(top, name);
        match node {
            Node::Folder { .. } => fs::create_dir(&path).unwrap(),
            Node::File { body, .. } => fs::write(&path, body).unwrap(),
            Node::Symlink { target } => symlink(OsStr::from_bytes(target), &path).unwrap(),
            Node::Fifo { .. } => nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap(),
            Node::HardLink { .. } => {}
        }
    }
    for (name, node) in tree {
        if let Node::HardLink { to } = node {
            fs::hard_link(at(top, to), at(top, name)).unwrap();
        }
    }
    for (name, node) in tree.iter().rev() {
        let path = at(top, name);
        if let Node::Folder { mode, .. } | Node::File { mode, .. } | Node::Fifo { mode } = node {
            fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
        }
        if let Node::Folder { mtime, .. } | Node::File { mtime, .. } = node {
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(mtime.unsigned_abs());
            fs::File::open(&path).unwrap().set_modified(time).unwrap();
        }
    }
}

/// Packs a path; the archive and what was told.
pub(crate) fn packed(path: &Path) -> (Vec<u8>, Vec<String>) {
    let (mut archive, mut told) = (Vec::new(), Vec::new());
    pack(PackSource { path, follow: false }, &mut archive, &mut |warning| told.push(warning)).unwrap();
    (archive, told)
}

/// As a copy from a guest is unpacked.
pub(crate) const GUEST: Rules = Rules { owners: false, set_ids: false, devices: false };
/// As a copy into a guest is.
pub(crate) const FRIEND: Rules = Rules { owners: false, set_ids: true, devices: false };

pub(crate) fn unpacked(
    archive: &[u8],
    path: &Path,
    layout: Layout,
    rules: Rules,
) -> Result<Written, UnpackError> {
    unpack(archive, &Destination { path, layout, follow: false }, rules, &mut |_| {})
}

/// One thing, under the name the archive has for it.
pub(crate) fn as_one() -> Layout {
    Layout::As { name: None, contents: false }
}
