//! Unpacks an archive below one folder, whatever the archive says.
//!
//! The archive may come from a hostile guest. Nothing outside of the destination is created, changed or
//! removed by it: names cannot lead up, no link is followed on the way to an entry (neither one that the
//! archive made nor one that was there), and what is there is replaced and never written through. A file gets
//! its name when it is whole. What an archive can cost is room on the disk; memory is bounded by the depth of
//! its folders.

mod below;

use std::ffi::OsStr;
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

pub use self::below::open_folder;
use self::below::{Below, Meta};
use crate::name::{BadName, EntryPath, Spelling, steps};
use crate::place::{Misplaced, Place, Thing, place};
use crate::read::{Archive, Entry, EntryKind, Plain, ReadError};

/// What extension headers of one entry may take, in bytes.
const MAX_HEADER_BYTES: u64 = 1 << 20;
/// Bytes read at a time.
const READ_BUFFER: usize = 128 << 10;
/// Longest target of a symbolic link that Linux follows (`PATH_MAX` without its NUL).
const MAX_SYMLINK: usize = 4095;

/// Where an archive goes.
#[derive(Debug, Clone)]
pub struct Destination<'a> {
    /// As the user wrote it: a slash at the end means a folder.
    pub path: &'a Path,
    /// How the archive's names are laid out there.
    pub layout: Layout,
    /// Whether a link that is the destination itself is followed even without a slash behind it.
    pub follow: bool,
}

/// How an archive's names are laid out at its destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// The destination is a folder, and all names go below it as they are.
    Inside,
    /// The archive is one file or folder, and [`place`] says where it goes.
    As {
        /// What it is called inside a folder; nothing for the name that the archive has for it.
        name: Option<Vec<u8>>,
        /// What is in it is meant, and not itself.
        contents: bool,
    },
}

/// What of an archive is made true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Owners as the archive says (needs root); otherwise all is owned by who unpacks.
    pub owners: bool,
    /// Files that run with their owner's or group's rights stay such files.
    pub set_ids: bool,
    /// Device nodes are made; otherwise they are left out.
    pub devices: bool,
}

/// What is in place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// Entries.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
}

/// Why an archive is not unpacked, or only a part of it.
#[derive(Debug, thiserror::Error)]
#[error("{fault}{}", so_far(*written))]
pub struct UnpackError {
    /// What went wrong.
    pub fault: Fault,
    /// What is in place nevertheless.
    pub written: Written,
}

fn so_far(written: Written) -> String {
    match written.entries {
        0 => " (nothing was written)".to_owned(),
        1 => format!(" (written before it: 1 entry, {} bytes of files)", written.bytes),
        n => format!(" (written before it: {n} entries, {} bytes of files)", written.bytes),
    }
}

/// What went wrong, and where.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The destination.
    #[error("{path}: {problem}")]
    Destination {
        /// As the user wrote it.
        path: EntryPath,
        /// What is wrong with it.
        problem: Problem,
    },
    /// One entry.
    #[error("`{path}` in the archive: {problem}")]
    Entry {
        /// As the archive spells it.
        path: EntryPath,
        /// What is wrong with it.
        problem: Problem,
    },
    /// The archive as a whole.
    #[error("the archive: {0}")]
    Archive(Problem),
}

