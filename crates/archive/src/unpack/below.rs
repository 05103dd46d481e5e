//! One folder that is open, and the only one that anything is made in.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2, renameat};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstatat, futimens, makedev, mkdirat,
    mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, mkfifoat, symlinkat, unlinkat};

use super::{Problem, Rules};
use crate::name::EntryPath;
use crate::read::{Archive, Entry, EntryKind, Malformed, ReadError, Source};

/// Begins the names of files that are not whole yet.
const UNFINISHED: &str = ".iii-cp-";
/// How many such names are tried before something must be wrong.
const MAX_NAME_TRIES: u32 = 100;
/// Folders that an archive has below, but no entry for.
const UNTOLD_FOLDER: Mode = Mode::from_bits_truncate(0o755);
/// A folder that is being filled.
const OPEN_FOLDER: Mode = Mode::S_IRWXU;

/// What an entry says of its inode.
#[derive(Debug, Clone, Copy)]
pub(super) struct Meta {
    pub(super) mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, u32),
}

impl Meta {
    pub(super) fn of(entry: &Entry) -> Meta {
        Meta { mode: u32::from(entry.mode), uid: entry.uid, gid: entry.gid, mtime: entry.mtime }
    }

    fn times(&self) -> (TimeSpec, TimeSpec) {
        (TimeSpec::UTIME_OMIT, TimeSpec::new(self.mtime.0, i64::from(self.mtime.1)))
    }

    fn owner(&self) -> (Option<Uid>, Option<Gid>) {
        (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))
    }
}

/// A folder on the way from the destination to the current one.
#[derive(Debug)]
struct Step {
    name: Vec<u8>,
    /// What it gets when it is left: until then it must be writable.
    meta: Option<Meta>,
}

/// The destination, and the folder below it in which entries are being made.
#[derive(Debug)]
pub(super) struct Below {
    root: OwnedFd,
    at: OwnedFd,
    steps: Vec<Step>,
    /// What the destination itself gets in the end.
    root_meta: Option<Meta>,
    rules: Rules,
}

type Closing = (EntryPath, Problem);

impl Below {
    /// Opens the folder that the user named, links on the way followed.
    pub(super) fn open(path: &Path, rules: Rules) -> Result<Below, Problem> {
        let root = open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        let at = root.try_clone()?;
        Ok(Below { root, at, steps: Vec::new(), root_meta: None, rules })
    }

    /// Makes the folder `name`, or takes the one that is there, for the destination.
    pub(super) fn enter_top(&mut self, name: &[u8], meta: Meta) -> Result<(), Problem> {
        self.make_folder(name)?;
        self.root = open_folder(&self.at, name)?;
        self.at = self.root.try_clone()?;
        self.root_meta = Some(meta);
        Ok(())
    }

