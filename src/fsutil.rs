//! Writes that are whole or not there, and locks that end with their process.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

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

/// How the names of unfinished files begin.
const TEMPORARY: &str = ".tmp-";

/// Replaces `path` by `bytes`: temporary file in the same folder, fsync, rename, fsync of the folder.
/// An existing file's mode is kept; a new one is 0600.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), PathError> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || -> io::Result<()> {
        let mut file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(folder)?;
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

/// Removes what writers that were killed left unfinished in `folder`: the temporary files of
/// [`write_atomic`]. Only for whoever is the folder's one writer at that moment.
pub fn remove_unfinished(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(TEMPORARY.as_bytes()) {
            // One that stays takes some space and harms nobody.
            let _ = fs::remove_file(entry.path());
        }
    }
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
    fn what_a_killed_writer_left_is_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".tmp-Xy12"), b"half").unwrap();
        fs::write(dir.path().join("state.json"), b"whole").unwrap();
        remove_unfinished(dir.path());
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["state.json"]);
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
