//! Applies one layer's entries to the tree, by the rules of the OCI image spec (`layer.md`).
//!
//! Where the spec is silent, this does what containerd and Docker do when they unpack: a name's leading
//! slashes are dropped, symbolic links on the way to an entry are followed inside the tree, missing folders
//! on the way are made (0755, root), and the entry itself is never followed but replaces what is there,
//! unless both are folders. Unlike them it refuses a name with `..` in it, and a layer that wants a file to
//! be a folder. Device nodes are kept, as the spec has them: machines mount their disks `nodev`.

pub(crate) mod stream;

use std::io;

use iii_archive::read::{Archive, Entry, EntryKind, HeadersTooLong, Malformed, Source};

use super::build::{EntryPath, LimitHit, Limits, Problem};
use super::erofs::{self, BodyWriter, DataWriter};
use super::tree::{Kind, Meta, Missing, Tree};

/// Marks the removal of a lower layer's entry of that name.
const WHITEOUT: &[u8] = b".wh.";
/// Marks a folder that hides all that lower layers have in it.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Begins the names of AUFS's own bookkeeping, which old images still carry.
const WHITEOUT_META: &[u8] = b".wh..wh.";
/// Longest target of a symbolic link that Linux follows (`PATH_MAX` without its NUL).
const MAX_SYMLINK: usize = 4095;

/// What went wrong, before it is known where.
#[derive(Debug)]
pub(crate) enum Fault {
    /// Reading or decompressing the layer.
    Read(io::Error),
    /// Writing the disk.
    Write(io::Error),
    /// The layer's content.
    Problem(Problem),
    /// The layer's cost.
    Limit(LimitHit),
}

impl From<Problem> for Fault {
    fn from(problem: Problem) -> Fault {
        Fault::Problem(problem)
    }
}

impl From<Malformed> for Fault {
    fn from(malformed: Malformed) -> Fault {
        Fault::Problem(malformed.into())
    }
}

impl From<HeadersTooLong> for Fault {
    fn from(hit: HeadersTooLong) -> Fault {
        Fault::Limit(LimitHit { limit: "header_bytes", at_most: hit.at_most })
    }
}

impl From<LimitHit> for Fault {
    fn from(hit: LimitHit) -> Fault {
        Fault::Limit(hit)
    }
}

/// What an image has cost so far in bytes that streamed by.
pub(crate) struct Usage<'l> {
    limits: &'l Limits,
    /// Bytes of all layers as pulled.
    pub(crate) compressed: u64,
    unpacked: u64,
}

