//! Scratch disks: one sparse ext4 per worker, the writable half of its root file system.
//!
//! `mke2fs` makes one template per size; a worker's disk is a copy of it that keeps the holes, so a
//! 16 GiB disk costs some hundred KiB and a few milliseconds.
//!
//! What a project's `setup` and `install` wrote is of no use on another base image: its packages and their lists would
//! hide what the new one brings. So the disk of a project belongs to one base image, which `base.json` beside it names,
//! and a start from another one makes a new disk in its place:
//!
//! ```text
//!  copy, under another name ─▶ marker, index and the old disk go ─▶ base.json ─▶ the copy gets its name
//! ```
//! Until the copy is there nothing is lost. Killed at any moment after that, there is no disk, or an old one that
//! is still known as such and of which nothing is noted: the next start makes the new one.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use iii_protocol::api::{ErrorBody, ErrorCode};
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use crate::fsutil::{
    LockFile, PathError, create_private_dir, next_data, remove_files, sweep_prefixed, temporary, write_atomic,
};
use crate::home::Home;
use crate::prepare::MARKER_NAME;
use crate::project::index::INDEX_NAME;

/// Changes when templates made by an older version must not be used any more.
const TEMPLATE_VERSION: u32 = 1;
/// MiB of the file system's journal: enough for a worker, small enough to be written quickly.
const JOURNAL_MIB: &str = "16";
/// The worker's disk, in its managed folder.
pub const SCRATCH_NAME: &str = "scratch.ext4";
/// Which base image a project's disk was made for, in its managed folder; not there for a disk of an image worker.
pub const BASE_NAME: &str = "base.json";
/// What goes when a worker begins from scratch, in its managed folder: the disk, and what is noted of what is on it.
/// Deleted from the last to the first, so that nothing of its content is ever noted of a disk that has gone.
pub const OF_THE_DISK: [&str; 4] = [BASE_NAME, SCRATCH_NAME, INDEX_NAME, MARKER_NAME];
/// The version of [`BASE_NAME`] that is written, and the only one that is read.
const BASE_VERSION: u32 = 1;
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

/// Where the project of a plain process is (test builds), which shares the host's files: beside its disk, with which it
/// goes.
pub(super) fn workspace_of_process(disk: &Path) -> PathBuf {
    disk.with_extension("workspace")
}

/// Which disk a machine gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// The one that its worker had.
    Kept,
    /// The first one.
    New,
    /// A new one, because the one before was made for another base image.
    Replaced,
}

/// What [`BASE_NAME`] says.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Base {
    version: u32,
    /// Digest of the image.
    base_image: String,
}

