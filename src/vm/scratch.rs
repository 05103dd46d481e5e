//! Scratch disks: one sparse ext4 per worker, the writable half of its root file system.
//!
//! `mke2fs` makes one template per size; a worker's disk is a copy of it that keeps the holes, so a
//! 16 GiB disk costs some hundred KiB and a few milliseconds.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::fsutil::{LockFile, PathError, create_private_dir, next_data, sweep_prefixed, temporary};
use crate::home::Home;
use crate::prepare::{INDEX_NAME, MARKER_NAME};
use iii_protocol::api::{ErrorBody, ErrorCode};

/// Changes when templates made by an older version must not be used any more.
const TEMPLATE_VERSION: u32 = 1;
/// MiB of the file system's journal: enough for a worker, small enough to be written quickly.
const JOURNAL_MIB: &str = "16";
/// The worker's disk, in its managed folder.
pub const SCRATCH_NAME: &str = "scratch.ext4";
/// What goes when a worker begins from scratch, in its managed folder: the disk, and what is noted of what is on it.
/// Deleted from the last to the first, so that nothing is ever noted of a disk that has gone.
pub const OF_THE_DISK: [&str; 3] = [SCRATCH_NAME, INDEX_NAME, MARKER_NAME];
/// How an unfinished copy in that folder begins: not as the temporary files of others there, since another lock
/// says who may remove it.
const UNFINISHED: &str = ".scratch-";
/// Bytes copied at a time.
const COPY_BYTES: usize = 256 * 1024;
/// Folders in which distributions keep `mke2fs`, for users whose PATH leaves them out.
const SBIN: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// Why there is no scratch disk.
#[derive(Debug, thiserror::Error)]
pub enum ScratchError {
    /// A file could not be made, copied or changed.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A tool of e2fsprogs could not be run.
    #[error("cannot run `{tool}`: {source}")]
    Tool {
        /// Its name.
        tool: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A tool of e2fsprogs failed.
    #[error("`{tool}` failed on {}: {stderr}", path.display())]
    Failed {
        /// Its name.
        tool: &'static str,
        /// The disk.
        path: PathBuf,
        /// Its last words.
        stderr: String,
    },
}

impl From<&ScratchError> for ErrorBody {
    fn from(error: &ScratchError) -> ErrorBody {
        let hint = match error {
            ScratchError::Path(e) if e.is_disk_full() => {
                "free some disk space and start the worker again".to_owned()
            }
            ScratchError::Path(_) => "look at the folder's owner and permissions".to_owned(),
            ScratchError::Tool { .. } => "install e2fsprogs (`apt install e2fsprogs`)".to_owned(),
            ScratchError::Failed { path, .. } => format!(
                "if the disk is damaged, stop the worker and delete {}: it is made anew, what the worker \
                 wrote is lost",
                path.display()
            ),
        };
        ErrorBody { code: ErrorCode::Host, message: format!("scratch disk: {error}"), hint: Some(hint) }
    }
}

/// Where the worker's scratch disk is, or will be.
pub fn path(home: &Home, worker: &str) -> PathBuf {
    home.managed(worker).join(SCRATCH_NAME)
}

/// Makes sure the worker has a scratch disk of at least `bytes`. One that is larger already is left as
/// it is; a smaller one grows, with its contents. Removes what a killed process left of an unfinished copy. Blocks;
/// only for whoever holds the lock of the worker's shim.
pub fn ensure(home: &Home, worker: &str, bytes: u64) -> Result<PathBuf, ScratchError> {
    let folder = home.managed(worker);
    create_private_dir(&folder)?;
    sweep_prefixed(&folder, UNFINISHED);
    let disk = path(home, worker);
    match fs::metadata(&disk) {
        Ok(meta) if meta.len() >= bytes => Ok(disk),
        Ok(_) => grow(&disk, bytes).map(|()| disk),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let template = template(home, bytes)?;
            // Whatever they say, it is not of the new disk.
            for notes in OF_THE_DISK.into_iter().filter(|name| *name != SCRATCH_NAME) {
                let notes = folder.join(notes);
                match fs::remove_file(&notes) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => {
                        return Err(PathError::new("delete", notes)(e).into());
                    }
                    _ => {}
                }
            }
            copy_sparse(&template, &disk)?;
            Ok(disk)
        }
        Err(e) => Err(PathError::new("look at", disk)(e).into()),
    }
}

fn template(home: &Home, bytes: u64) -> Result<PathBuf, ScratchError> {
    let folder = home.images();
    create_private_dir(&folder)?;
    let name = format!("scratch-v{TEMPLATE_VERSION}-{bytes}.ext4");
    let template = folder.join(&name);
    if template.exists() {
        return Ok(template);
    }
    let _lock = LockFile::acquire(&folder.join(format!("{name}.lock"))).map_err(|e| match e {
        crate::fsutil::LockError::Path(e) => e,
        crate::fsutil::LockError::Held { path, .. } => {
            PathError::new("lock", path)(io::ErrorKind::WouldBlock.into())
        }
    })?;
    if template.exists() {
        return Ok(template);
    }
    let unfinished = folder.join(format!("{name}.tmp"));
    let file = File::create(&unfinished).map_err(PathError::new("create", &unfinished))?;
    file.set_len(bytes).map_err(PathError::new("size", &unfinished))?;
    make_file_system(&unfinished)?;
    file.sync_all().map_err(PathError::new("sync", &unfinished))?;
    fs::rename(&unfinished, &template).map_err(PathError::new("publish", &template))?;
    Ok(template)
}

