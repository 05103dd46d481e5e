//! What has to be done in a machine so that it has the project as it is now. Pure, but for the hashes it asks for.
//!
//! A file that has the size and time it had when it was sent is taken to be the same; one whose time differs is
//! hashed; one whose size differs is sent. A time that is hardly older than the listing says nothing: the file
//! may have been changed once more within the clock's step, so it is hashed too.
//!
//! Only what is in the index is ever removed: what the machine made itself (installed packages, caches, data) is
//! its own.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use super::files::{self, EntryKind, FileEntry};
use super::index::{Hash, INDEX_NAME, Index, Indexed, IndexedKind};

/// How much older than the listing a file's time has to be to be believed: the coarsest step of file systems.
pub const RACY_NS: i128 = 2_000_000_000;

/// Mode in the index of a folder that may not be there yet, and of what may be a folder or something else.
const UNSENT_MODE: u32 = u32::MAX;

/// One thing that goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// Relative to the project.
    pub path: Vec<u8>,
    /// How much of it goes.
    pub how: Remove,
}

/// How a path is removed; one that is gone already is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remove {
    /// A file or a link.
    File,
    /// A folder, if nothing is left in it: what the machine made in it stays.
    EmptyFolder,
    /// A folder with all that is in it, because something else takes its place.
    Tree,
}

/// One thing to be sent. It takes the place of whatever is there, but for a folder, which is kept for a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// What.
    pub entry: FileEntry,
    /// Of a file, if it had to be known.
    pub sha256: Option<Hash>,
}

/// What is to be done, in the order of the fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SyncPlan {
    /// What is in a folder comes before the folder.
    pub remove: Vec<Removal>,
    /// Sorted by path: a folder comes before what is in it.
    pub send: Vec<Outgoing>,
    /// What only gets its mode and time.
    pub adjust: Vec<FileEntry>,
    /// What is there as it should be once the plan is carried out, but for what is sent.
    kept: Vec<Indexed>,
}

impl SyncPlan {
    /// Whether the machine has it all already.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.send.is_empty() && self.adjust.is_empty()
    }

    /// What is to be on disk while the plan is carried out, so that whoever finds it half done sends and removes again
    /// whatever may be missing: what is sent counts as there and as unlike any file.
    pub fn under_way(&self, before: &Index) -> Index {
        const UNLIKE: IndexedKind =
            IndexedKind::File { size: u64::MAX, mtime_ns: i128::MIN, sha256: [0; size_of::<Hash>()] };
        let mut there: BTreeMap<&[u8], Indexed> =
            before.entries.iter().map(|entry| (&entry.path[..], entry.clone())).collect();
        for Outgoing { entry, .. } in &self.send {
            let (kind, mode) = match entry.kind {
                EntryKind::Folder => (IndexedKind::Folder, UNSENT_MODE),
                EntryKind::File { .. } | EntryKind::Link { .. } => (UNLIKE, entry.mode),
            };
            let is_folder = |kind: &IndexedKind| *kind == IndexedKind::Folder;
            let was_other = |old: &Indexed| is_either(old) || is_folder(&old.kind) != is_folder(&kind);
            let (kind, mode) = match there.get(&entry.path[..]).is_some_and(was_other) {
                true => (UNLIKE, UNSENT_MODE),
                false => (kind, mode),
            };
            there.insert(&entry.path, Indexed { path: entry.path.clone(), kind, mode });
        }
        Index { taken_ns: before.taken_ns, entries: there.into_values().collect() }
    }

    /// The index once the plan is carried out. `taken_ns` is when the project was listed, and `sent` gives the
    /// hash of the bytes that were really sent of a file; a file without one counts as not there.
    pub fn finish(self, taken_ns: i128, mut sent: impl FnMut(&Outgoing) -> Option<Hash>) -> Index {
        let mut entries = self.kept;
        entries.extend(self.send.into_iter().filter_map(|outgoing| {
            let sha256 = match outgoing.entry.kind {
                EntryKind::File { .. } => sent(&outgoing)?,
                EntryKind::Folder | EntryKind::Link { .. } => Hash::default(),
            };
            Some(indexed(outgoing.entry, sha256))
        }));
        entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Index { taken_ns, entries }
    }
}

/// The hash counts for files only.
fn indexed(entry: FileEntry, sha256: Hash) -> Indexed {
    let kind = match entry.kind {
        EntryKind::Folder => IndexedKind::Folder,
        EntryKind::File { size, mtime_ns } => IndexedKind::File { size, mtime_ns, sha256 },
        EntryKind::Link { target } => IndexedKind::Link { target },
    };
    Indexed { path: entry.path, kind, mode: entry.mode }
}