/// Makes sure the worker has a scratch disk of at least `bytes`. One that is larger already is left as
/// it is; a smaller one grows, with its contents. That of a project is replaced if it was not made for `base_image`, the
/// digest of its base image (`None` for an image worker, whose disk outlives its image). Removes what a killed process
/// left of an unfinished copy. Blocks; only for whoever holds the lock of the worker's shim.
pub fn ensure(home: &Home, worker: &str, bytes: u64, base_image: Option<&str>) -> Result<Disk, ScratchError> {
    let folder = home.managed(worker);
    create_private_dir(&folder)?;
    sweep_prefixed(&folder, UNFINISHED);
    let disk = path(home, worker);
    let length = match fs::metadata(&disk) {
        Ok(meta) => Some(meta.len()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(PathError::new("look at", disk)(e).into()),
    };
    let is_of_another = base_image.is_some_and(|base| base_of(&folder).as_deref() != Some(base));
    if base_image.is_none() {
        // Its machine may write anything: from now on this is no project's disk.
        remove_files(&folder, [INDEX_NAME, MARKER_NAME, BASE_NAME])?;
    }
    match length {
        Some(length) if !is_of_another => {
            if length < bytes {
                grow(&disk, bytes)?;
            }
            Ok(Disk::Kept)
        }
        before => {
            let copy = copy_sparse(&template(home, bytes)?, &folder)?;
            let _old = before.map(|_| unused(&disk)).transpose()?;
            remove_files(&folder, [MARKER_NAME, INDEX_NAME, SCRATCH_NAME])?;
            #[cfg(feature = "process-launcher")]
            // There need not be anything.
            let _none = fs::remove_dir_all(workspace_of_process(&disk));
            if let Some(base) = base_image {
                let base = Base { version: BASE_VERSION, base_image: base.to_owned() };
                let path = folder.join(BASE_NAME);
                let text = serde_json::to_vec(&base).map_err(|e| PathError::new("write", &path)(e.into()))?;
                write_atomic(&path, &text)?;
            }
            copy.persist(&disk).map_err(|e| PathError::new("make", &disk)(e.error))?;
            Ok(if before.is_some() { Disk::Replaced } else { Disk::New })
        }
    }
}

/// The base image that a project's disk was made for, as far as that is known.
fn base_of(folder: &Path) -> Option<String> {
    let base: Base = serde_json::from_slice(&fs::read(folder.join(BASE_NAME)).ok()?).ok()?;
    (base.version == BASE_VERSION).then_some(base.base_image)
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

/// The disk, locked. A machine that still has it (one of a project that was moved, or that is just being killed) would
/// be ruined: its VMM holds this lock, and is waited for.
fn unused(disk: &Path) -> Result<File, PathError> {
    let file = File::options().write(true).open(disk).map_err(PathError::new("open", disk))?;
    file.lock().map_err(PathError::new("lock", disk))?;
    Ok(file)
}

fn grow(disk: &Path, bytes: u64) -> Result<(), ScratchError> {
    let file = unused(disk)?;
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

/// Copies the data into `folder` and keeps the holes; what is given has no name that counts yet.
fn copy_sparse(from: &Path, folder: &Path) -> Result<NamedTempFile, PathError> {
    let copy = || -> io::Result<NamedTempFile> {
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
        Ok(target)
    };
    copy().map_err(PathError::new("make a disk in", folder))
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
        let ensure = |mib: u64| ensure(&home, "web", mib * MIB, None).unwrap();
        let disk = path(&home, "web");
        assert_eq!(ensure(1024), Disk::New);
        assert!(!unfinished.exists(), "what a killed copy left is gone");
        let meta = fs::metadata(&disk).unwrap();
        assert_eq!(meta.len(), 1024 * MIB);
        assert!(meta.blocks() * 512 < 32 * MIB, "{} blocks", meta.blocks());
        run("e2fsck", &["-f", "-n"], &disk, 0).unwrap();
        assert_eq!(ensure(2048), Disk::Kept);
        assert_eq!(fs::metadata(&disk).unwrap().len(), 2048 * MIB);
        run("e2fsck", &["-f", "-n"], &disk, 0).unwrap();
        assert_eq!(ensure(512), Disk::Kept);
        assert_eq!(fs::metadata(&disk).unwrap().len(), 2048 * MIB, "never shrinks");
    }

    /// A home with a project `app`, whose base images are `a`, `b` and so on.
    struct Project {
        _dir: tempfile::TempDir,
        home: Home,
        folder: PathBuf,
    }

    impl Project {
        fn new() -> Project {
            let dir = tempfile::tempdir().unwrap();
            let home = Home::at(dir.path());
            let folder = home.managed("app");
            Project { _dir: dir, home, folder }
        }

        fn ensure(&self, mib: u64, base: Option<&str>) -> Disk {
            ensure(&self.home, "app", mib * MIB, base).unwrap()
        }

        /// What runs of it leaves notes, and a word on the disk's last bytes.
        fn run(&self) {
            for name in [INDEX_NAME, MARKER_NAME] {
                fs::write(self.folder.join(name), "noted").unwrap();
            }
            let mut disk = File::options().write(true).open(path(&self.home, "app")).unwrap();
            disk.seek(SeekFrom::End(-5)).unwrap();
            disk.write_all(b"mine!").unwrap();
        }

        fn has_notes(&self) -> bool {
            [INDEX_NAME, MARKER_NAME].iter().any(|name| self.folder.join(name).exists())
        }

        fn is_written(&self) -> bool {
            let mut disk = File::open(path(&self.home, "app")).unwrap();
            disk.seek(SeekFrom::End(-5)).unwrap();
            let mut end = [0; 5];
            disk.read_exact(&mut end).unwrap();
            end == *b"mine!"
        }
    }

    #[test]
    fn what_is_noted_of_a_disk_goes_with_it_and_stays_with_it() {
        let project = Project::new();
        create_private_dir(&project.folder).unwrap();
        fs::write(project.folder.join(MARKER_NAME), "of no disk").unwrap();
        assert_eq!(project.ensure(64, Some("a")), Disk::New);
        assert!(!project.has_notes());
        project.run();
        assert_eq!(project.ensure(128, Some("a")), Disk::Kept);
        assert!(OF_THE_DISK.iter().all(|name| project.folder.join(name).exists()));
        fs::remove_file(path(&project.home, "app")).unwrap();
        assert_eq!(project.ensure(64, Some("a")), Disk::New);
        assert!(!project.has_notes());
    }

    #[test]
    fn another_base_image_makes_a_new_disk_for_a_project_and_keeps_that_of_an_image() {
        let project = Project::new();
        project.ensure(64, Some("a"));
        project.run();
        assert_eq!(project.ensure(64, Some("b")), Disk::Replaced);
        assert!(!project.has_notes() && !project.is_written());
        run("e2fsck", &["-f", "-n"], &path(&project.home, "app"), 0).unwrap();
        project.run();
        assert_eq!(project.ensure(64, Some("b")), Disk::Kept);
        assert!(project.has_notes() && project.is_written());

        // An image worker of that name has the disk, and no project has it after that.
        assert_eq!(project.ensure(64, None), Disk::Kept);
        assert!(!project.has_notes() && project.is_written());
        assert_eq!(project.ensure(64, None), Disk::Kept);
        assert_eq!(project.ensure(64, Some("b")), Disk::Replaced);
        assert!(!project.is_written());
    }

    #[test]
    fn a_base_that_cannot_be_told_is_another_one() {
        for text in ["", "{}", r#"{"version":2,"base_image":"a"}"#, r#"{"version":1,"base_image":"a","x":1}"#]
        {
            let project = Project::new();
            project.ensure(64, Some("a"));
            assert_eq!(project.ensure(64, Some("a")), Disk::Kept);
            fs::write(project.folder.join(BASE_NAME), text).unwrap();
            assert_eq!(project.ensure(64, Some("a")), Disk::Replaced, "{text}");
        }
    }

    #[test]
    fn a_replacement_that_is_cut_short_is_done_again_and_one_that_cannot_begin_loses_nothing() {
        // After each of its steps, and before the first.
        let gone =
            [&[][..], &[MARKER_NAME], &[MARKER_NAME, INDEX_NAME], &[MARKER_NAME, INDEX_NAME, SCRATCH_NAME]];
        for gone in gone {
            let project = Project::new();
            project.ensure(64, Some("a"));
            project.run();
            remove_files(&project.folder, gone.iter().copied()).unwrap();
            let expected = if gone.contains(&SCRATCH_NAME) { Disk::New } else { Disk::Replaced };
            assert_eq!(project.ensure(64, Some("b")), expected, "{gone:?}");
            assert!(!project.has_notes() && !project.is_written(), "{gone:?}");
            assert_eq!(project.ensure(64, Some("b")), Disk::Kept);
        }
        let project = Project::new();
        project.ensure(64, Some("a"));
        project.run();
        // No such size can be made.
        ensure(&project.home, "app", 1 << 62, Some("b")).unwrap_err();
        assert!(project.has_notes() && project.is_written());
        assert_eq!(project.ensure(64, Some("a")), Disk::Kept);
    }

    #[test]
    fn a_damaged_scratch_disk_that_must_grow_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        let folder = home.managed("web");
        create_private_dir(&folder).unwrap();
        fs::write(folder.join(SCRATCH_NAME), b"not a disk").unwrap();
        let error = ErrorBody::from(&ensure(&home, "web", 64 * MIB, None).unwrap_err());
        assert!(error.message.contains("e2fsck"), "{error:?}");
        assert!(error.hint.unwrap().contains("delete"));
    }
}
