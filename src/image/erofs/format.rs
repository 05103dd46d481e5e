//! EROFS on disk, as much of it as a root disk uses (Linux `fs/erofs/erofs_fs.h`; all numbers little-endian).
//!
//! Blocks of 4096 bytes, extended inodes of 64 bytes, plain data with tails inlined behind their inode,
//! inline extended attributes. No compression, chunks, shared attributes or further devices: every kernel
//! since 5.4 reads it.

use crc::{CRC_32_ISCSI, Crc};

use crate::image::build::{EntryPath, Problem};
use crate::image::tree::{Kind, Meta, Xattrs};

/// Bytes of a block.
pub(crate) const BLOCK: u64 = 4096;
/// Bytes of an inode slot, the unit of inode numbers (`nid`).
pub(crate) const SLOT: u64 = 32;
/// Bytes of an extended inode.
pub(crate) const INODE: usize = 64;
/// Where the superblock starts; its checksum covers the rest of the block.
pub(crate) const SUPERBLOCK_AT: u64 = 1024;

const MAGIC: u32 = 0xe0f5_e1e2;
const SUPERBLOCK: usize = 128;
const COMPAT_SB_CHKSUM: u32 = 1;
/// Inode times are times of modification.
const COMPAT_MTIME: u32 = 2;
/// `i_format` of an extended inode.
const FORMAT_EXTENDED: u16 = 1;
/// Data in whole blocks.
const LAYOUT_FLAT_PLAIN: u16 = 0;
/// Data in whole blocks, the rest behind the inode.
const LAYOUT_FLAT_INLINE: u16 = 2;
const XATTR_HEADER: usize = 12;
const XATTR_ENTRY: usize = 4;
/// `i_xattr_icount` has 16 bits and counts words behind the header.
const MAX_XATTR_BYTES: usize = XATTR_HEADER + 4 * (u16::MAX as usize - 1);
const DIRENT: usize = 12;

/// What the superblock says.
pub(crate) struct Superblock {
    pub(crate) root_nid: u16,
    pub(crate) inodes: u64,
    pub(crate) blocks: u32,
    /// Block from which inode numbers count.
    pub(crate) meta_block: u32,
}

impl Superblock {
    /// Everything from `SUPERBLOCK_AT` to the end of the first block.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; (BLOCK - SUPERBLOCK_AT) as usize];
        let mut fields = Vec::with_capacity(SUPERBLOCK);
        put32(&mut fields, MAGIC);
        put32(&mut fields, 0); // checksum
        put32(&mut fields, COMPAT_SB_CHKSUM | COMPAT_MTIME);
        fields.push(BLOCK.ilog2() as u8);
        fields.push(0); // sb_extslots
        put16(&mut fields, self.root_nid);
        put64(&mut fields, self.inodes);
        // No build time, UUID or volume name: the same layers make the same disk.
        put64(&mut fields, 0);
        put32(&mut fields, 0);
        put32(&mut fields, self.blocks);
        put32(&mut fields, self.meta_block);
        // The rest stays zero: no shared attributes, no incompatible features, no devices.
        out[..fields.len()].copy_from_slice(&fields);
        // The kernel's crc32c is seeded alike but not inverted at the end.
        let checksum = !Crc::<u32>::new(&CRC_32_ISCSI).checksum(&out);
        out[4..8].copy_from_slice(&checksum.to_le_bytes());
        out
    }
}

/// An inode's own 64 bytes.
pub(crate) struct RawInode<'t> {
    pub(crate) meta: &'t Meta,
    pub(crate) kind: &'t Kind,
    /// Serial number from 1, for `stat` on 32 bits.
    pub(crate) serial: u32,
    pub(crate) links: u32,
    pub(crate) size: u64,
    pub(crate) first_block: u32,
    /// Whether the rest beyond whole blocks follows the inode.
    pub(crate) inline: bool,
}

impl RawInode<'_> {
    /// Appends the inode with its extended attributes.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let Meta { mode, uid, gid, mtime, mtime_nsec, xattrs } = self.meta;
        let layout = if self.inline { LAYOUT_FLAT_INLINE } else { LAYOUT_FLAT_PLAIN };
        put16(out, FORMAT_EXTENDED | layout << 1);
        let xattr_words = match xattr_bytes(xattrs) {
            0 => 0,
            bytes => (bytes - XATTR_HEADER) / 4 + 1,
        };
        put16(out, xattr_words as u16);
        put16(out, file_mode(self.kind) | mode);
        put16(out, 0);
        put64(out, self.size);
        put32(
            out,
            match *self.kind {
                // `new_encode_dev` of the kernel.
                Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
                }
                _ => self.first_block,
            },
        );
        put32(out, self.serial);
        put32(out, *uid);
        put32(out, *gid);
        out.extend_from_slice(&mtime.to_le_bytes());
        put32(out, *mtime_nsec);
        put32(out, self.links);
        out.extend_from_slice(&[0; 16]);
        encode_xattrs(xattrs, out);
    }
}

