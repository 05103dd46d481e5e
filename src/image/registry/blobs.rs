//! Blobs on disk: `blobs/sha256/<hex>`, there whole or not at all.
//!
//! A blob is streamed into `<hex>.partial`, which its downloader keeps locked; what is in it survives a
//! broken connection and a killed process and is asked for only once (HTTP Range). Hashing and writing
//! happen on a thread of their own ([`Sink`]), fed by a short queue, so a blob is never in memory.
//!
//! ```text
//!   connection ──▶ queue of pieces ──▶ Sink: hash + write ──▶ size and digest right? ──▶ fsync, rename
//!       ▲   broken: asked again from the bytes so far                └─ no: the partial file is removed
//!       └───────────────────────┘
//! ```

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::StreamExt as _;
use nix::fcntl::OFlag;
use oci_client::client::{BlobResponse, SizedStream};
use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, oneshot};

use super::failure::{Failure, Subject, innermost};
use super::retry::Retries;
use super::{Blob, Remote};
use crate::fsutil::PathError;
use crate::image::detached::detached;
use crate::image::digest::Digest;
use crate::image::error::ImageError;

/// Pieces between the connection and the disk; each is at most a socket read.
const QUEUE_PIECES: usize = 64;
/// Bytes a connection must bring for the count of retries to start over.
const PROGRESS_BYTES: u64 = 1024 * 1024;
const READ_BYTES: usize = 256 * 1024;

/// The folder of blobs.
#[derive(Debug, Clone)]
pub(in crate::image) struct BlobStore {
    folder: PathBuf,
}

/// How a download's file stands once everything was written.
enum Written {
    Published,
    Mismatch {
        actual: Digest,
    },
    /// Short; kept for the next attempt.
    Partial,
}

enum Piece {
    Bytes(Bytes),
    /// What follows is the blob from its first byte.
    Restart,
}

/// What there is of a blob when its download begins.
enum Opened {
    Whole,
    Partial { file: File, have: u64 },
}

impl BlobStore {
    pub(in crate::image) fn new(folder: PathBuf) -> BlobStore {
        BlobStore { folder }
    }

    /// Where a blob is once it is whole.
    pub(in crate::image) fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.hex())
    }

    fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.folder.join(format!("{}.partial", digest.hex()))
    }

    /// Whether a blob of the right size is there; its digest was checked when it was published.
    pub(in crate::image) fn has(&self, blob: &Blob) -> bool {
        fs::metadata(self.path(&blob.digest)).is_ok_and(|meta| meta.is_file() && meta.len() == blob.size)
    }

    /// Reads a blob again and removes it when it is not what its name says. Blocks.
    pub(in crate::image) fn remove_if_damaged(&self, blob: &Blob) -> Result<bool, PathError> {
        let path = self.path(&blob.digest);
        let actual = File::open(&path)
            .and_then(|mut file| {
                let mut hasher = Sha256::new();
                hash_into(&mut file, &mut hasher, u64::MAX)?;
                Ok(Digest::finish(hasher))
            })
            .map(Some)
            .or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(None) } else { Err(e) })
            .map_err(PathError::new("read", &path))?;
        match actual {
            Some(actual) if actual == blob.digest => Ok(false),
            Some(_) => fs::remove_file(&path).map(|()| true).map_err(PathError::new("remove", &path)),
            None => Ok(false),
        }
    }

    /// Makes sure that the blob is here, whole and verified. `progress` gets the bytes that are on this
    /// side so far, and whether the blob was here before. At most one process downloads a blob.
    pub(in crate::image) async fn fetch(
        &self,
        remote: &Remote<'_>,
        blob: &Blob,
        kind: &'static str,
        progress: &(dyn Fn(u64, bool) + Sync),
    ) -> Result<(), ImageError> {
        let subject = remote.subject(Some((blob, kind)));
        // A partial file of unknown origin may be wrong; then the blob is fetched once more from its start.
        for last_chance in [false, true] {
            let (have, file) = match self.open_partial(blob).await? {
                Opened::Whole => {
                    progress(blob.size, true);
                    return Ok(());
                }
                Opened::Partial { file, have } => (have, file),
            };
            progress(have, false);
            let sink = Sink::start(self.clone(), blob.clone(), file, have);
            let (written, resumed) = sink.fill(remote, blob, &subject, (have, progress)).await?;
            match written {
                Written::Published => return Ok(()),
                Written::Mismatch { .. } if resumed && !last_chance => {}
                Written::Mismatch { actual } => {
                    return Err(ImageError::DigestMismatch {
                        reference: remote.reference.to_string(),
                        what: format!("a {kind}"),
                        expected: blob.digest.to_string(),
                        actual: actual.to_string(),
                    });
                }
                Written::Partial => {
                    return Err(ImageError::Internal {
                        reference: remote.reference.to_string(),
                        reason: format!("{} was taken for whole", blob.digest),
                    });
                }
            }
        }
        unreachable!("the second round always returns")
    }

    /// Waits until nobody else downloads this blob.
    async fn open_partial(&self, blob: &Blob) -> Result<Opened, ImageError> {
        let (store, blob) = (self.clone(), blob.clone());
        let opened = detached("blob-lock", move || store.open_partial_blocking(&blob)).await;
        Ok(opened.map_err(PathError::new("lock", &self.folder))??)
    }

    fn open_partial_blocking(&self, blob: &Blob) -> Result<Opened, PathError> {
        let path = self.partial_path(&blob.digest);
        let open = || -> io::Result<Opened> {
            loop {
                if self.has(blob) {
                    return Ok(Opened::Whole);
                }
                let mut options = File::options();
                options.read(true).write(true).create(true).truncate(false).mode(0o600);
                // A link would never be at its own path, and the loop would not end.
                let file = options.custom_flags(OFlag::O_NOFOLLOW.bits()).open(&path)?;
                file.lock()?;
                // While we waited, the file may have been published or removed under its other name.
                if !is_at(&file, &path)? {
                    continue;
                }
                if self.has(blob) {
                    fs::remove_file(&path)?;
                    return Ok(Opened::Whole);
                }
                let mut have = file.metadata()?.len();
                if have > blob.size {
                    file.set_len(0)?;
                    have = 0;
                }
                return Ok(Opened::Partial { file, have });
            }
        };
        open().map_err(PathError::new("open", &path))
    }
}