/// What is wrong with an entry or the destination.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// There is no place for it.
    #[error(transparent)]
    Misplaced(#[from] Misplaced),
    /// The destination's own folder.
    #[error("the folder {0} does not exist")]
    NoParent(EntryPath),
    /// A link where a destination was expected.
    #[error("it is a link, which is not followed")]
    IsLink,
    /// A link that leads nowhere.
    #[error("it is a link to nothing")]
    DanglingLink,
    /// An archive without entries.
    #[error("it is empty")]
    Empty,
    /// Its first entry has no name, and one is needed.
    #[error("what it holds has no name")]
    NoName,
    /// A name that leads nowhere.
    #[error(transparent)]
    BadName(#[from] BadName),
    /// Not what was asked for.
    #[error("it is not a part of what was asked for")]
    Foreign,
    /// Something on the way is a link.
    #[error("`{0}` on its way is a link, which is never followed")]
    ThroughLink(EntryPath),
    /// Something on the way is no folder.
    #[error("`{0}` on its way is not a folder")]
    ThroughFile(EntryPath),
    /// A folder is in the way of what is none.
    #[error("cannot overwrite directory with non-directory")]
    OtherOntoFolder,
    /// Something is in the way of a folder.
    #[error("cannot overwrite non-directory with directory")]
    FolderOntoOther,
    /// A hard link to what is not there.
    #[error("it is a hard link to `{0}`, which does not exist")]
    LinkTargetMissing(EntryPath),
    /// A symbolic link to nowhere, or further than Linux can follow.
    #[error("its symbolic link has a target of {0} bytes, not of 1 to 4095, or with a NUL byte")]
    SymlinkTarget(usize),
    /// A device by itself.
    #[error("it is a device, which is not copied")]
    Device,
    /// The archive's stream or form.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The system.
    #[error(transparent)]
    System(#[from] io::Error),
}

impl From<nix::errno::Errno> for Problem {
    fn from(error: nix::errno::Errno) -> Problem {
        Problem::System(error.into())
    }
}

/// Unpacks all of `reader`'s archive. What is left out is told through `warn`.
///
/// A failure leaves what is in place before it, every file of it whole.
pub fn unpack(
    reader: impl Read,
    to: &Destination<'_>,
    rules: Rules,
    warn: &mut dyn FnMut(String),
) -> Result<Written, UnpackError> {
    let archive = Archive::new(Plain(BufReader::with_capacity(READ_BUFFER, reader)));
    let mut unpacker = Unpacker { archive, rules, written: Written::default(), warn };
    let result = unpacker.all(to);
    let written = unpacker.written;
    result.map(|()| written).map_err(|fault| UnpackError { fault, written })
}

type Stream<R> = Archive<Plain<BufReader<R>>>;

struct Unpacker<'a, R> {
    archive: Stream<R>,
    rules: Rules,
    written: Written,
    warn: &'a mut dyn FnMut(String),
}

impl<R: Read> Unpacker<'_, R> {
    fn all(&mut self, to: &Destination<'_>) -> Result<(), Fault> {
        let spelled = to.path.as_os_str().as_bytes();
        let at_destination =
            |problem: Problem| Fault::Destination { path: EntryPath(spelled.to_vec()), problem };
        let (path, there) = look(to).map_err(at_destination)?;
        let (name, contents) = match &to.layout {
            Layout::Inside => {
                match there {
                    Some(Thing::Folder) => {}
                    Some(Thing::Other) => return Err(at_destination(Misplaced::NotAFolder.into())),
                    None => return Err(at_destination(Misplaced::NoSuchFolder.into())),
                }
                let below = Below::open(&path, self.rules).map_err(at_destination)?;
                let first = self.next()?;
                return self.entries(below, first, None);
            }
            Layout::As { name, contents } => (name.as_deref(), *contents),
        };
        let first = self.next()?.ok_or(Fault::Archive(Problem::Empty))?;
        let (top, thing) = top_of(&first).map_err(|problem| at_entry(&first, problem))?;
        let folder = Spelling::of(spelled).folder;
        let place = place(thing, contents, there, folder).map_err(|e| at_destination(e.into()))?;
        let (parent, base) = match place {
            Place::Into => {
                // The folder is there and stays what it is.
                let below = Below::open(&path, self.rules).map_err(at_destination)?;
                let next = self.next()?;
                return self.entries(below, next, Some(&top));
            }
            Place::Below => {
                let name = name.map(<[u8]>::to_vec).or_else(|| top.clone());
                (path, name.ok_or_else(|| at_entry(&first, Problem::NoName))?)
            }
            Place::At => {
                let spelling = Spelling::of(path.as_os_str().as_bytes());
                let parent = PathBuf::from(OsStr::from_bytes(spelling.parent()));
                let base = spelling.name().ok_or_else(|| at_destination(Misplaced::NotAFolder.into()))?;
                (parent, base.to_vec())
            }
        };
        let mut below = Below::open(&parent, self.rules).map_err(|problem| match problem {
            Problem::System(error) if error.kind() == io::ErrorKind::NotFound => {
                at_destination(Problem::NoParent(EntryPath(parent.into_os_string().into_vec())))
            }
            other => at_destination(other),
        })?;
        if thing == Thing::Folder {
            below.enter_top(&base, Meta::of(&first)).map_err(|problem| at_entry(&first, problem))?;
            self.written.entries += 1;
            let next = self.next()?;
            return self.entries(below, next, Some(&top));
        }
        self.one(&mut below, &first, &[], &base, None)?;
        if first.kind_is_device() && !self.rules.devices {
            return Err(at_entry(&first, Problem::Device));
        }
        match self.next()? {
            None => Ok(()),
            Some(further) => Err(at_entry(&further, Problem::Foreign)),
        }
    }

    fn next(&mut self) -> Result<Option<Entry>, Fault> {
        let next = self.archive.next(MAX_HEADER_BYTES);
        next.map_err(|error| match self.archive.place() {
            b"" => Fault::Archive(error.into()),
            path => Fault::Entry { path: EntryPath(path.to_vec()), problem: error.into() },
        })
    }

    /// `first` and all that follow, below an open folder. `top` is what all names must begin with.
    fn entries(&mut self, mut below: Below, first: Option<Entry>, top: Option<&Top>) -> Result<(), Fault> {
        let mut next = Ok(first);
        let result = loop {
            match next {
                Ok(None) => break Ok(()),
                Err(fault) => break Err(fault),
                Ok(Some(entry)) => {
                    if let Err(fault) = self.entry(&mut below, &entry, top) {
                        break Err(fault);
                    }
                }
            }
            next = self.next();
        };
        // Also after a failure: folders get the permissions they should have.
        let closed = below.close().map_err(|(path, problem)| Fault::Entry { path, problem });
        result.and(closed)
    }

    fn entry(&mut self, below: &mut Below, entry: &Entry, top: Option<&Top>) -> Result<(), Fault> {
        let path = inside(&entry.path, top).map_err(|problem| at_entry(entry, problem))?;
        match path.split_last() {
            // The destination itself, which is there already.
            None if entry.kind == EntryKind::Folder => Ok(()),
            None => Err(at_entry(entry, Problem::FolderOntoOther)),
            Some((name, parents)) => self.one(below, entry, parents, name, top),
        }
    }

    /// Makes one entry: `name` in the folder that `parents` lead to.
    fn one(
        &mut self,
        below: &mut Below,
        entry: &Entry,
        parents: &[&[u8]],
        name: &[u8],
        top: Option<&Top>,
    ) -> Result<(), Fault> {
        if entry.kind_is_device() && !self.rules.devices {
            (self.warn)(format!("`{}` is a device: left out", EntryPath(entry.path.clone())));
            return Ok(());
        }
        let meta = Meta::of(entry);
        if entry.kind == EntryKind::File && !self.rules.set_ids && meta.mode & 0o6000 != 0 {
            let path = EntryPath(entry.path.clone());
            (self.warn)(format!(
                "`{path}` would run with the rights of another owner: made an ordinary file"
            ));
        }
        let made = below.enter(parents).and_then(|()| match entry.kind {
            EntryKind::Folder => below.folder(name, meta),
            EntryKind::File => {
                let bytes = below.file(name, meta, entry, &mut self.archive)?;
                self.written.bytes += bytes;
                Ok(())
            }
            EntryKind::HardLink => {
                let target = inside(&entry.link, top)?;
                below.hard_link(name, &target, &entry.link)
            }
            EntryKind::Symlink => {
                if !(1..=MAX_SYMLINK).contains(&entry.link.len()) || entry.link.contains(&0) {
                    return Err(Problem::SymlinkTarget(entry.link.len()));
                }
                below.symlink(name, meta, &entry.link)
            }
            EntryKind::Fifo | EntryKind::CharDevice { .. } | EntryKind::BlockDevice { .. } => {
                below.node(name, meta, entry.kind)
            }
        });
        made.map_err(|problem| at_entry(entry, problem))?;
        self.written.entries += 1;
        Ok(())
    }
}