fn make_file_system(path: &Path) -> Result<(), ScratchError> {
    let journal = format!("size={JOURNAL_MIB}");
    // A new sparse file reads as zeros, so nothing needs to be zeroed, now or by the guest later. mke2fs
    // before 1.47 does not know the word; then the guest's kernel does that work in the background.
    let zeroed = "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0,assume_storage_prezeroed=1";
    let lazy = "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0";
    let common = ["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-J", journal.as_str(), "-E"];
    let args = |extended| -> Vec<&str> { common.iter().copied().chain([extended]).collect() };
    run("mke2fs", &args(zeroed), path, 0).or_else(|error| match error {
        ScratchError::Failed { .. } => run("mke2fs", &args(lazy), path, 0),
        other => Err(other),
    })
}

fn grow(disk: &Path, bytes: u64) -> Result<(), ScratchError> {
    // A machine that still has it (one of a project that was moved, or that is just being killed) would be
    // ruined: its VMM holds this lock.
    let file = File::options().write(true).open(disk).map_err(PathError::new("open", disk))?;
    file.lock().map_err(PathError::new("lock", disk))?;
    // resize2fs insists on a check first; 1 means "mended", which is as good.
    run("e2fsck", &["-f", "-p"], disk, 1)?;
    file.set_len(bytes).map_err(PathError::new("size", disk))?;
    run("resize2fs", &[], disk, 0)?;
    file.sync_all().map_err(PathError::new("sync", disk))?;
    Ok(())
}

fn run(tool: &'static str, args: &[&str], disk: &Path, highest_good_status: i32) -> Result<(), ScratchError> {
    let path = std::env::var("PATH").map_or(SBIN.to_owned(), |path| format!("{path}:{SBIN}"));
    let output = Command::new(tool)
        .args(args)
        .arg(disk)
        .env("PATH", path)
        .env("LC_ALL", "C")
        .stdin(std::process::Stdio::null())
        .output()
        .map_err(|source| ScratchError::Tool { tool, source })?;
    if output.status.code().is_some_and(|code| (0..=highest_good_status).contains(&code)) {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(ScratchError::Failed { tool, path: disk.to_owned(), stderr })
}

/// Copies the data and keeps the holes; the copy appears whole or not at all.
fn copy_sparse(from: &Path, to: &Path) -> Result<(), PathError> {
    let folder = to.parent().unwrap_or(Path::new("."));
    let copy = || -> io::Result<()> {
        let mut source = File::open(from)?;
        let length = source.metadata()?.len();
        let mut target = temporary(folder, UNFINISHED)?;
        target.as_file().set_len(length)?;
        let mut buffer = vec![0; COPY_BYTES];
        let mut at = 0;
        while let Some(data) = next_data(&source, at)? {
            source.seek(SeekFrom::Start(data.start))?;
            target.seek(SeekFrom::Start(data.start))?;
            let mut left = usize::try_from(data.end - data.start).map_err(io::Error::other)?;
            while left > 0 {
                let step = left.min(buffer.len());
                source.read_exact(&mut buffer[..step])?;
                target.write_all(&buffer[..step])?;
                left -= step;
            }
            at = data.end;
        }
        target.as_file().sync_all()?;
        target.persist(to).map_err(|e| e.error)?;
        Ok(())
    };
    copy().map_err(PathError::new("make", to))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[test]
    fn a_scratch_disk_is_sparse_and_grows_and_passes_fsck() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        let folder = home.managed("web");
        create_private_dir(&folder).unwrap();
        let (_, unfinished) = temporary(&folder, UNFINISHED).unwrap().keep().unwrap();
        let disk = ensure(&home, "web", 1024 * MIB).unwrap();
        assert!(!unfinished.exists(), "what a killed copy left is gone");
        let meta = fs::metadata(&disk).unwrap();
        assert_eq!(meta.len(), 1024 * MIB);
        assert!(meta.blocks() * 512 < 32 * MIB, "{} blocks", meta.blocks());
        run("e2fsck", &["-f", "-n"], &disk, 0).unwrap();
        ensure(&home, "web", 2048 * MIB).unwrap();
        assert_eq!(fs::metadata(&disk).unwrap().len(), 2048 * MIB);
        run("e2fsck", &["-f", "-n"], &disk, 0).unwrap();
        ensure(&home, "web", 512 * MIB).unwrap();
        assert_eq!(fs::metadata(&disk).unwrap().len(), 2048 * MIB, "never shrinks");
    }

    #[test]
    fn what_is_noted_of_a_disk_goes_with_it_and_stays_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        let folder = home.managed("web");
        create_private_dir(&folder).unwrap();
        let note = || {
            for name in [INDEX_NAME, MARKER_NAME] {
                fs::write(folder.join(name), "noted").unwrap();
            }
        };
        note();
        let disk = ensure(&home, "web", 64 * MIB).unwrap();
        assert!([INDEX_NAME, MARKER_NAME].iter().all(|name| !folder.join(name).exists()));
        note();
        ensure(&home, "web", 128 * MIB).unwrap();
        assert!(OF_THE_DISK.iter().all(|name| folder.join(name).exists()));
        fs::remove_file(disk).unwrap();
        ensure(&home, "web", 64 * MIB).unwrap();
        assert!(!folder.join(MARKER_NAME).exists());
    }

    #[test]
    fn a_damaged_scratch_disk_that_must_grow_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        let folder = home.managed("web");
        create_private_dir(&folder).unwrap();
        fs::write(folder.join(SCRATCH_NAME), b"not a disk").unwrap();
        let error = ErrorBody::from(&ensure(&home, "web", 64 * MIB).unwrap_err());
        assert!(error.message.contains("e2fsck"), "{error:?}");
        assert!(error.hint.unwrap().contains("delete"));
    }
}
