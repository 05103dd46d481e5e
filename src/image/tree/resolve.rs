//! Finding the way to an entry, symbolic links followed inside the tree only.

use std::borrow::Cow;

use super::{EntryPath, Fault, Folder, Id, Kind, Meta, Problem, ROOT, Tree, count};

/// Symbolic links followed on one way, as Linux has it (`MAXSYMLINKS`).
const MAX_SYMLINKS: usize = 40;

/// What to do about a folder that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Make it.
    Make,
    /// There is nothing to find.
    Stop,
}

impl Tree {
    /// The folder at `path`, made with its parents where it is missing.
    pub(crate) fn make_folders(&mut self, path: &[&[u8]]) -> Result<Id, Fault> {
        match self.folder(path, Missing::Make)? {
            Some(folder) => Ok(folder),
            None => Err(Problem::NotAFolder(EntryPath(path.join(&b'/'))).into()),
        }
    }

    /// The folder at `path`. A missing one, or something else in its place, is `None` with [`Missing::Stop`].
    pub(crate) fn folder(&mut self, path: &[&[u8]], missing: Missing) -> Result<Option<Id>, Fault> {
        let mut way = vec![ROOT];
        let mut links = 0;
        let mut steps: Vec<Cow<'_, [u8]>> = path.iter().rev().map(|&step| Cow::Borrowed(step)).collect();
        while let Some(step) = steps.pop() {
            let here = way.last().copied().unwrap_or(ROOT);
            match &*step {
                b"" | b"." => continue,
                b".." => {
                    way.truncate(way.len().saturating_sub(1).max(1));
                    continue;
                }
                _ => {}
            }
            let next = self.names(here).get(&*step).map(|name| name.inode);
            let Some(next) = next else {
                if missing == Missing::Stop {
                    return Ok(None);
                }
                self.count_entry()?;
                let meta = Meta::implicit_folder();
                self.count_metadata(step.len(), &meta, 0)?;
                let depth = self.depth_below(here)?;
                let content = Kind::Folder(Folder { depth, ..Folder::default() });
                way.push(self.insert(here, &step, meta, content));
                continue;
            };
            match &self.inode(next).kind {
                Kind::Folder(_) => way.push(next),
                Kind::Symlink(target) => {
                    links += 1;
                    if links > MAX_SYMLINKS {
                        return Err(Problem::SymlinkLoop.into());
                    }
                    if target.starts_with(b"/") {
                        way.truncate(1);
                    }
                    let before = steps.len();
                    steps.extend(target.split(|&b| b == b'/').rev().map(|step| Cow::Owned(step.to_vec())));
                    let more = (steps.len() - before) as u64;
                    count(&mut self.link_steps, more, "link_steps", self.limits.link_steps)?;
                }
                _ if missing == Missing::Stop => return Ok(None),
                _ => return Err(Problem::NotAFolder(EntryPath(step.into_owned())).into()),
            }
        }
        Ok(way.last().copied())
    }

    /// The inode a hard link to `path` shares; its last step is not followed. The error is `None` if there is
    /// nothing.
    pub(crate) fn link_target(&mut self, path: &[&[u8]]) -> Result<Id, Option<Fault>> {
        let Some((&name, parents)) = path.split_last() else {
            return Err(Some(Problem::LinkToFolder(EntryPath(b"/".to_vec())).into()));
        };
        let folder = self.folder(parents, Missing::Stop)?.ok_or(None)?;
        let target = self.names(folder).get(name).ok_or(None)?.inode;
        match self.inode(target).kind {
            Kind::Folder(_) => Err(Some(Problem::LinkToFolder(EntryPath(path.join(&b'/'))).into())),
            _ => Ok(target),
        }
    }
}
