//! Writes that are whole or not there, locks that end with their process, and files with holes.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use tempfile::NamedTempFile;

/// An I/O error that names what was done to which path.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct PathError {
    /// A verb phrase: `read`, `create folder`, `write`...
    pub action: &'static str,
    /// On which path.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

impl PathError {
    /// For `map_err`: `PathError::new("read", path)`.
    pub fn new(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> PathError {
        let path = path.into();
        move |source| PathError { action, path, source }
    }

    /// Whether the disk, or the user's share of it, is full.
    pub fn is_disk_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

/// Makes a folder (and its parents) that only the owner may enter.
pub fn create_private_dir(path: &Path) -> Result<(), PathError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(PathError::new("create folder", path))
}

/// The next bytes of a file at `at` or after it that are no hole, up to the next hole; `None` if only holes follow.
/// Moves the file's position.
pub fn next_data(file: &File, at: u64) -> io::Result<Option<Range<u64>>> {
    let seek = |at: u64, whence| -> io::Result<Option<u64>> {
        match lseek(file, i64::try_from(at).map_err(io::Error::other)?, whence) {
            Ok(found) => Ok(Some(u64::try_from(found).map_err(io::Error::other)?)),
            Err(Errno::ENXIO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    };
    let Some(start) = seek(at, Whence::SeekData)? else { return Ok(None) };
    // Behind the last byte there is always a hole, unless the file was cut meanwhile.
    Ok(seek(start, Whence::SeekHole)?.map(|end| start..end))
}

/// How the temporary files of [`write_atomic`] begin.
pub const TEMPORARY_PREFIX: &str = ".tmp-";
/// Letters and digits that make a temporary file's name its own.
const RANDOM_CHARS: usize = 6;

/// Replaces `path` by `bytes`: temporary file in the same folder, fsync, rename, fsync of the folder.
/// An existing file's mode is kept; a new one is 0600. A process that is killed meanwhile leaves the temporary
/// file, see [`sweep_temporary`].
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), PathError> {
    write_atomic_by(path, bytes, TEMPORARY_PREFIX)
}

/// [`write_atomic`] with a temporary file whose name begins with `prefix`: for folders that are not ours alone.
/// [`sweep_prefixed`] finds it again.
pub fn write_atomic_by(path: &Path, bytes: &[u8], prefix: &str) -> Result<(), PathError> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || -> io::Result<()> {
        let mut file = temporary(folder, prefix)?;
        file.write_all(bytes)?;
        if let Ok(old) = fs::metadata(path) {
            file.as_file().set_permissions(fs::Permissions::from_mode(old.permissions().mode() & 0o7777))?;
        }
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(PathError::new("write", path))
}

/// A new file in `folder`, 0600, whose name is `prefix` and some letters and digits that nobody has; removed when
/// dropped.
pub fn temporary(folder: &Path, prefix: &str) -> io::Result<NamedTempFile> {
    tempfile::Builder::new().prefix(prefix).rand_bytes(RANDOM_CHARS).tempfile_in(folder)
}

/// Removes the temporary files that killed processes left in `folder`: regular files that begin with `.tmp-`.
///
/// Only for whoever holds the lock that makes it the only writer in that folder: it cannot tell a file that is
/// being written from one that nobody will finish. Best effort: what cannot be removed takes some room and
/// harms nobody.
pub fn sweep_temporary(folder: &Path) {
    sweep(folder, |name| name.starts_with(TEMPORARY_PREFIX));
}

/// Removes the [`temporary`] files of this prefix that killed processes left in `folder`: regular files named
/// `prefix` and then exactly as many letters and digits as such a file has. Who may call it, and what it promises, is as with [`sweep_temporary`].
pub fn sweep_prefixed(folder: &Path, prefix: &str) {
    sweep(folder, |name| {
        name.strip_prefix(prefix).is_some_and(|random| {
            random.len() == RANDOM_CHARS && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
        })
    });
}

fn sweep(folder: &Path, is_ours: impl Fn(&str) -> bool) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if is_file && entry.file_name().to_str().is_some_and(&is_ours) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Deletes these files of `folder` in this order, as far as they are there.
pub fn remove_files<'n>(folder: &Path, names: impl IntoIterator<Item = &'n str>) -> Result<(), PathError> {
    for name in names {
        let path = folder.join(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(PathError::new("delete", path)(e)),
            _ => {}
        }
    }
    Ok(())
}

/// A lock file held by this process; released when dropped or when the process dies.
#[derive(Debug)]
pub struct LockFile {
    file: File,
    path: PathBuf,
}

/// Why a lock was not had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it; the file's content says who, if it wrote that.
    #[error("{} is locked{}", path.display(), if holder.is_empty() { String::new() } else { format!(" by {holder}") })]
    Held {
        /// The lock file.
        path: PathBuf,
        /// What the holder wrote about itself, trimmed.
        holder: String,
    },
    /// The file could not be opened or locked.
    #[error(transparent)]
    Path(#[from] PathError),
}

impl LockFile {
    /// Takes the lock or says at once who has it. The file is created if missing and never removed:
    /// removing a lock file would let two processes hold "the" lock.
    pub fn try_acquire(path: &Path) -> Result<LockFile, LockError> {
        let file = Self::open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(LockFile { file, path: path.to_owned() }),
            Err(TryLockError::WouldBlock) => {
                let holder = fs::read_to_string(path).unwrap_or_default().trim().to_owned();
                Err(LockError::Held { path: path.to_owned(), holder })
            }
            Err(TryLockError::Error(e)) => Err(PathError::new("lock", path)(e).into()),
        }
    }