/// Compares the project, sorted by path, with what the machine has. `hash` reads a file of the project.
pub fn diff<E>(
    project: &[FileEntry],
    index: &Index,
    mut hash: impl FnMut(&FileEntry) -> Result<Hash, E>,
) -> Result<SyncPlan, E> {
    let mut plan = SyncPlan::default();
    let mut there = index.entries.iter().peekable();
    for entry in project {
        while let Some(gone) = there.next_if(|old| old.path < entry.path) {
            plan.remove.extend(removals(gone));
        }
        match there.next_if(|old| old.path == entry.path) {
            None => plan.send.push(Outgoing { entry: entry.clone(), sha256: None }),
            Some(old) => compare(entry, old, index.taken_ns, &mut hash, &mut plan)?,
        }
    }
    plan.remove.extend(there.flat_map(removals));

    // What is in a folder that goes as a whole needs no mention.
    let trees: HashSet<Vec<u8>> =
        plan.remove.iter().filter(|gone| gone.how == Remove::Tree).map(|gone| gone.path.clone()).collect();
    if !trees.is_empty() {
        plan.remove.retain(|gone| !above(&gone.path).any(|folder| trees.contains(folder)));
    }
    plan.remove.sort_unstable_by(|a, b| b.path.cmp(&a.path));
    Ok(plan)
}

/// Whether the project in `folder` has been edited since a machine got it: `notes` is where the index of that is. What
/// cannot be read counts as edited: the next copy tells better. Blocks.
pub fn is_edited(folder: &Path, exclude: &[String], notes: &Path) -> bool {
    let Ok(listed) = files::list(folder, exclude) else { return true };
    let Ok(Some(index)) = Index::read(&notes.join(INDEX_NAME)) else { return true };
    !diff(&listed.entries, &index, |entry| files::hash(folder, entry)).is_ok_and(|plan| plan.is_empty())
}

/// Whether it may be a folder or something else.
fn is_either(old: &Indexed) -> bool {
    old.mode == UNSENT_MODE && old.kind != IndexedKind::Folder
}

fn removals(gone: &Indexed) -> impl Iterator<Item = Removal> {
    let folder = is_either(gone).then(|| Removal { path: gone.path.clone(), how: Remove::EmptyFolder });
    std::iter::once(removal(gone)).chain(folder)
}

fn removal(gone: &Indexed) -> Removal {
    let how = match gone.kind {
        IndexedKind::Folder => Remove::EmptyFolder,
        IndexedKind::File { .. } | IndexedKind::Link { .. } => Remove::File,
    };
    Removal { path: gone.path.clone(), how }
}

fn compare<E>(
    entry: &FileEntry,
    old: &Indexed,
    taken_ns: i128,
    hash: &mut impl FnMut(&FileEntry) -> Result<Hash, E>,
    plan: &mut SyncPlan,
) -> Result<(), E> {
    let mut send = |sha256| plan.send.push(Outgoing { entry: entry.clone(), sha256 });
    if is_either(old) {
        let how = if entry.kind == EntryKind::Folder { Remove::File } else { Remove::Tree };
        send(None);
        plan.remove.push(Removal { path: old.path.clone(), how });
        return Ok(());
    }
    let (sha256, same_time) = match (&entry.kind, &old.kind) {
        (EntryKind::Folder, IndexedKind::Folder) if old.mode == UNSENT_MODE => {
            send(None);
            return Ok(());
        }
        (EntryKind::Folder, IndexedKind::Folder) => (Hash::default(), true),
        (EntryKind::Link { target }, IndexedKind::Link { target: old }) => {
            if target != old {
                send(None);
                return Ok(());
            }
            (Hash::default(), true)
        }
        (
            EntryKind::File { size, mtime_ns },
            IndexedKind::File { size: old_size, mtime_ns: old_mtime_ns, sha256: old_sha256 },
        ) => {
            if size != old_size {
                send(None);
                return Ok(());
            }
            let same_time = mtime_ns == old_mtime_ns;
            if !same_time || *mtime_ns > taken_ns - RACY_NS {
                let now = hash(entry)?;
                if now != *old_sha256 {
                    send(Some(now));
                    return Ok(());
                }
            }
            (*old_sha256, same_time)
        }
        (EntryKind::Folder, IndexedKind::File { .. } | IndexedKind::Link { .. }) => {
            send(None);
            plan.remove.push(removal(old));
            return Ok(());
        }
        (EntryKind::File { .. } | EntryKind::Link { .. }, IndexedKind::Folder) => {
            send(None);
            plan.remove.push(Removal { path: old.path.clone(), how: Remove::Tree });
            return Ok(());
        }
        // By a rename, so neither is ever missing.
        (EntryKind::File { .. }, IndexedKind::Link { .. })
        | (EntryKind::Link { .. }, IndexedKind::File { .. }) => {
            send(None);
            return Ok(());
        }
    };
    if !same_time || entry.mode != old.mode {
        plan.adjust.push(entry.clone());
    }
    plan.kept.push(indexed(entry.clone(), sha256));
    Ok(())
}

/// The folders above a path.
fn above(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &path[..at])
}

#[cfg(test)]
mod tests;
