//! Makes an archive of a file or a folder.
//!
//! A folder's own entry comes first, then its files by name, then its folders: one folder is open at a time,
//! and who unpacks is done with a folder when the next one begins. Names are looked up below the open top
//! without following links, so a tree that changes meanwhile cannot lead out of itself.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, PROC_SUPER_MAGIC, SYSFS_MAGIC, fstatfs};

use crate::name::{EntryPath, Spelling};
use crate::read::EntryKind;
use crate::write::{Head, Writer};

/// How many files with several names are kept in mind to be linked again. Further ones become files of
/// their own.
const MAX_LINKED_FILES: usize = 1 << 20;
/// How much of a file that says it is empty is read to see whether that is so (`/proc/cpuinfo` is not).
const MAX_UNSIZED_BYTES: u64 = 4 << 20;
/// Bytes moved at a time.
const CHUNK: usize = 128 << 10;

/// What is to be packed.
#[derive(Debug, Clone, Copy)]
pub struct PackSource<'a> {
    /// Where it is. With `/` or `/.` at its end a link is followed; with `/.` the archive's top is `./`, and
    /// has the path's last name otherwise.
    pub path: &'a Path,
    /// Follow a link that is the path itself.
    pub follow: bool,
}

/// Why there is no archive, or only a part of one.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// A file or folder cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which.
        path: EntryPath,
        /// What the system said.
        source: io::Error,
    },
    /// Nothing that an archive could hold.
    #[error("{path} is a socket, which cannot be copied")]
    Socket {
        /// Which.
        path: EntryPath,
    },
    /// The archive could not be written to where it goes.
    #[error("cannot write the archive: {0}")]
    Write(io::Error),
}

/// What an archive got.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Packed {
    /// Entries.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
}

/// Packs a file or a folder with all that is in it, the end marker included.
///
/// What has no place in an archive, or changes meanwhile, is told through `warn` and does not end it: sockets
/// and file systems of the kernel are left out, a file that shrinks is filled with zeros, one that grows is
/// cut at the size it had.
pub fn pack(
    source: PackSource<'_>,
    out: impl Write,
    warn: &mut dyn FnMut(String),
) -> Result<Packed, PackError> {
    let spelling = Spelling::of(source.path.as_os_str().as_bytes());
    let top = Path::new(OsStr::from_bytes(spelling.bare));
    let at_top = |source: io::Error| PackError::Read { path: shown(spelling.bare), source };
    let follow = source.follow || spelling.folder;
    let meta = if follow { top.metadata() } else { top.symlink_metadata() }.map_err(at_top)?;
    if spelling.folder && !meta.is_dir() {
        return Err(at_top(io::Error::from(Errno::ENOTDIR)));
    }
    if meta.file_type().is_socket() {
        return Err(PackError::Socket { path: shown(spelling.bare) });
    }
    let (parent, base) = opened_parent(top, &spelling, follow).map_err(at_top)?;
    let name = match spelling.name() {
        Some(name) if !spelling.contents => name.to_vec(),
        _ => b".".to_vec(),
    };
    let tree =
        if meta.is_dir() { open_folder(&parent, &base) } else { Ok(parent) }.map_err(|e| at_top(e.into()))?;
    let mut packer = Packer {
        shown: spelling.bare,
        tree,
        name,
        device: meta.dev(),
        writer: Writer::new(out),
        linked: HashMap::new(),
        packed: Packed::default(),
        chunk: vec![0; CHUNK],
        warn,
    };
    if meta.is_dir() {
        packer.folders()?;
    } else {
        let stat =
            fstatat(&packer.tree, &base[..], AtFlags::AT_SYMLINK_NOFOLLOW).map_err(|e| at_top(e.into()))?;
        let tree = packer.tree.try_clone().map_err(at_top)?;
        packer.leaf(&tree, &base, b"", &stat)?;
    }
    let Packer { writer, packed, .. } = packer;
    writer.finish().map_err(PackError::Write)?;
    Ok(packed)
}

/// The folder that the top is in, all links resolved, and the top's name there.
fn opened_parent(top: &Path, spelling: &Spelling<'_>, follow: bool) -> io::Result<(OwnedFd, Vec<u8>)> {
    let real;
    let (parent, base) = match spelling.name() {
        Some(name) if !follow => (Path::new(OsStr::from_bytes(spelling.parent())), name.to_vec()),
        _ => {
            real = top.canonicalize()?;
            let name = real.file_name().map_or_else(|| b".".to_vec(), |name| name.as_bytes().to_vec());
            (real.parent().unwrap_or(&real), name)
        }
    };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok((nix::fcntl::open(parent, flags, Mode::empty())?, base))
}