    /// Goes to the folder that `parents` lead to from the destination; makes what is missing of them.
    pub(super) fn enter(&mut self, parents: &[&[u8]]) -> Result<(), Problem> {
        let common = self.steps.iter().zip(parents).take_while(|(step, name)| step.name == **name).count();
        self.leave(common).map_err(|(_, problem)| problem)?;
        for name in &parents[common..] {
            let next = match open_folder(&self.at, name) {
                Err(Problem::System(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                    mkdirat(&self.at, *name, UNTOLD_FOLDER)?;
                    open_folder(&self.at, name)?
                }
                other => other?,
            };
            self.at = next;
            self.steps.push(Step { name: name.to_vec(), meta: None });
        }
        Ok(())
    }

    /// Gives all folders that are still open their permissions.
    pub(super) fn close(mut self) -> Result<(), Closing> {
        let left = self.leave(0);
        let root = match self.root_meta {
            Some(meta) => {
                finish_folder(&self.root, &meta, self.rules).map_err(|e| (EntryPath(vec![b'.']), e))
            }
            None => Ok(()),
        };
        left.and(root)
    }

    /// A folder: new, or there already and now with what the archive says of it. It becomes the current one.
    pub(super) fn folder(&mut self, name: &[u8], meta: Meta) -> Result<(), Problem> {
        self.make_folder(name)?;
        self.at = open_folder(&self.at, name)?;
        self.steps.push(Step { name: name.to_vec(), meta: Some(meta) });
        Ok(())
    }

    /// A file, with its body from the archive. Returns its size.
    pub(super) fn file<S: Source<Error = ReadError>>(
        &mut self,
        name: &[u8],
        meta: Meta,
        entry: &Entry,
        archive: &mut Archive<S>,
    ) -> Result<u64, Problem> {
        let rules = self.rules;
        self.replace(name, |at, unfinished| {
            let flags =
                OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let mut file = File::from(openat(at, unfinished, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
            let filled = fill(&mut file, entry, archive).and_then(|()| finish_file(&file, &meta, rules));
            if filled.is_err() {
                discard(at, unfinished);
            }
            filled
        })?;
        Ok(entry.size)
    }

    /// One more name for a file below the destination: `target`'s steps, spelled `spelled`.
    pub(super) fn hard_link(&mut self, name: &[u8], target: &[&[u8]], spelled: &[u8]) -> Result<(), Problem> {
        let missing = || Problem::LinkTargetMissing(EntryPath(spelled.to_vec()));
        let (file, parents) = target.split_last().ok_or_else(missing)?;
        let parent = match &parents.join(&b'/')[..] {
            b"" => self.root.try_clone()?,
            path => match open_folder(&self.root, path) {
                Err(Problem::System(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                    return Err(missing());
                }
                other => other?,
            },
        };
        // Without AT_SYMLINK_FOLLOW a link is linked itself.
        self.replace(name, |at, unfinished| match linkat(&parent, *file, at, unfinished, AtFlags::empty()) {
            Err(Errno::ENOENT) => Err(missing()),
            other => Ok(other?),
        })
    }

    /// A symbolic link. Nothing here ever follows it.
    pub(super) fn symlink(&mut self, name: &[u8], meta: Meta, target: &[u8]) -> Result<(), Problem> {
        let rules = self.rules;
        self.replace(name, |at, unfinished| {
            symlinkat(target, at, unfinished)?;
            // A link has no permissions.
            finish_inode(at, unfinished, &meta, None, rules).inspect_err(|_| discard(at, unfinished))
        })
    }

    /// A named pipe or a device.
    pub(super) fn node(&mut self, name: &[u8], meta: Meta, kind: EntryKind) -> Result<(), Problem> {
        let rules = self.rules;
        self.replace(name, |at, unfinished| {
            let device = |kind, major: u32, minor: u32| {
                mknodat(at, unfinished, kind, Mode::empty(), makedev(major.into(), minor.into()))
            };
            match kind {
                EntryKind::CharDevice { major, minor } => device(SFlag::S_IFCHR, major, minor)?,
                EntryKind::BlockDevice { major, minor } => device(SFlag::S_IFBLK, major, minor)?,
                _ => mkfifoat(at, unfinished, Mode::empty())?,
            }
            let mode = Mode::from_bits_truncate(meta.mode);
            finish_inode(at, unfinished, &meta, Some(mode), rules).inspect_err(|_| discard(at, unfinished))
        })
    }

    /// Sees to it that `name` is a folder in the current one.
    fn make_folder(&self, name: &[u8]) -> Result<(), Problem> {
        match mkdirat(&self.at, name, OPEN_FOLDER) {
            Err(Errno::EEXIST) => match fstatat(&self.at, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(stat) if is(SFlag::S_IFDIR, stat.st_mode) => Ok(()),
                Ok(_) => Err(Problem::FolderOntoOther),
                Err(error) => Err(error.into()),
            },
            other => Ok(other?),
        }
    }

    /// Makes something under a name of its own, then gives it `name`, in one step and whatever had that name
    /// before; a folder never. `make` leaves nothing behind when it fails.
    fn replace(
        &self,
        name: &[u8],
        mut make: impl FnMut(&OwnedFd, &[u8]) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        match fstatat(&self.at, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) if is(SFlag::S_IFDIR, stat.st_mode) => return Err(Problem::OtherOntoFolder),
            Ok(_) | Err(Errno::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let mut tries = 1;
        let unfinished = loop {
            let unfinished = unfinished_name();
            match make(&self.at, unfinished.as_bytes()) {
                Ok(()) => break unfinished,
                Err(Problem::System(error))
                    if error.kind() == std::io::ErrorKind::AlreadyExists && tries < MAX_NAME_TRIES =>
                {
                    tries += 1;
                }
                Err(problem) => return Err(problem),
            }
        };
        let renamed = renameat(&self.at, unfinished.as_bytes(), &self.at, name);
        // Two names of one file: renaming one to the other does nothing at all.
        discard(&self.at, unfinished.as_bytes());
        match renamed {
            Err(Errno::EISDIR) => Err(Problem::OtherOntoFolder),
            other => Ok(other?),
        }
    }

    /// The path of the current folder from the destination.
    fn way(&self) -> Vec<u8> {
        let names: Vec<&[u8]> = self.steps.iter().map(|step| &step.name[..]).collect();
        names.join(&b'/')
    }

    /// Goes back up until `keep` steps are left.
    fn leave(&mut self, keep: usize) -> Result<(), Closing> {
        let mut result = Ok(());
        while self.steps.len() > keep {
            if let Some(meta) = self.steps.last().and_then(|step| step.meta)
                && let Err(problem) = finish_folder(&self.at, &meta, self.rules)
            {
                result = result.and(Err((EntryPath(self.way()), problem)));
            }
            self.steps.pop();
            let path = self.way();
            let up = match &path[..] {
                b"" => self.root.try_clone().map_err(Problem::from),
                path => open_folder(&self.root, path),
            };
            match up {
                Ok(up) => self.at = up,
                Err(problem) => {
                    self.steps.clear();
                    return result.and(Err((EntryPath(path), problem)));
                }
            }
        }
        result
    }
}

/// Opens a folder below `from` (`O_PATH`) without following any link: one on the way is
/// [`Problem::ThroughLink`], anything else that is no folder [`Problem::ThroughFile`].
pub fn open_folder(from: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Problem> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    match openat2(from, path, how) {
        Ok(folder) => Ok(folder),
        Err(Errno::ELOOP) => Err(Problem::ThroughLink(EntryPath(path.to_vec()))),
        Err(Errno::ENOTDIR) => Err(match fstatat(from, path, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) if is(SFlag::S_IFLNK, stat.st_mode) => Problem::ThroughLink(EntryPath(path.to_vec())),
            _ => Problem::ThroughFile(EntryPath(path.to_vec())),
        }),
        Err(error) => Err(error.into()),
    }
}

fn is(kind: SFlag, mode: u32) -> bool {
    SFlag::from_bits_truncate(mode) & SFlag::S_IFMT == kind
}

/// Removes what is unfinished; if that fails too, it stays under a name that says so.
fn discard(at: &OwnedFd, unfinished: &[u8]) {
    let _ = unlinkat(at, unfinished, UnlinkatFlags::NoRemoveDir);
}

/// A name that nothing else has, most likely.
fn unfinished_name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{UNFINISHED}{}-{now:x}-{count}", std::process::id())
}

/// Writes the body into the file, holes left out.
fn fill<S: Source<Error = ReadError>>(
    file: &mut File,
    entry: &Entry,
    archive: &mut Archive<S>,
) -> Result<(), Problem> {
    let mut at = 0;
    // One without bytes only marks the end of a hole.
    for segment in entry.segments.iter().filter(|segment| segment.length > 0) {
        if segment.offset != at {
            file.seek(SeekFrom::Start(segment.offset))?;
        }
        let mut left = segment.length;
        while left > 0 {
            let piece = archive.fill_body()?;
            let n = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            if n == 0 {
                return Err(ReadError::from(Malformed::Truncated).into());
            }
            file.write_all(&piece[..n])?;
            archive.consume_body(n);
            left -= n as u64;
        }
        at = segment.offset + segment.length;
    }
    if at != entry.size {
        file.set_len(entry.size)?;
    }
    Ok(())
}

/// What was made just now under this name, and is no file and no folder.
fn finish_inode(
    at: &OwnedFd,
    name: &[u8],
    meta: &Meta,
    mode: Option<Mode>,
    rules: Rules,
) -> Result<(), Problem> {
    if rules.owners {
        let (uid, gid) = meta.owner();
        fchownat(at, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    }
    if let Some(mode) = mode {
        // Whoever has a mode is no link.
        fchmodat(at, name, mode, FchmodatFlags::FollowSymlink)?;
    }
    let (atime, mtime) = meta.times();
    Ok(utimensat(at, name, &atime, &mtime, UtimensatFlags::NoFollowSymlink)?)
}

fn finish_file(file: &File, meta: &Meta, rules: Rules) -> Result<(), Problem> {
    if rules.owners {
        let (uid, gid) = meta.owner();
        fchown(file, uid, gid)?;
    }
    // After the owner, because a change of that takes the bits away which give its rights.
    let mode = if rules.set_ids { meta.mode } else { meta.mode & !0o6000 };
    fchmod(file, Mode::from_bits_truncate(mode))?;
    let (atime, mtime) = meta.times();
    Ok(futimens(file, &atime, &mtime)?)
}

fn finish_folder(folder: &OwnedFd, meta: &Meta, rules: Rules) -> Result<(), Problem> {
    if rules.owners {
        let (uid, gid) = meta.owner();
        fchownat(folder, ".", uid, gid, AtFlags::empty())?;
    }
    fchmodat(folder, ".", Mode::from_bits_truncate(meta.mode), FchmodatFlags::FollowSymlink)?;
    let (atime, mtime) = meta.times();
    Ok(utimensat(folder, ".", &atime, &mtime, UtimensatFlags::FollowSymlink)?)
}