/// Whether `path` still names the open file.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(named) => Ok(named.ino() == ours.ino() && named.dev() == ours.dev()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// The disk's end of a download: hashes and writes what comes through the queue, then publishes.
struct Sink {
    pieces: mpsc::Sender<Piece>,
    written: oneshot::Receiver<Result<Written, PathError>>,
}

impl Sink {
    fn start(store: BlobStore, blob: Blob, file: File, have: u64) -> Sink {
        let (pieces, queue) = mpsc::channel(QUEUE_PIECES);
        let (answer, written) = oneshot::channel();
        tokio::task::spawn_blocking(move || {
            // The asker may be gone: what was written stays for the next one.
            let _ = answer.send(store.write(&blob, file, have, queue));
        });
        Sink { pieces, written }
    }

    /// Downloads what is missing; also says whether the bytes come from more than one attempt.
    async fn fill(
        self,
        remote: &Remote<'_>,
        blob: &Blob,
        subject: &Subject<'_>,
        (have, progress): (u64, &(dyn Fn(u64, bool) + Sync)),
    ) -> Result<(Written, bool), ImageError> {
        let mut download = Download {
            remote,
            blob,
            subject,
            pieces: self.pieces,
            offset: have,
            resumed: have > 0,
            progress,
        };
        let downloaded = download.run().await;
        let resumed = download.resumed;
        drop(download);
        let written = self.written.await.map_err(|_| ImageError::Internal {
            reference: remote.reference.to_string(),
            reason: "the writer of a blob panicked".to_owned(),
        })?;
        // A disk that failed explains why the download could go no further.
        let written = written?;
        downloaded?;
        Ok((written, resumed))
    }
}

struct Download<'a> {
    remote: &'a Remote<'a>,
    blob: &'a Blob,
    subject: &'a Subject<'a>,
    pieces: mpsc::Sender<Piece>,
    offset: u64,
    resumed: bool,
    progress: &'a (dyn Fn(u64, bool) + Sync),
}

/// Why a connection was left.
enum Left {
    Failed(Failure),
    /// The sink is gone; it knows why.
    SinkEnded,
}

impl From<Failure> for Left {
    fn from(failure: Failure) -> Left {
        Left::Failed(failure)
    }
}

