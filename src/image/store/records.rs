//! What is kept of images: root disks and the facts about them, each whole or not there.
//!
//! | file in `images/` | what it is | written |
//! |---|---|---|
//! | `<hex>.erofs` | root disk of the manifest `sha256:<hex>` | temp, fsync, rename |
//! | `<hex>.json` | [`ImageRecord`]; the image counts as there only with it | after the disk |
//! | `<hex>.lock` | held by who makes the two above | never removed |
//! | `<hex>.erofs.tmp`, `.tmp-<hex>-*` | one of the two, unfinished; garbage when the lock is free | under the lock |
//! | `refs/<sha256 of the reference>.json` | [`RefRecord`]: what a reference meant when last asked | last, temp, fsync, rename |
//! | `refs/lock` | held by who writes there; an unfinished file is garbage when it is free | never removed |
//!
//! A record of another version, or one that does not parse, is as good as none: it is written anew.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::checksum::checksum;
use crate::fsutil::{
    LockError, LockFile, PathError, TEMPORARY_PREFIX, create_private_dir, sweep_prefixed, sweep_temporary,
    write_atomic_by,
};
use crate::image::digest::Digest;
use crate::image::reference::Reference;
use crate::image::types::{Image, ImageConfig};
use crate::image::worker_manifest::WorkerManifest;

/// Version of [`ImageRecord`]; read and written by this version only. It also grows when more of an image's
/// worker manifest is understood.
const IMAGE_RECORD_VERSION: u32 = 3;
/// Version of [`RefRecord`]; read and written by this version only.
const REF_RECORD_VERSION: u32 = 1;
/// Grows whenever the builder writes other bytes for the same layers: older disks are then built anew.
const BUILDER_FORMAT: u32 = 1;

const DISK_SUFFIX: &str = ".erofs";
const TEMP_SUFFIX: &str = ".erofs.tmp";