impl Entry {
    fn kind_is_device(&self) -> bool {
        matches!(self.kind, EntryKind::CharDevice { .. } | EntryKind::BlockDevice { .. })
    }
}

/// The first step of all names; none if they begin with the top's content.
type Top = Option<Vec<u8>>;

fn at_entry(entry: &Entry, problem: Problem) -> Fault {
    Fault::Entry { path: EntryPath(entry.path.clone()), problem }
}

/// What the first entry of an archive of one thing says.
fn top_of(first: &Entry) -> Result<(Top, Thing), Problem> {
    let thing = if first.kind == EntryKind::Folder { Thing::Folder } else { Thing::Other };
    match (&steps(&first.path)?[..], first.kind) {
        // A link to nothing that came before.
        (_, EntryKind::HardLink) => Err(Problem::Foreign),
        ([], _) => Ok((None, thing)),
        ([top], _) => Ok((Some(top.to_vec()), thing)),
        _ => Err(Problem::Foreign),
    }
}

/// The steps of a name without the top.
fn inside<'p>(path: &'p [u8], top: Option<&Top>) -> Result<Vec<&'p [u8]>, Problem> {
    let mut path = steps(path)?;
    if let Some(Some(top)) = top {
        if path.first() != Some(&&top[..]) {
            return Err(Problem::Foreign);
        }
        path.remove(0);
    }
    Ok(path)
}

/// What is at the destination, and the path that leads there without a link at its end.
fn look(to: &Destination<'_>) -> Result<(PathBuf, Option<Thing>), Problem> {
    let spelling = Spelling::of(to.path.as_os_str().as_bytes());
    let bare = Path::new(OsStr::from_bytes(spelling.bare));
    let thing = |folder: bool| if folder { Thing::Folder } else { Thing::Other };
    match bare.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((bare.to_owned(), None)),
        Err(error) => Err(error.into()),
        Ok(meta) if !meta.is_symlink() => Ok((bare.to_owned(), Some(thing(meta.is_dir())))),
        Ok(_) if !to.follow && !spelling.folder => Err(Problem::IsLink),
        Ok(_) => match bare.canonicalize() {
            Ok(path) => {
                let folder = path.is_dir();
                Ok((path, Some(thing(folder))))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Problem::DanglingLink),
            Err(error) => Err(error.into()),
        },
    }
}