impl Download<'_> {
    async fn run(&mut self) -> Result<(), ImageError> {
        let mut retries = Retries::new(self.remote.limits);
        while self.offset < self.blob.size {
            let before = self.offset;
            match self.connection().await {
                Ok(()) => {}
                Err(Left::SinkEnded) => return Ok(()),
                Err(Left::Failed(failure)) => {
                    if self.offset >= before.saturating_add(PROGRESS_BYTES) {
                        retries.progressed();
                    }
                    retries.wait(failure).await?;
                    self.resumed = true;
                }
            }
        }
        Ok(())
    }

    /// One connection, to its end. An end before the blob's end is a failure.
    async fn connection(&mut self) -> Result<(), Left> {
        let subject = self.subject;
        let mut stream = match self.remote.open_blob(self.blob, self.offset, subject).await? {
            BlobResponse::Partial(stream) => stream,
            BlobResponse::Full(stream) => {
                if self.offset > 0 {
                    self.send(Piece::Restart).await?;
                    self.offset = 0;
                }
                stream
            }
        };
        self.check_length(&stream)?;
        while let Some(piece) = stream.next().await {
            match piece {
                Ok(bytes) => self.take(bytes).await?,
                // The library checks whole bodies too; the sink's own check of size and digest decides.
                Err(_) if self.offset == self.blob.size => break,
                Err(error) => return Err(subject.broken(innermost(&error)).into()),
            }
        }
        match self.offset == self.blob.size {
            true => Ok(()),
            false => Err(subject
                .broken(format!("it ended after {} of {} bytes", self.offset, self.blob.size))
                .into()),
        }
    }

    fn check_length(&self, stream: &SizedStream) -> Result<(), Failure> {
        match stream.content_length {
            Some(length) if length > self.blob.size - self.offset => Err(self.too_long()),
            _ => Ok(()),
        }
    }

    async fn take(&mut self, bytes: Bytes) -> Result<(), Left> {
        let length = bytes.len() as u64;
        if length > self.blob.size - self.offset {
            return Err(self.too_long().into());
        }
        self.send(Piece::Bytes(bytes)).await?;
        self.offset += length;
        (self.progress)(self.offset, false);
        Ok(())
    }

    fn too_long(&self) -> Failure {
        Failure::fatal(ImageError::TooLong {
            reference: self.remote.reference.to_string(),
            digest: self.blob.digest.clone(),
            announced: self.blob.size,
        })
    }

    async fn send(&self, piece: Piece) -> Result<(), Left> {
        self.pieces.send(piece).await.map_err(|_| Left::SinkEnded)
    }
}

impl BlobStore {
    fn write(
        &self,
        blob: &Blob,
        mut file: File,
        have: u64,
        mut queue: mpsc::Receiver<Piece>,
    ) -> Result<Written, PathError> {
        let path = self.partial_path(&blob.digest);
        let mut take = || -> io::Result<Written> {
            let mut hasher = Sha256::new();
            let mut length = hash_into(&mut file, &mut hasher, have)?;
            while let Some(piece) = queue.blocking_recv() {
                match piece {
                    Piece::Bytes(bytes) => {
                        hasher.update(&bytes);
                        file.write_all(&bytes)?;
                        length += bytes.len() as u64;
                    }
                    Piece::Restart => {
                        file.set_len(0)?;
                        file.rewind()?;
                        hasher = Sha256::new();
                        length = 0;
                    }
                }
            }
            if length != blob.size {
                return Ok(Written::Partial);
            }
            let actual = Digest::finish(hasher);
            if actual != blob.digest {
                fs::remove_file(&path)?;
                return Ok(Written::Mismatch { actual });
            }
            file.sync_all()?;
            fs::rename(&path, self.path(&blob.digest))?;
            File::open(&self.folder)?.sync_all()?;
            Ok(Written::Published)
        };
        take().map_err(PathError::new("write", &path))
    }
}

/// Feeds at most `limit` bytes from the file's position to the hasher; says how many there were.
fn hash_into(file: &mut File, hasher: &mut Sha256, limit: u64) -> io::Result<u64> {
    let mut buffer = vec![0u8; READ_BYTES];
    let mut total = 0;
    let mut limited = file.take(limit);
    loop {
        match limited.read(&mut buffer)? {
            0 => return Ok(total),
            n => {
                hasher.update(&buffer[..n]);
                total += n as u64;
            }
        }
    }
}
