//! Why a root disk could not be built, and at which entry of which layer.

use std::io;

pub use iii_archive::EntryPath;
use iii_archive::read::Malformed;

/// Why a root disk could not be built.
///
/// `layer` counts from 0, bottom first; the messages count from 1.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A layer's bytes could not be read or decompressed.
    #[error("cannot read layer {}: {source}", layer + 1)]
    Read {
        /// Which layer.
        layer: usize,
        /// What the reader or the decompressor said.
        source: io::Error,
    },
    /// A layer is intact, but not the one the image config names.
    #[error("layer {} unpacks to {actual}, but the image names {expected}", layer + 1)]
    WrongDigest {
        /// Which layer.
        layer: usize,
        /// The `diff_id` that was given.
        expected: String,
        /// What the bytes hash to.
        actual: String,
    },
    /// A layer says something that cannot be true of a root disk, or must not be.
    #[error("layer {}{}: {problem}", layer + 1, at(entry))]
    Refused {
        /// Which layer.
        layer: usize,
        /// Its entry, where the name was readable.
        entry: Option<EntryPath>,
        /// What is wrong.
        problem: Problem,
    },
    /// An image asks for more than [`Limits`](super::Limits) allow.
    #[error("layer {}{}: {hit}", layer + 1, at(entry))]
    Limit {
        /// Which layer.
        layer: usize,
        /// The entry that went over, unless the layer as a whole did.
        entry: Option<EntryPath>,
        /// Which limit.
        hit: LimitHit,
    },
    /// The disk could not be written.
    #[error("cannot write the root disk: {source}")]
    Write {
        /// What the system said.
        source: io::Error,
    },
}

impl BuildError {
    /// Whether the host's disk, or the user's share of it, is full.
    pub fn is_disk_full(&self) -> bool {
        let (BuildError::Read { source, .. } | BuildError::Write { source }) = self else { return false };
        matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

fn at(entry: &Option<EntryPath>) -> String {
    entry.as_ref().map(|path| format!(", entry `{path}`")).unwrap_or_default()
}

/// A limit that an image went over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("over the limit `{limit}` of {at_most}")]
pub struct LimitHit {
    /// The field of [`Limits`](super::Limits).
    pub limit: &'static str,
    /// Its value.
    pub at_most: u64,
}

/// What is wrong with an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The tar stream itself, or an entry's header.
    #[error(transparent)]
    Archive(#[from] Malformed),
    /// A name with a `..` in it.
    #[error("a name in a layer must not contain `..`")]
    ParentStep,
    /// A name or link target with a NUL byte in it.
    #[error("a name must not contain a NUL byte")]
    NulInName,
    /// No name at all.
    #[error("the name is empty")]
    EmptyName,
    /// A name that begins with `.wh.` where no whiteout can be.
    #[error("names that begin with `.wh.` are kept for whiteouts")]
    BadWhiteout,
    /// The root folder given as something else.
    #[error("the root must be a folder")]
    RootNotFolder,
    /// Something on the way to the entry is not a folder.
    #[error("`{0}` is on its way but is not a folder")]
    NotAFolder(EntryPath),
    /// Too many symbolic links on the way to the entry.
    #[error("too many symbolic links on its way")]
    SymlinkLoop,
    /// A hard link to what is not there.
    #[error("it is a hard link to `{0}`, which does not exist")]
    LinkTargetMissing(EntryPath),
    /// A hard link to a folder.
    #[error("it is a hard link to the folder `{0}`")]
    LinkToFolder(EntryPath),
    /// A symbolic link to nowhere, or further than Linux can follow.
    #[error("its symbolic link has a target of {0} bytes, not of 1 to 4095")]
    SymlinkTarget(usize),
    /// An extended attribute that the format cannot hold.
    #[error("its extended attribute `{0}` is too long")]
    XattrTooLong(EntryPath),
    /// Extended attributes that together are more than an inode can hold.
    #[error("its extended attributes together are too long")]
    XattrsTooLong,
}
