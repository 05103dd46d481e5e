//! Brings a folder up to date: first the list of what goes or gets other permissions, then an archive of what
//! is new ([`Task::Update`](iii_protocol::session::Task::Update)).
//!
//! The folder is the guest's, so anything may be in it: all is done by one step from a folder that was reached
//! without following a link, and nothing outside is ever removed or changed.

use std::fs::DirBuilder;
use std::io::{self, BufRead as _, BufReader, Read, Take};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use iii_archive::EntryPath;
use iii_archive::unpack::{Problem, open_folder};
use iii_protocol::session::{Layout, MAX_CHANGE_BYTES};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, fstatat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, syncfs, unlinkat};

use super::{CopyError, Warnings, from_root, unpack};

/// The permission bits and the three above them.
const MAX_MODE: u32 = 0o7777;
/// Nanoseconds of a second.
const NANOS: i128 = 1_000_000_000;

/// Reads `changes` bytes of list from `input` and carries them out in the folder `path`, unpacks what follows,
/// and returns when all is on the disk. Reads end and fail as for [`unpack`]. A failure leaves what was done
/// before it.
pub(crate) fn update(
    path: &str,
    changes: u32,
    input: &mut dyn Read,
    warnings: &mut Warnings,
) -> Result<(), CopyError> {
    let failed = |error: io::Error| failed(format!("{path}: {error}"));
    let folder = open_or_make(&from_root(path)).map_err(failed)?;
    carry_out(&folder, changes, input)?;
    unpack(path, &Layout::Inside, false, input, warnings)?;
    syncfs(&folder).map_err(|error| failed(error.into()))
}

fn failed(message: String) -> CopyError {
    CopyError { message, hint: None }
}

/// Readable, for only such a folder can be flushed.
fn open_or_make(path: &Path) -> io::Result<OwnedFd> {
    let open = || open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    match open() {
        Err(Errno::ENOENT) => {
            DirBuilder::new().recursive(true).mode(0o755).create(path)?;
            Ok(open()?)
        }
        other => Ok(other?),
    }
}

fn carry_out(folder: &OwnedFd, changes: u32, input: &mut dyn Read) -> Result<(), CopyError> {
    let mut list = BufReader::new(input.take(u64::from(changes)));
    let mut record = Vec::new();
    let in_list = |error: io::Error| failed(format!("the list of changes: {error}"));
    while next_record(&mut list, &mut record).map_err(in_list)? {
        let shown = |bytes: &[u8]| EntryPath(bytes.to_vec());
        let change = Change::parse(&record)
            .ok_or_else(|| failed(format!("the list of changes: `{}` is none", shown(&record))))?;
        change.make(folder).map_err(|fault| failed(format!("`{}`: {fault}", shown(change.path))))?;
    }
    Ok(())
}

/// Takes the next record without its end; `false` when there is none left.
fn next_record<R: Read>(list: &mut BufReader<Take<R>>, record: &mut Vec<u8>) -> io::Result<bool> {
    record.clear();
    list.by_ref().take(MAX_CHANGE_BYTES as u64).read_until(0, record)?;
    let bad = |message: String| Err(io::Error::new(io::ErrorKind::InvalidData, message));
    match record.pop() {
        Some(0) => Ok(true),
        None if list.get_ref().limit() == 0 => Ok(false),
        Some(_) if record.len() + 1 == MAX_CHANGE_BYTES => {
            bad(format!("a record is longer than {MAX_CHANGE_BYTES} bytes"))
        }
        _ => bad("it ends too early".to_owned()),
    }
}

/// One record.
#[derive(Debug, Clone, Copy)]
struct Change<'a> {
    deed: Deed,
    path: &'a [u8],
}

#[derive(Debug, Clone, Copy)]
enum Deed {
    /// A file or link.
    RemoveFile,
    /// A folder, if it is empty.
    RemoveEmptyFolder,
    /// Whatever there is.
    RemoveTree,
    /// Permissions, and of a file the time.
    Mark { mode: Mode, mtime: TimeSpec },
}

