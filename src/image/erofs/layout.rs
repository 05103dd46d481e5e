//! In which order inodes go on the disk, and where.

use super::format::{BLOCK, SLOT};
use crate::image::tree::{Id, Kind, ROOT, Tree};

/// Blocks that are kept in mind because they may have room for something small.
const OPEN_BLOCKS: usize = 8;
/// Bytes left free at the start, so that no inode has the number 0, which readers take for none.
const RESERVED: usize = 2 * SLOT as usize;

/// What the tree looks like from its root: only what is still reachable. Lists go by [`Id`].
pub(super) struct Order {
    /// Folder by folder, the root first: what is listed together lies together.
    pub(super) ids: Vec<Id>,
    /// Number of names: for a folder its own, its `.` and the `..` of the folders in it; 0 if unreachable.
    links: Vec<u32>,
    /// Of each folder; the root's is the root.
    parents: Vec<Id>,
}

impl Order {
    pub(super) fn of(tree: &Tree) -> Order {
        let count = tree.inodes().len();
        let mut order = Order { ids: vec![ROOT], links: vec![0; count], parents: vec![ROOT; count] };
        order.links[ROOT as usize] = 2;
        let mut folders = vec![ROOT];
        while let Some(folder) = folders.pop() {
            let Kind::Folder(content) = &tree.inode(folder).kind else { continue };
            let before = folders.len();
            for name in content.names.values() {
                let id = name.inode;
                let links = &mut order.links[id as usize];
                *links += 1;
                if *links == 1 {
                    order.ids.push(id);
                }
                if let Kind::Folder(_) = tree.inode(id).kind {
                    *links += 1;
                    order.links[folder as usize] += 1;
                    order.parents[id as usize] = folder;
                    folders.push(id);
                }
            }
            folders[before..].reverse();
        }
        order
    }

    pub(super) fn links(&self, id: Id) -> u32 {
        self.links[id as usize]
    }

    pub(super) fn parent(&self, folder: Id) -> Id {
        self.parents[folder as usize]
    }
}

/// Packs inodes into blocks such that neither an inode nor its tail crosses from one into the next.
pub(super) struct Packer {
    /// Blocks begun.
    blocks: u64,
    /// Blocks with room: number and bytes used.
    open: Vec<(u64, usize)>,
}

impl Packer {
    pub(super) fn new() -> Packer {
        Packer { blocks: 1, open: vec![(0, RESERVED)] }
    }

    /// A place for an inode of `core` bytes with a tail: its byte in the metadata area. Only an inode whose
    /// attributes alone are too long crosses blocks; it begins one, and has no tail.
    pub(super) fn place(&mut self, core: usize, tail: usize) -> u64 {
        let block = BLOCK as usize;
        let bytes = core + tail;
        if let Some(at) = self.open.iter().position(|&(_, used)| used + bytes <= block) {
            let (number, used) = self.open[at];
            self.open[at].1 = (used + bytes).next_multiple_of(SLOT as usize);
            return number * BLOCK + used as u64;
        }
        let first = self.blocks;
        self.blocks += bytes.div_ceil(block) as u64;
        if self.open.len() == OPEN_BLOCKS {
            let fullest = (0..OPEN_BLOCKS).max_by_key(|&at| self.open[at].1).unwrap_or_default();
            self.open.remove(fullest);
        }
        let used = bytes - (bytes - 1) / block * block;
        self.open.push((self.blocks - 1, used.next_multiple_of(SLOT as usize)));
        first * BLOCK
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn inodes_are_on_slots_apart_and_their_tails_within_a_block(
            inodes in prop::collection::vec((64..9000usize, 0..4096usize), 1..200),
        ) {
            let block = BLOCK as usize;
            let mut packer = Packer::new();
            let mut taken = vec![(0, RESERVED as u64)];
            for (core, tail) in inodes {
                let core = core.next_multiple_of(4);
                let tail = if core + tail > block { 0 } else { tail };
                let at = packer.place(core, tail);
                let end = at + (core + tail) as u64;
                prop_assert_eq!(at % SLOT, 0);
                prop_assert!(core + tail > block || at / BLOCK == (end - 1) / BLOCK);
                prop_assert!(core <= block || at.is_multiple_of(BLOCK));
                taken.push((at, end));
            }
            taken.sort_unstable();
            prop_assert!(taken.is_sorted_by(|(_, end), (at, _)| end <= at));
        }
    }
}