/// `S_IFMT` bits.
fn file_mode(kind: &Kind) -> u16 {
    match kind {
        Kind::File(_) => 0o100_000,
        Kind::Folder(_) => 0o040_000,
        Kind::Symlink(_) => 0o120_000,
        Kind::CharDevice { .. } => 0o020_000,
        Kind::BlockDevice { .. } => 0o060_000,
        Kind::Fifo => 0o010_000,
    }
}

/// The type in a folder's entry (`EROFS_FT_*`).
fn dirent_type(kind: &Kind) -> u8 {
    match kind {
        Kind::File(_) => 1,
        Kind::Folder(_) => 2,
        Kind::CharDevice { .. } => 3,
        Kind::BlockDevice { .. } => 4,
        Kind::Fifo => 5,
        Kind::Symlink(_) => 7,
    }
}

/// Index of a name's family and what is left of the name (`EROFS_XATTR_INDEX_*`). Names of no family do not
/// get into the tree.
fn split_xattr(name: &[u8]) -> (u8, &[u8]) {
    const FAMILIES: [(u8, &[u8]); 5] = [
        (1, b"user."),
        (2, b"system.posix_acl_access"),
        (3, b"system.posix_acl_default"),
        (4, b"trusted."),
        (6, b"security."),
    ];
    let family = FAMILIES.iter().find_map(|&(index, prefix)| Some((index, name.strip_prefix(prefix)?)));
    family.unwrap_or((0, name))
}

/// Bytes of an inode's extended attributes; none is 0.
pub(crate) fn xattr_bytes(xattrs: &Xattrs) -> usize {
    if xattrs.is_empty() {
        return 0;
    }
    let entries = xattrs
        .iter()
        .map(|(name, value)| (XATTR_ENTRY + split_xattr(name).1.len() + value.len()).next_multiple_of(4));
    XATTR_HEADER + entries.sum::<usize>()
}

/// Refuses attributes that the format has no room for.
pub(crate) fn check_xattrs(xattrs: &Xattrs) -> Result<(), Problem> {
    for (name, value) in xattrs {
        if split_xattr(name).1.len() > usize::from(u8::MAX) || value.len() > usize::from(u16::MAX) {
            return Err(Problem::XattrTooLong(EntryPath(name.to_vec())));
        }
    }
    if xattr_bytes(xattrs) > MAX_XATTR_BYTES { Err(Problem::XattrsTooLong) } else { Ok(()) }
}

fn encode_xattrs(xattrs: &Xattrs, out: &mut Vec<u8>) {
    if xattrs.is_empty() {
        return;
    }
    // No name filter, no shared attributes.
    out.extend_from_slice(&[0; XATTR_HEADER]);
    for (name, value) in xattrs {
        let (index, suffix) = split_xattr(name);
        out.extend_from_slice(&[suffix.len() as u8, index]);
        put16(out, value.len() as u16);
        out.extend_from_slice(suffix);
        out.extend_from_slice(value);
        // The inode before them is a multiple of 4 too.
        out.resize(out.len().next_multiple_of(4), 0);
    }
}

/// How a folder's names fall into blocks: each begins with its entries, in order, and goes on with their
/// names.
pub(crate) struct Dirents<'t> {
    /// Sorted by name, `.` and `..` among them.
    names: Vec<&'t [u8]>,
    /// The index in `names` behind the last of each block.
    ends: Vec<usize>,
    /// Bytes of all blocks, the last one counted as far as it is used.
    pub(crate) bytes: u64,
}

impl<'t> Dirents<'t> {
    /// Lays out `names`, which come sorted.
    pub(crate) fn new(names: impl Iterator<Item = &'t [u8]>) -> Dirents<'t> {
        let mut names: Vec<&[u8]> = names.collect();
        for dots in [&b"."[..], b".."] {
            let at = names.partition_point(|&name| name < dots);
            names.insert(at, dots);
        }
        let mut ends = Vec::new();
        let mut used = 0;
        for (index, name) in names.iter().enumerate() {
            let more = DIRENT + name.len();
            if used + more > BLOCK as usize {
                ends.push(index);
                used = 0;
            }
            used += more;
        }
        let bytes = ends.len() as u64 * BLOCK + used as u64;
        ends.push(names.len());
        Dirents { names, ends, bytes }
    }

    /// The blocks' content; `look_up` gives each name's inode number and kind.
    pub(crate) fn encode<'k>(&self, look_up: impl Fn(&[u8]) -> (u64, &'k Kind)) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.bytes as usize);
        let mut start = 0;
        for &end in &self.ends {
            out.resize(out.len().next_multiple_of(BLOCK as usize), 0);
            let names = &self.names[start..end];
            let mut name_at = names.len() * DIRENT;
            for name in names {
                let (nid, kind) = look_up(name);
                put64(&mut out, nid);
                put16(&mut out, name_at as u16);
                out.extend_from_slice(&[dirent_type(kind), 0]);
                name_at += name.len();
            }
            out.extend(names.iter().copied().flatten());
            start = end;
        }
        out
    }
}

fn put16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}