impl<'l> Usage<'l> {
    pub(crate) fn new(limits: &'l Limits) -> Usage<'l> {
        Usage { limits, compressed: 0, unpacked: 0 }
    }

    /// Counts `more` unpacked bytes of a layer that so far has `unpacked` of them from `compressed`.
    fn unpacked(&mut self, more: u64, unpacked: u64, compressed: u64) -> Result<(), LimitHit> {
        self.unpacked += more;
        let Limits { uncompressed_bytes, expansion_ratio, expansion_free_bytes, .. } = *self.limits;
        if self.unpacked > uncompressed_bytes {
            return Err(LimitHit { limit: "uncompressed_bytes", at_most: uncompressed_bytes });
        }
        if self.unpacked > expansion_free_bytes && unpacked > compressed.saturating_mul(expansion_ratio) {
            return Err(LimitHit { limit: "expansion_ratio", at_most: expansion_ratio });
        }
        Ok(())
    }
}

/// Applies all of one layer; `Tree::begin_layer` has been called for it.
pub(crate) fn apply<S: Source<Error = Fault>>(
    archive: &mut Archive<S>,
    tree: &mut Tree,
    data: &mut DataWriter<'_>,
) -> Result<(), Fault> {
    while let Some(entry) = archive.next(tree.limits().header_bytes)? {
        tree.count_entry()?;
        apply_entry(entry, archive, tree, data)?;
    }
    Ok(())
}

fn apply_entry<S: Source<Error = Fault>>(
    entry: Entry,
    archive: &mut Archive<S>,
    tree: &mut Tree,
    data: &mut DataWriter<'_>,
) -> Result<(), Fault> {
    let path = components(&entry.path, tree.limits())?;
    let meta = Meta {
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime.0,
        mtime_nsec: entry.mtime.1,
        xattrs: entry.xattrs,
    };
    erofs::check_xattrs(&meta.xattrs)?;
    let Some((&name, parents)) = path.split_last() else {
        return match entry.kind {
            EntryKind::Folder => tree.set_root(meta),
            _ => Err(Problem::RootNotFolder.into()),
        };
    };
    if path.iter().any(|step| step.starts_with(WHITEOUT_META) && *step != OPAQUE) {
        return Ok(());
    }
    if parents.iter().any(|step| step.starts_with(WHITEOUT)) {
        return Err(Problem::BadWhiteout.into());
    }
    if let Some(hidden) = name.strip_prefix(WHITEOUT) {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Problem::BadWhiteout.into());
        }
        if let Some(folder) = tree.folder(parents, Missing::Stop)? {
            if name == OPAQUE { tree.hide_content(folder) } else { tree.hide(folder, hidden) }
        }
        return Ok(());
    }
    let folder = tree.make_folders(parents)?;
    let kind = match entry.kind {
        EntryKind::Folder => return tree.place_folder(folder, name, meta),
        EntryKind::HardLink => {
            let target = components(&entry.link, tree.limits())?;
            let missing = || Problem::LinkTargetMissing(EntryPath(entry.link.clone())).into();
            let target = tree.link_target(&target).map_err(|fault| fault.unwrap_or_else(missing))?;
            return tree.link(folder, name, target);
        }
        EntryKind::Symlink => {
            if entry.link.contains(&0) {
                return Err(Problem::NulInName.into());
            }
            if !(1..=MAX_SYMLINK).contains(&entry.link.len()) {
                return Err(Problem::SymlinkTarget(entry.link.len()).into());
            }
            Kind::Symlink(entry.link.into())
        }
        EntryKind::CharDevice { major, minor } => {
            tree.count_device()?;
            Kind::CharDevice { major, minor }
        }
        EntryKind::BlockDevice { major, minor } => {
            tree.count_device()?;
            Kind::BlockDevice { major, minor }
        }
        EntryKind::Fifo => Kind::Fifo,
        EntryKind::File => {
            let mut body = data.begin(entry.size, erofs::inode_bytes(&meta.xattrs))?;
            for segment in &entry.segments {
                copy(archive, data, &mut body, segment.offset, segment.length)?;
            }
            Kind::File(body.finish())
        }
    };
    tree.place(folder, name, meta, kind)
}

/// Moves `length` bytes of the entry's body to `offset` of the file.
fn copy<S: Source<Error = Fault>>(
    archive: &mut Archive<S>,
    data: &mut DataWriter<'_>,
    body: &mut BodyWriter,
    mut offset: u64,
    length: u64,
) -> Result<(), Fault> {
    let end = offset + length;
    while offset < end {
        let piece = archive.fill_body()?;
        let left = usize::try_from(end - offset).unwrap_or(usize::MAX);
        let n = piece.len().min(left);
        if n == 0 {
            return Err(Malformed::Truncated.into());
        }
        body.write(data, offset, &piece[..n])?;
        archive.consume_body(n);
        offset += n as u64;
    }
    Ok(())
}

/// A name's steps from the root; empty for the root itself.
fn components<'p>(path: &'p [u8], limits: &Limits) -> Result<Vec<&'p [u8]>, Fault> {
    if path.is_empty() {
        return Err(Problem::EmptyName.into());
    }
    if path.contains(&0) {
        return Err(Problem::NulInName.into());
    }
    let mut steps = Vec::new();
    for step in path.split(|&b| b == b'/') {
        match step {
            b"" | b"." => {}
            b".." => return Err(Problem::ParentStep.into()),
            _ if step.len() > limits.name_bytes => {
                return Err(LimitHit { limit: "name_bytes", at_most: limits.name_bytes as u64 }.into());
            }
            _ => steps.push(step),
        }
    }
    Ok(steps)
}
