//! Writes a tree as an EROFS image.
//!
//! ```text
//! block 0      bytes 1024.. superblock
//! blocks 1..   bodies of files, in the order they came; then folders of more than a block, long link targets
//! meta_block.. inodes, each with its extended attributes and the tail of its data; inode numbers count
//!              32-byte slots from here
//! ```
//!
//! `data` fills the blocks, `layout` finds each inode its place, `format` knows the bytes.

mod data;
mod format;
mod layout;

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use nix::fcntl::{FallocateFlags, fallocate};

pub(crate) use self::data::{Body, BodyWriter, DataWriter};
pub(crate) use self::format::check_xattrs;
use self::format::{
    BLOCK, Dirents, INODE, RawInode, SLOT, SUPERBLOCK_AT, Superblock, XATTR_HEADER, xattr_bytes,
};
use self::layout::{Order, Packer};
use super::build::{LimitHit, RootDisk};
use super::layer::Fault;
use super::tree::{Folder, Id, Inode, Kind, Tree, Xattrs};

/// Bytes of an inode with its extended attributes, without a tail.
pub(crate) fn inode_bytes(xattrs: &Xattrs) -> usize {
    INODE + xattr_bytes(xattrs)
}

/// Where an inode and its data are to be.
struct Placed {
    id: Id,
    /// Place in the order, from 1.
    serial: u32,
    /// Byte in the metadata area.
    at: u64,
    size: u64,
    first_block: u32,
    tail: usize,
}

/// Writes what the bodies left to write: folders, inodes, the superblock.
pub(crate) fn finish(tree: &Tree, mut data: DataWriter<'_>) -> Result<RootDisk, Fault> {
    let order = Order::of(tree);
    let mut placed = place(tree, &order, &mut data)?;
    let meta_block = data.next_block();
    let mut positions = vec![0; tree.inodes().len()];
    for placed in &placed {
        positions[placed.id as usize] = placed.at;
    }
    let nid = |id: Id| positions[id as usize] / SLOT;

    // Data before inodes, both in the order of their places.
    let mut tails: HashMap<Id, Vec<u8>> = HashMap::new();
    for Placed { id, first_block, tail, .. } in &placed {
        let bytes = match &tree.inode(*id).kind {
            Kind::Folder(folder) => encode_folder(tree, &order, *id, folder, nid),
            Kind::Symlink(target) => target.to_vec(),
            _ => continue,
        };
        let (blocks, rest) = bytes.split_at(bytes.len() - tail);
        if !blocks.is_empty() {
            data.write(u64::from(*first_block) * BLOCK, blocks)?;
        }
        tails.insert(*id, rest.to_vec());
    }
    placed.sort_unstable_by_key(|placed| placed.at);
    let mut bytes = Vec::new();
    let mut end = meta_block * BLOCK;
    for Placed { id, serial, at, size, first_block, tail } in &placed {
        let Inode { meta, kind } = tree.inode(*id);
        bytes.clear();
        RawInode {
            meta,
            kind,
            serial: *serial,
            links: order.links(*id),
            size: *size,
            first_block: *first_block,
            inline: *tail > 0,
        }
        .encode(&mut bytes);
        match kind {
            Kind::File(body) => bytes.extend_from_slice(&body.tail),
            _ => bytes.extend(tails.get(id).into_iter().flatten()),
        }
        data.write(meta_block * BLOCK + at, &bytes)?;
        end = meta_block * BLOCK + at + bytes.len() as u64;
    }
    data.flush()?;

    // Some readers (fsck.erofs 1.5) look for an attribute header behind every inode, even one without
    // attributes at the very end.
    let blocks = (end + XATTR_HEADER as u64).div_ceil(BLOCK);
    let limit = LimitHit { limit: "disk_bytes", at_most: u64::from(u32::MAX) * BLOCK };
    let superblock = Superblock {
        // The root is the first inode placed.
        root_nid: u16::try_from(nid(super::tree::ROOT)).map_err(|_| limit)?,
        inodes: placed.len() as u64,
        blocks: u32::try_from(blocks).map_err(|_| limit)?,
        meta_block: u32::try_from(meta_block).map_err(|_| limit)?,
    };
    let file = data.file();
    file.write_all_at(&superblock.encode(), SUPERBLOCK_AT).map_err(Fault::Write)?;
    file.set_len(blocks * BLOCK).map_err(Fault::Write)?;
    punch_out_the_dead(tree, &order, file)?;
    Ok(RootDisk { bytes: blocks * BLOCK, entries: placed.len() as u64, worker_manifest: None })
}

/// Finds every inode its place, and the data that is not yet in the data area too.
fn place(tree: &Tree, order: &Order, data: &mut DataWriter<'_>) -> Result<Vec<Placed>, LimitHit> {
    let mut packer = Packer::new();
    let mut placed = Vec::with_capacity(order.ids.len());
    for (&id, serial) in order.ids.iter().zip(1..) {
        let Inode { meta, kind } = tree.inode(id);
        let core = inode_bytes(&meta.xattrs);
        let (size, first_block, tail) = match kind {
            Kind::File(body) => (body.size, body.first_block, body.tail.len()),
            Kind::Folder(folder) => place_data(data, Dirents::new(names(folder)).bytes, core)?,
            Kind::Symlink(target) => place_data(data, target.len() as u64, core)?,
            _ => (0, 0, 0),
        };
        placed.push(Placed { id, serial, at: packer.place(core, tail), size, first_block, tail });
    }
    Ok(placed)
}

fn place_data(data: &mut DataWriter<'_>, size: u64, core: usize) -> Result<(u64, u32, usize), LimitHit> {
    let mut tail = (size % BLOCK) as usize;
    if core + tail > BLOCK as usize {
        tail = 0;
    }
    let first_block = match size - tail as u64 {
        0 => 0,
        bytes => data.allocate(bytes)?,
    };
    Ok((size, first_block, tail))
}

fn names(folder: &Folder) -> impl Iterator<Item = &[u8]> {
    folder.names.keys().map(|name| &**name)
}

fn encode_folder(tree: &Tree, order: &Order, id: Id, folder: &Folder, nid: impl Fn(Id) -> u64) -> Vec<u8> {
    Dirents::new(names(folder)).encode(|name| {
        let inode = match name {
            b"." => id,
            b".." => order.parent(id),
            _ => folder.names[name].inode,
        };
        (nid(inode), &tree.inode(inode).kind)
    })
}

/// Gives the host back what bodies take that a later layer hid or replaced.
fn punch_out_the_dead(tree: &Tree, order: &Order, file: &File) -> Result<(), Fault> {
    for (id, inode) in tree.inodes().iter().enumerate() {
        let Kind::File(body) = &inode.kind else { continue };
        let length = body.data_bytes();
        if length == 0 || order.links(id as Id) > 0 {
            continue;
        }
        let at = u64::from(body.first_block) * BLOCK;
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        if fallocate(file, flags, at.cast_signed(), length.cast_signed()).is_err() {
            // Not every file system has holes, but the bytes must not depend on it.
            let zeros = vec![0; length.min(1 << 20) as usize];
            for start in (at..at + length).step_by(zeros.len()) {
                let n = (at + length - start).min(zeros.len() as u64) as usize;
                file.write_all_at(&zeros[..n], start).map_err(Fault::Write)?;
            }
        }
    }
    Ok(())
}