fn below(flags: OFlag) -> OpenHow {
    OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS)
}

fn open_folder(tree: &OwnedFd, path: &[u8]) -> nix::Result<OwnedFd> {
    openat2(tree, path, below(OFlag::O_RDONLY | OFlag::O_DIRECTORY))
}

fn shown(path: &[u8]) -> EntryPath {
    EntryPath(path.to_vec())
}

fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() { name.to_vec() } else { [folder, b"/", name].concat() }
}

struct Packer<'a, W> {
    /// The source as the user spelled it.
    shown: &'a [u8],
    /// The top, if it is a folder.
    tree: OwnedFd,
    /// The top's name in the archive.
    name: Vec<u8>,
    /// The top's file system.
    device: u64,
    writer: Writer<W>,
    /// First names of files that have several.
    linked: HashMap<(u64, u64), Vec<u8>>,
    packed: Packed,
    chunk: Vec<u8>,
    warn: &'a mut dyn FnMut(String),
}

/// What becomes of something that cannot be packed.
enum Leaf {
    Packed,
    /// It went away or became something else since its folder was read.
    Changed,
}

impl<W: Write> Packer<'_, W> {
    /// The whole tree. Paths are relative to the top, which is the empty one.
    fn folders(&mut self) -> Result<(), PackError> {
        let mut waiting = vec![Vec::new()];
        while let Some(path) = waiting.pop() {
            let opened = open_folder(&self.tree, if path.is_empty() { b"." } else { &path });
            let folder = match opened {
                Ok(folder) => folder,
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) if !path.is_empty() => {
                    self.warn(&path, "went away while its folder was read");
                    continue;
                }
                Err(error) => return Err(self.cannot_read(&path, error)),
            };
            let stat = fstat(&folder).map_err(|error| self.cannot_read(&path, error))?;
            self.head(&path, EntryKind::Folder, &[], &stat, 0)?;
            if stat.st_dev != self.device && is_the_kernels(&folder) {
                self.warn(&path, "is a file system of the kernel: left out");
                continue;
            }
            let mut below = Vec::new();
            let names = names(&folder).map_err(|error| self.cannot_read(&path, error))?;
            for name in names {
                let child = join(&path, &name);
                let stat = match fstatat(&folder, &name[..], AtFlags::AT_SYMLINK_NOFOLLOW) {
                    Ok(stat) => stat,
                    Err(Errno::ENOENT) => {
                        self.warn(&child, "went away while its folder was read");
                        continue;
                    }
                    Err(error) => return Err(self.cannot_read(&child, error)),
                };
                if kind(&stat) == SFlag::S_IFDIR {
                    below.push(child);
                } else if let Leaf::Changed = self.leaf(&folder, &name, &child, &stat)? {
                    self.warn(&child, "changed while it was read: left out");
                }
            }
            waiting.extend(below.into_iter().rev());
        }
        Ok(())
    }

    /// Anything but a folder: `base` in `folder`, `path` from the top.
    fn leaf(
        &mut self,
        folder: &OwnedFd,
        base: &[u8],
        path: &[u8],
        stat: &FileStat,
    ) -> Result<Leaf, PackError> {
        let kind = match kind(stat) {
            SFlag::S_IFREG => EntryKind::File,
            SFlag::S_IFLNK => EntryKind::Symlink,
            SFlag::S_IFIFO => EntryKind::Fifo,
            SFlag::S_IFCHR => EntryKind::CharDevice { major: major(stat), minor: minor(stat) },
            SFlag::S_IFBLK => EntryKind::BlockDevice { major: major(stat), minor: minor(stat) },
            _ => {
                self.warn(path, "is a socket: left out");
                return Ok(Leaf::Packed);
            }
        };
        let file = (stat.st_dev, stat.st_ino);
        if let Some(first) = self.linked.get(&file).cloned() {
            self.head(path, EntryKind::HardLink, &first, stat, 0)?;
            return Ok(Leaf::Packed);
        }
        match kind {
            EntryKind::File => {
                if let Leaf::Changed = self.file(folder, base, path)? {
                    return Ok(Leaf::Changed);
                }
            }
            EntryKind::Symlink => match readlinkat(folder, base) {
                Ok(target) => self.head(path, kind, &target.into_vec(), stat, 0)?,
                Err(Errno::ENOENT | Errno::EINVAL) => return Ok(Leaf::Changed),
                Err(error) => return Err(self.cannot_read(path, error)),
            },
            _ => self.head(path, kind, &[], stat, 0)?,
        }
        if stat.st_nlink > 1 && self.linked.len() < MAX_LINKED_FILES {
            self.linked.insert(file, self.archived(path, false));
        }
        Ok(Leaf::Packed)
    }

    fn file(&mut self, folder: &OwnedFd, base: &[u8], path: &[u8]) -> Result<Leaf, PackError> {
        // Not to wait for a writer if it has become a pipe.
        let mut file = match openat2(folder, base, below(OFlag::O_RDONLY | OFlag::O_NONBLOCK)) {
            Ok(file) => File::from(file),
            Err(Errno::ENOENT | Errno::ELOOP | Errno::ENXIO) => return Ok(Leaf::Changed),
            Err(error) => return Err(self.cannot_read(path, error)),
        };
        let stat = fstat(&file).map_err(|error| self.cannot_read(path, error))?;
        if kind(&stat) != SFlag::S_IFREG {
            return Ok(Leaf::Changed);
        }
        let mut size = stat.st_size.cast_unsigned();
        let mut early = Vec::new();
        if size == 0 {
            let read = (&file).take(MAX_UNSIZED_BYTES).read_to_end(&mut early);
            read.map_err(|error| self.cannot_read(path, error))?;
            size = early.len() as u64;
        }
        self.head(path, EntryKind::File, &[], &stat, size)?;
        self.writer.body(&early).map_err(PackError::Write)?;
        let mut left = size - early.len() as u64;
        while left > 0 {
            let want = self.chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let n = match file.read(&mut self.chunk[..want]) {
                Ok(0) => {
                    self.warn(path, "shrank while it was read: the rest is zeros");
                    self.chunk.fill(0);
                    self.zeros(left)?;
                    break;
                }
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.cannot_read(path, error)),
            };
            self.writer.body(&self.chunk[..n]).map_err(PackError::Write)?;
            left -= n as u64;
        }
        self.writer.pad(size).map_err(PackError::Write)?;
        self.packed.bytes += size;
        // One byte more than there were: a file that grew, also one that says nothing of its size.
        if left == 0 && file.read(&mut self.chunk[..1]).is_ok_and(|n| n > 0) {
            self.warn(path, "grew while it was read: what was added is left out");
        }
        Ok(Leaf::Packed)
    }

    fn zeros(&mut self, mut left: u64) -> Result<(), PackError> {
        while left > 0 {
            let n = self.chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.writer.body(&self.chunk[..n]).map_err(PackError::Write)?;
            left -= n as u64;
        }
        Ok(())
    }

    fn head(
        &mut self,
        path: &[u8],
        kind: EntryKind,
        link: &[u8],
        stat: &FileStat,
        size: u64,
    ) -> Result<(), PackError> {
        let path = self.archived(path, kind == EntryKind::Folder);
        let head = Head {
            path: &path,
            kind,
            link,
            size,
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: (stat.st_mtime, 0),
        };
        self.packed.entries += 1;
        self.writer.head(&head).map_err(PackError::Write)
    }

    /// The name of `path` in the archive.
    fn archived(&self, path: &[u8], folder: bool) -> Vec<u8> {
        let mut name = self.name.clone();
        if !path.is_empty() {
            name.push(b'/');
            name.extend_from_slice(path);
        }
        if folder {
            name.push(b'/');
        }
        name
    }

    /// The name of `path` as the user would spell it.
    fn spelled(&self, path: &[u8]) -> EntryPath {
        let slash = if self.shown == b"/" { b"" } else { &b"/"[..] };
        EntryPath(if path.is_empty() { self.shown.to_vec() } else { [self.shown, slash, path].concat() })
    }

    fn warn(&mut self, path: &[u8], what: &str) {
        let message = format!("{} {what}", self.spelled(path));
        (self.warn)(message);
    }

    fn cannot_read(&self, path: &[u8], error: impl Into<io::Error>) -> PackError {
        PackError::Read { path: self.spelled(path), source: error.into() }
    }
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

fn major(stat: &FileStat) -> u32 {
    // Linux has 12 bits of major and 20 of minor.
    nix::sys::stat::major(stat.st_rdev) as u32
}

fn minor(stat: &FileStat) -> u32 {
    nix::sys::stat::minor(stat.st_rdev) as u32
}

/// All names in a folder, in order: the same tree gives the same archive.
fn names(folder: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::from_fd(folder.try_clone()?)?.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Whether a folder is in a file system that shows the kernel and holds no files.
fn is_the_kernels(folder: impl AsFd) -> bool {
    let kernels = [PROC_SUPER_MAGIC, SYSFS_MAGIC, CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC];
    fstatfs(folder).is_ok_and(|stat| kernels.contains(&stat.filesystem_type()))
}