/// The facts about a finished root disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ImageRecord {
    version: u32,
    builder: u32,
    digest: String,
    config: ImageConfig,
    root_disk_bytes: u64,
    /// [`checksum`] of the disk.
    root_disk_checksum: String,
    worker_manifest: WorkerManifest,
    /// Digests of the config and the layers in `blobs/`, for whoever clears up there.
    blobs: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RefRecord {
    version: u32,
    reference: String,
    digest: String,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// The folder `images/`.
#[derive(Debug, Clone)]
pub(super) struct Records {
    folder: PathBuf,
}

impl Records {
    pub(super) fn new(folder: PathBuf) -> Records {
        Records { folder }
    }

    pub(super) fn create_folders(&self) -> Result<(), PathError> {
        create_private_dir(&self.refs())
    }

    /// The finished image of a manifest, if its disk is there and was written by this builder.
    pub(super) fn image(&self, digest: &Digest) -> Result<Option<Image>, PathError> {
        let Some(record) = read::<ImageRecord>(&self.file(digest, ".json"), IMAGE_RECORD_VERSION)? else {
            return Ok(None);
        };
        let root_disk = self.file(digest, DISK_SUFFIX);
        let there = fs::metadata(&root_disk).is_ok_and(|m| m.is_file() && m.len() == record.root_disk_bytes);
        let fits = there && record.builder == BUILDER_FORMAT && record.digest == digest.to_string();
        Ok(fits.then_some(Image {
            digest: record.digest,
            config: record.config,
            root_disk,
            root_disk_bytes: record.root_disk_bytes,
            worker_manifest: record.worker_manifest,
        }))
    }

    /// What a reference meant when it was last resolved.
    pub(super) fn resolve(&self, reference: &Reference) -> Result<Option<Digest>, PathError> {
        let canonical = reference.to_string();
        let record = read::<RefRecord>(&self.ref_file(&canonical), REF_RECORD_VERSION)?;
        let known = record.filter(|r| r.reference == canonical).and_then(|r| r.digest.parse().ok());
        // A digest that is no index names the image itself.
        Ok(known.or_else(|| reference.digest().cloned()))
    }

    /// Remembers what a reference means. Blocks for as long as another process does the same.
    pub(super) fn remember(&self, reference: &Reference, digest: &Digest) -> Result<(), LockError> {
        let reference = reference.to_string();
        let path = self.ref_file(&reference);
        let record = RefRecord { version: REF_RECORD_VERSION, reference, digest: digest.to_string() };
        if read::<RefRecord>(&path, REF_RECORD_VERSION)?.as_ref() == Some(&record) {
            return Ok(());
        }
        let _lock = LockFile::acquire(&self.refs().join("lock"))?;
        sweep_temporary(&self.refs());
        Ok(write(&path, &record, TEMPORARY_PREFIX)?)
    }

    /// Waits until nobody else makes this image, then clears what dead processes left behind. Blocks.
    pub(super) fn lock(&self, digest: &Digest) -> Result<LockFile, LockError> {
        let lock = LockFile::acquire(&self.file(digest, ".lock"))?;
        remove_if_there(&self.file(digest, TEMP_SUFFIX))?;
        sweep_prefixed(&self.folder, &record_prefix(digest.hex()));
        self.sweep();
        Ok(lock)
    }

    /// A new file for the disk of a manifest whose lock is held.
    pub(super) fn create_temp(&self, digest: &Digest) -> Result<File, PathError> {
        let path = self.file(digest, TEMP_SUFFIX);
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .map_err(PathError::new("create", path))
    }

    /// Drops a disk that was not finished.
    pub(super) fn discard_temp(&self, digest: &Digest) {
        // What cannot be removed now is removed under the next lock.
        let _ = fs::remove_file(self.file(digest, TEMP_SUFFIX));
    }

    /// Makes a finished disk and its record visible.
    pub(super) fn publish(
        &self,
        digest: &Digest,
        file: &File,
        config: ImageConfig,
        worker_manifest: WorkerManifest,
        blobs: Vec<String>,
    ) -> Result<Image, PathError> {
        let (temp, root_disk) = (self.file(digest, TEMP_SUFFIX), self.file(digest, DISK_SUFFIX));
        let durable = || -> io::Result<(u64, Digest)> {
            file.sync_all()?;
            let sum = checksum(file, &mut |_| ())?;
            fs::rename(&temp, &root_disk)?;
            Ok((file.metadata()?.len(), sum))
        };
        let (root_disk_bytes, sum) = durable().map_err(PathError::new("write", &root_disk))?;
        let record = ImageRecord {
            version: IMAGE_RECORD_VERSION,
            builder: BUILDER_FORMAT,
            digest: digest.to_string(),
            config: config.clone(),
            root_disk_bytes,
            root_disk_checksum: sum.to_string(),
            worker_manifest: worker_manifest.clone(),
            blobs,
        };
        // This also makes the rename above durable: it syncs the folder.
        write(&self.file(digest, ".json"), &record, &record_prefix(digest.hex()))?;
        Ok(Image { digest: record.digest, config, root_disk, root_disk_bytes, worker_manifest })
    }

    /// Looks whether the disk of a manifest still is what was built, and forgets the image if it is not. The disk
    /// itself stays until another one takes its name: machines may run from it. Returns whether it was forgotten;
    /// `false` also if there is no such image. `progress` is told how many bytes of the disk were looked at, and of how
    /// many. Blocks, also for as long as another process makes the image.
    pub(super) fn forget_if_damaged(
        &self,
        digest: &Digest,
        progress: impl Fn(u64, u64),
    ) -> Result<bool, LockError> {
        if self.image(digest)?.is_none() {
            return Ok(false);
        }
        let _lock = self.lock(digest)?;
        let path = self.file(digest, ".json");
        let Some(record) = read::<ImageRecord>(&path, IMAGE_RECORD_VERSION)? else { return Ok(false) };
        let root_disk = self.file(digest, DISK_SUFFIX);
        let disk = File::open(&root_disk).map_err(PathError::new("open", &root_disk))?;
        let damage = match checksum(&disk, &mut |done| progress(done, record.root_disk_bytes)) {
            Ok(sum) if sum.to_string() == record.root_disk_checksum => return Ok(false),
            Ok(_) => "it is not what was built".to_owned(),
            // The medium itself is damaged.
            Err(error) => format!("it cannot be read: {error}"),
        };
        tracing::warn!("the root disk {} is damaged and will be built anew: {damage}", root_disk.display());
        remove_if_there(&path)?;
        Ok(true)
    }

    /// Removes what processes that died left of other images. Best effort: what cannot be removed harms nobody.
    fn sweep(&self) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(hex) = name.to_str().and_then(unfinished) else { continue };
            if let Ok(_free) = LockFile::try_acquire(&self.folder.join(format!("{hex}.lock"))) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn file(&self, digest: &Digest, suffix: &str) -> PathBuf {
        self.folder.join(format!("{}{suffix}", digest.hex()))
    }

    fn refs(&self) -> PathBuf {
        self.folder.join("refs")
    }

    fn ref_file(&self, canonical: &str) -> PathBuf {
        self.refs().join(format!("{}.json", Digest::of(canonical.as_bytes()).hex()))
    }
}

/// How the temporary file of an image's record begins.
fn record_prefix(hex: &str) -> String {
    format!("{TEMPORARY_PREFIX}{hex}-")
}

/// Which image's disk or record a file of this name is an unfinished one of, if it is.
fn unfinished(name: &str) -> Option<&str> {
    let record = || name.strip_prefix(TEMPORARY_PREFIX)?.split_once('-').map(|(hex, _)| hex);
    name.strip_suffix(TEMP_SUFFIX).or_else(record)
}

fn remove_if_there(path: &Path) -> Result<(), PathError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(PathError::new("remove", path)(e)),
        _ => Ok(()),
    }
}

fn read<T: DeserializeOwned>(path: &Path, version: u32) -> Result<Option<T>, PathError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(PathError::new("read", path)(e)),
    };
    match serde_json::from_slice::<Version>(&bytes) {
        Ok(found) if found.version == version => Ok(serde_json::from_slice(&bytes).ok()),
        _ => Ok(None),
    }
}

fn write<T: Serialize>(path: &Path, record: &T, prefix: &str) -> Result<(), PathError> {
    let bytes = serde_json::to_vec_pretty(record).map_err(io::Error::other);
    write_atomic_by(path, &bytes.map_err(PathError::new("write", path))?, prefix)
}
