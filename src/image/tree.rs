//! The merged layers as a tree in memory: everything but the bodies of files.
//!
//! Each name in a folder remembers the layer that put it there, because a whiteout hides what *lower* layers
//! have, wherever in its own layer it stands. Nothing here touches the host: a symbolic link is followed by
//! looking its target up in this tree, and `..` stops at its root.

mod resolve;

use std::collections::BTreeMap;

use super::build::{EntryPath, LimitHit, Limits, Problem};
use super::erofs::Body;
use super::layer::Fault;

pub(crate) use self::resolve::Missing;

/// Extended attributes by their full name (`user.x`).
pub(crate) type Xattrs = iii_archive::read::Xattrs;

/// Which inode; the root is [`ROOT`].
pub(crate) type Id = u32;

/// The root folder.
pub(crate) const ROOT: Id = 0;

/// The permission bits of folders that no layer describes.
const IMPLICIT_MODE: u16 = 0o755;

/// What all kinds of inode have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    /// Permissions with setuid, setgid and sticky; 12 bits.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since the epoch.
    pub(crate) mtime: i64,
    pub(crate) mtime_nsec: u32,
    pub(crate) xattrs: Xattrs,
}

impl Meta {
    fn implicit_folder() -> Meta {
        Meta { mode: IMPLICIT_MODE, ..Meta::default() }
    }
}

/// What only one kind of inode has.
#[derive(Debug)]
pub(crate) enum Kind {
    File(Body),
    Folder(Folder),
    Symlink(Box<[u8]>),
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

/// A folder's names.
#[derive(Debug, Default)]
pub(crate) struct Folder {
    pub(crate) names: BTreeMap<Box<[u8]>, Name>,
    /// Folders above it.
    depth: u16,
    /// The last layer that has hidden all that lower layers put here: it need not look again.
    hidden_by: Option<u32>,
}

/// What a name in a folder stands for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Name {
    pub(crate) inode: Id,
    /// The layer whose entry put it there or described it.
    layer: u32,
}