impl<'a> Change<'a> {
    /// `None` for what is no record.
    fn parse(record: &'a [u8]) -> Option<Change<'a>> {
        let (what, rest) = split_word(record)?;
        let (deed, path) = match what {
            b"F" => (Deed::RemoveFile, rest),
            b"E" => (Deed::RemoveEmptyFolder, rest),
            b"T" => (Deed::RemoveTree, rest),
            b"M" => {
                let (mode, rest) = split_word(rest)?;
                let (mtime, path) = split_word(rest)?;
                (Deed::Mark { mode: parse_mode(mode)?, mtime: parse_time(mtime)? }, path)
            }
            _ => return None,
        };
        let mut steps = path.split(|&b| b == b'/');
        steps.all(|step| !matches!(step, b"" | b"." | b"..")).then_some(Change { deed, path })
    }

    fn make(&self, folder: &OwnedFd) -> Result<(), Problem> {
        let (above, name) = split_name(self.path);
        let parent = match open_folder(folder, above) {
            // Nothing of ours is in a folder that is not there, or in whose place the guest has put something else.
            Err(Problem::ThroughFile(_) | Problem::ThroughLink(_)) => return Ok(()),
            Err(Problem::System(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        match self.deed {
            Deed::RemoveFile => match unlinkat(&parent, name, UnlinkatFlags::NoRemoveDir) {
                // The guest's own folder, then, has the file's name.
                Err(Errno::ENOENT | Errno::EISDIR) => Ok(()),
                other => Ok(other?),
            },
            Deed::RemoveEmptyFolder => remove_empty(&parent, name),
            Deed::RemoveTree => match unlinkat(&parent, name, UnlinkatFlags::NoRemoveDir) {
                Err(Errno::ENOENT) => Ok(()),
                Err(Errno::EISDIR) => remove_tree(&parent, name),
                other => Ok(other?),
            },
            Deed::Mark { mode, mtime } => mark(&parent, name, mode, mtime),
        }
    }
}

/// The folder and the name in it.
fn split_name(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b".", path),
    }
}

/// The bytes up to the next space, and those behind it.
fn split_word(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|&b| b == b' ')?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

fn parse_mode(word: &[u8]) -> Option<Mode> {
    let mode = u32::from_str_radix(std::str::from_utf8(word).ok()?, 8).ok()?;
    (mode <= MAX_MODE).then(|| Mode::from_bits_truncate(mode))
}

fn parse_time(word: &[u8]) -> Option<TimeSpec> {
    let ns: i128 = std::str::from_utf8(word).ok()?.parse().ok()?;
    let seconds = i64::try_from(ns.div_euclid(NANOS)).ok()?;
    Some(TimeSpec::new(seconds, i64::try_from(ns.rem_euclid(NANOS)).ok()?))
}

fn kind(at: &OwnedFd, name: &[u8]) -> Result<SFlag, Errno> {
    let stat = fstatat(at, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    Ok(SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT)
}

fn mark(at: &OwnedFd, name: &[u8], mode: Mode, mtime: TimeSpec) -> Result<(), Problem> {
    let is_file = match kind(at, name) {
        Ok(SFlag::S_IFREG) => true,
        Ok(SFlag::S_IFDIR) => false,
        // The guest has removed it, or put something of its own in its place.
        Ok(_) | Err(Errno::ENOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    // Neither follows a link that has taken the place meanwhile.
    fchmodat(at, name, mode, FchmodatFlags::NoFollowSymlink)?;
    if is_file {
        utimensat(at, name, &TimeSpec::UTIME_OMIT, &mtime, UtimensatFlags::NoFollowSymlink)?;
    }
    Ok(())
}

fn remove_empty(at: &OwnedFd, name: &[u8]) -> Result<(), Problem> {
    match unlinkat(at, name, UnlinkatFlags::RemoveDir) {
        Err(Errno::ENOENT | Errno::ENOTEMPTY | Errno::EEXIST) => Ok(()),
        Err(Errno::ENOTDIR) => match kind(at, name) {
            Ok(SFlag::S_IFLNK) => Ok(unlinkat(at, name, UnlinkatFlags::NoRemoveDir)?),
            // The guest's own file has the folder's name.
            Ok(_) | Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(error.into()),
        },
        other => Ok(other?),
    }
}

/// Removes the folder `name` and all in it. How deep that is, the guest says: so not by recursion, and without
/// an open file for each level. What is deeper than a path can say is an error.
fn remove_tree(at: &OwnedFd, name: &[u8]) -> Result<(), Problem> {
    let mut path = name.to_vec();
    // The folders that are left, of each folder on the path.
    let mut left = vec![remove_all_but_folders(at, &path)?];
    while let Some(folders) = left.last_mut() {
        if let Some(name) = folders.pop() {
            path.push(b'/');
            path.extend_from_slice(&name);
            left.push(remove_all_but_folders(at, &path)?);
        } else {
            left.pop();
            let (above, name) = split_name(&path);
            unlinkat(&open_folder(at, above)?, name, UnlinkatFlags::RemoveDir)?;
            path.truncate(path.len().saturating_sub(name.len() + 1));
        }
    }
    Ok(())
}

/// Returns the names of the folders.
fn remove_all_but_folders(at: &OwnedFd, path: &[u8]) -> Result<Vec<Vec<u8>>, Problem> {
    // What is mounted there is no part of the tree.
    let resolve =
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let folder = openat2(at, path, OpenHow::new().flags(flags).resolve(resolve))?;
    let mut listed = Dir::from_fd(folder.try_clone().map_err(Problem::from)?)?;
    let mut folders = Vec::new();
    for entry in listed.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match unlinkat(&folder, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::EISDIR) => folders.push(name.to_bytes().to_vec()),
            Err(Errno::ENOENT) => {}
            other => other?,
        }
    }
    Ok(folders)
}

#[cfg(test)]
#[path = "update_tests.rs"]
mod tests;