    /// Waits for the lock. Blocks the thread: not for async code.
    pub fn acquire(path: &Path) -> Result<LockFile, LockError> {
        let file = Self::open(path)?;
        file.lock().map_err(PathError::new("lock", path))?;
        Ok(LockFile { file, path: path.to_owned() })
    }

    /// Writes who holds the lock, for the error of the next one who wants it.
    pub fn set_holder(&mut self, holder: &str) -> Result<(), PathError> {
        let write = |file: &mut File| -> io::Result<()> {
            use std::io::Seek as _;
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{holder}")
        };
        write(&mut self.file).map_err(PathError::new("write", &self.path))
    }

    /// The open file: whoever has it, or a duplicate of it in another process, has the lock.
    pub fn into_file(self) -> File {
        self.file
    }

    fn open(path: &Path) -> Result<File, PathError> {
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(PathError::new("open", path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_keeps_the_mode_and_leaves_no_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write_atomic(&path, b"one").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_sweep_takes_what_killed_writes_left_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let names = [
            ".tmp-Ab12cd",
            ".config.yaml.iii-Ab12cd",
            ".config.yaml.iii-Ab12c",
            ".config.yaml.iii-Ab.2cd",
            ".config.yaml.swp",
            "config.yaml",
        ];
        for name in names {
            fs::write(dir.path().join(name), "").unwrap();
        }
        fs::create_dir(dir.path().join(".tmp-folder")).unwrap();
        std::os::unix::fs::symlink("config.yaml", dir.path().join(".tmp-link")).unwrap();
        let left = || fs::read_dir(dir.path()).unwrap().count();

        sweep_temporary(dir.path());
        assert!(!dir.path().join(".tmp-Ab12cd").exists());
        assert_eq!(left(), names.len() + 1);
        sweep_prefixed(dir.path(), ".config.yaml.iii-");
        assert!(!dir.path().join(".config.yaml.iii-Ab12cd").exists());
        assert_eq!(left(), names.len());
        sweep_temporary(&dir.path().join("missing"));
    }

    #[test]
    fn a_sweep_finds_the_file_of_a_write() {
        let dir = tempfile::tempdir().unwrap();
        let (_, path) = temporary(dir.path(), "p-").unwrap().keep().unwrap();
        sweep_prefixed(dir.path(), "p-");
        assert!(!path.exists());
    }

    #[test]
    fn a_held_lock_names_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let mut lock = LockFile::try_acquire(&path).unwrap();
        lock.set_holder("pid 42").unwrap();
        match LockFile::try_acquire(&path) {
            Err(LockError::Held { holder, .. }) => assert_eq!(holder, "pid 42"),
            other => panic!("{other:?}"),
        }
        drop(lock);
        LockFile::try_acquire(&path).unwrap();
    }
}