/// One inode, reachable or not any more.
#[derive(Debug)]
pub(crate) struct Inode {
    pub(crate) meta: Meta,
    pub(crate) kind: Kind,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Tree {
    inodes: Vec<Inode>,
    layer: u32,
    limits: Limits,
    entries: u64,
    devices: u64,
    metadata_bytes: u64,
    link_steps: u64,
}

impl Tree {
    /// A root folder with nothing in it.
    pub(crate) fn new(limits: &Limits) -> Tree {
        let root = Inode { meta: Meta::implicit_folder(), kind: Kind::Folder(Folder::default()) };
        Tree {
            inodes: vec![root],
            layer: 0,
            limits: limits.clone(),
            entries: 0,
            devices: 0,
            metadata_bytes: 0,
            link_steps: 0,
        }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// All inodes that ever were; an inode's [`Id`] is its place in it.
    pub(crate) fn inodes(&self) -> &[Inode] {
        &self.inodes
    }

    pub(crate) fn inode(&self, id: Id) -> &Inode {
        &self.inodes[id as usize]
    }

    /// What follows is layer number `layer`; numbers grow.
    pub(crate) fn begin_layer(&mut self, layer: u32) {
        self.layer = layer;
    }

    /// Counts one entry, or one folder that an entry needs.
    pub(crate) fn count_entry(&mut self) -> Result<(), LimitHit> {
        count(&mut self.entries, 1, "entries", self.limits.entries)
    }

    /// Counts one device node.
    pub(crate) fn count_device(&mut self) -> Result<(), LimitHit> {
        count(&mut self.devices, 1, "device_nodes", self.limits.device_nodes)
    }

    /// Describes the root folder.
    pub(crate) fn set_root(&mut self, meta: Meta) -> Result<(), Fault> {
        self.count_metadata(0, &meta, 0)?;
        self.inodes[ROOT as usize].meta = meta;
        Ok(())
    }

    /// Puts something other than a folder under `name`, in place of what is there.
    pub(crate) fn place(&mut self, folder: Id, name: &[u8], meta: Meta, kind: Kind) -> Result<(), Fault> {
        let target = if let Kind::Symlink(target) = &kind { target.len() } else { 0 };
        self.count_metadata(name.len(), &meta, target)?;
        self.insert(folder, name, meta, kind);
        Ok(())
    }

    /// Puts a folder under `name`: an existing one keeps what is in it and is described anew, anything else is
    /// replaced, symbolic links too.
    pub(crate) fn place_folder(&mut self, folder: Id, name: &[u8], meta: Meta) -> Result<(), Fault> {
        self.count_metadata(name.len(), &meta, 0)?;
        let layer = self.layer;
        if let Some(existing) = self.names(folder).get_mut(name) {
            let id = existing.inode;
            existing.layer = layer;
            let inode = &mut self.inodes[id as usize];
            if let Kind::Folder(_) = inode.kind {
                inode.meta = meta;
                return Ok(());
            }
        }
        let depth = self.depth_below(folder)?;
        self.insert(folder, name, meta, Kind::Folder(Folder { depth, ..Folder::default() }));
        Ok(())
    }

    /// Gives an inode one more name.
    pub(crate) fn link(&mut self, folder: Id, name: &[u8], inode: Id) -> Result<(), Fault> {
        count(&mut self.metadata_bytes, name.len() as u64, "metadata_bytes", self.limits.metadata_bytes)?;
        let layer = self.layer;
        self.names(folder).insert(name.into(), Name { inode, layer });
        Ok(())
    }

    /// Hides what lower layers have under `name`. A folder that this layer has put something into stays, with
    /// that in it.
    pub(crate) fn hide(&mut self, folder: Id, name: &[u8]) {
        let Some(&entry) = self.names(folder).get(name) else { return };
        match self.survivor(entry) {
            Some(kept) => self.names(folder).insert(name.into(), kept),
            None => self.names(folder).remove(name),
        };
    }

    /// Hides all that lower layers have in a folder.
    pub(crate) fn hide_content(&mut self, folder: Id) {
        let layer = self.layer;
        let Kind::Folder(content) = &mut self.inodes[folder as usize].kind else { return };
        if content.hidden_by.replace(layer) == Some(layer) {
            return;
        }
        // Recursion is as deep as the tree, which `path_depth` bounds.
        let mut names = std::mem::take(&mut content.names);
        names.retain(|_, entry| match self.survivor(*entry) {
            Some(kept) => {
                *entry = kept;
                true
            }
            None => false,
        });
        *self.names(folder) = names;
    }

    /// What is left of an entry when all of lower layers is hidden.
    fn survivor(&mut self, entry: Name) -> Option<Name> {
        let Kind::Folder(_) = self.inode(entry.inode).kind else {
            return (entry.layer == self.layer).then_some(entry);
        };
        self.hide_content(entry.inode);
        if entry.layer == self.layer {
            return Some(entry);
        }
        if self.names(entry.inode).is_empty() {
            return None;
        }
        // This layer has made it anew by putting something into it, whichever of the two came first.
        self.inodes[entry.inode as usize].meta = Meta::implicit_folder();
        Some(Name { layer: self.layer, ..entry })
    }

    fn names(&mut self, folder: Id) -> &mut BTreeMap<Box<[u8]>, Name> {
        match &mut self.inodes[folder as usize].kind {
            Kind::Folder(content) => &mut content.names,
            other => unreachable!("{folder} was looked up as a folder and is {other:?}"),
        }
    }

    fn insert(&mut self, folder: Id, name: &[u8], meta: Meta, kind: Kind) -> Id {
        let inode = self.inodes.len() as Id;
        self.inodes.push(Inode { meta, kind });
        let layer = self.layer;
        self.names(folder).insert(name.into(), Name { inode, layer });
        inode
    }

    fn depth_below(&self, folder: Id) -> Result<u16, LimitHit> {
        let Kind::Folder(Folder { depth, .. }) = self.inode(folder).kind else { return Ok(0) };
        let limit = self.limits.path_depth;
        if depth >= limit {
            return Err(LimitHit { limit: "path_depth", at_most: limit.into() });
        }
        Ok(depth + 1)
    }

    fn count_metadata(&mut self, name: usize, meta: &Meta, target: usize) -> Result<(), LimitHit> {
        let xattrs: usize = meta.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        let bytes = (name + xattrs + target) as u64;
        count(&mut self.metadata_bytes, bytes, "metadata_bytes", self.limits.metadata_bytes)
    }
}

fn count(counter: &mut u64, more: u64, limit: &'static str, at_most: u64) -> Result<(), LimitHit> {
    *counter = counter.saturating_add(more);
    if *counter > at_most { Err(LimitHit { limit, at_most }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_through_symbolic_links_ends_inside_the_tree() {
        let mut tree = Tree::new(&Limits::default());
        let usr = tree.make_folders(&[b"usr"]).unwrap();
        let bin = tree.make_folders(&[b"usr", b"bin"]).unwrap();
        for (name, target, end) in [
            ("plain", "usr/bin", Some(bin)),
            ("absolute", "/usr//bin/.", Some(bin)),
            ("climbing", "../../../usr/bin/..", Some(usr)),
            ("chained", "plain/../bin", Some(bin)),
            ("root", "/", Some(ROOT)),
            ("dangling", "usr/missing", None),
        ] {
            let target = Kind::Symlink(target.as_bytes().into());
            tree.place(ROOT, name.as_bytes(), Meta::default(), target).unwrap();
            assert_eq!(tree.folder(&[name.as_bytes()], Missing::Stop).unwrap(), end, "{name}");
        }
        let made = tree.folder(&[b"dangling", b"x"], Missing::Make).unwrap();
        assert_eq!(tree.folder(&[b"usr", b"missing", b"x"], Missing::Stop).unwrap(), made);
    }

    #[test]
    fn a_folder_is_searched_once_a_layer_for_what_to_hide() {
        let mut tree = Tree::new(&Limits::default());
        let folder = tree.make_folders(&[b"d"]).unwrap();
        tree.place(folder, b"old", Meta::default(), Kind::Fifo).unwrap();
        tree.begin_layer(1);
        tree.hide_content(folder);
        tree.place(folder, b"new", Meta::default(), Kind::Fifo).unwrap();
        tree.hide_content(folder);
        assert_eq!(tree.names(folder).keys().collect::<Vec<_>>(), [&Box::from(&b"new"[..])]);
        tree.begin_layer(2);
        tree.hide_content(folder);
        assert!(tree.names(folder).is_empty());
    }
}
