//! Copies what changed of the project into the machine.

use std::io::{self, BufWriter, Read as _, Write};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use iii_archive::read::EntryKind as ArchiveKind;
use iii_archive::write::{Head, Writer};
use iii_protocol::session::{End, EndCause, MAX_DATA_BYTES, Task};
use nix::errno::Errno;
use sha2::{Digest as _, Sha256};

use super::scripts::Keys;
use super::{Failed, KIND_SKIPPED, Order, Skipped, note, progress, say, session};
use crate::project::ProjectSpec;
use crate::project::files::{self, EntryKind, FileEntry, full_path, open, shown};
use crate::project::index::{Hash, INDEX_NAME, Index};
use crate::project::install_key::{install_key, setup_key};
use crate::project::sync::{Outgoing, Remove, SyncPlan, diff};
use crate::session::{Input, Session};
use crate::units::short_bytes;

/// How often a listing is tried of a project that changes meanwhile.
const LISTINGS: usize = 5;
/// Between two words about the progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// In a second.
const NANOSECONDS: i128 = 1_000_000_000;
/// Bytes of a file read at a time.
const READ_BYTES: usize = 64 * 1024;
/// Most paths that the log names of those which are not copied.
const MAX_TOLD: usize = 10;

/// What to do when the machine's disk is full.
pub(super) const DISK_HINT: &str =
    "raise `disk` under the worker's `resources:` in config.yaml, then start it again";

/// What there is to do.
#[derive(Debug)]
pub(super) struct Survey {
    before: Index,
    taken_ns: i128,
    plan: SyncPlan,
}

/// What the machine has.
#[derive(Debug)]
pub(super) struct Copied {
    index: Index,
    /// Whether there was anything to copy.
    pub(super) changed: bool,
}

impl Copied {
    /// What the scripts depend on. Of the files it is what the machine has, not what the project has by now: an edit
    /// that came since it was listed is copied by the next update, and is new to an install then.
    pub(super) fn keys(&self, project: &ProjectSpec) -> Keys {
        let (script, image) = (project.install.as_deref(), &project.base_image);
        Keys {
            setup: setup_key(project.setup.as_deref(), image),
            install: install_key(project.kind, script, image, &self.index),
        }
    }
}

fn failed(error: impl std::fmt::Display) -> Failed {
    Failed::new("copy", error.to_string())
}

/// Lists the project and compares it with what the machine has.
pub(super) fn survey(order: &Order) -> Result<Survey, Failed> {
    let index = order.notes.join(INDEX_NAME);
    // Without an index nothing is known, so everything is sent.
    let before = Index::read(&index).unwrap_or_else(|error| {
        note(format!("{error}; all files are copied again"));
        None
    });
    let before = before.unwrap_or_default();
    for _ in 0..LISTINGS {
        match look(order, &before) {
            Err(Unsteady::Gone) => {}
            Err(Unsteady::Failed(failed)) => return Err(failed),
            Ok((taken_ns, plan)) => return Ok(Survey { before, taken_ns, plan }),
        }
    }
    Err(Failed {
        hint: Some("try again when nothing writes into it".to_owned()),
        ..failed(format!("{} changes all the time", order.project.folder.display()))
    })
}

enum Unsteady {
    /// A file that was listed is not there any more.
    Gone,
    Failed(Failed),
}

fn look(order: &Order, before: &Index) -> Result<(i128, SyncPlan), Unsteady> {
    let project = &order.project;
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let taken_ns = i128::try_from(since.as_nanos()).unwrap_or(i128::MAX);
    let listed = files::list(&project.folder, &project.exclude)
        .map_err(|error| Unsteady::Failed(Failed { hint: error.hint(), ..failed(error) }))?;
    let first = listed.skipped.iter().take(MAX_TOLD);
    let mut lines: Vec<_> =
        first.map(|(path, why)| format!("{} {why}: it is not copied", shown(path))).collect();
    if let Some(more) = listed.skipped.len().checked_sub(MAX_TOLD).filter(|more| *more > 0) {
        lines.push(format!("{more} more are not copied"));
    }
    say(KIND_SKIPPED, &Skipped { lines });
    let plan = diff(&listed.entries, before, |entry| hash_of(&project.folder, entry))?;
    Ok((taken_ns, plan))
}

fn hash_of(folder: &Path, entry: &FileEntry) -> Result<Hash, Unsteady> {
    files::hash(folder, entry).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Unsteady::Gone,
        _ => Unsteady::Failed(unreadable(&full_path(folder, entry), &error)),
    })
}

fn unreadable(path: &Path, error: &io::Error) -> Failed {
    let hint = "make it readable, or leave it out with `.iiiignore` or `--exclude`".to_owned();
    Failed { hint: Some(hint), ..failed(format!("cannot read {}: {error}", path.display())) }
}

/// Sends what changed, and notes what is there.
pub(super) async fn copy(order: &Order, survey: Survey) -> Result<Copied, Failed> {
    let Survey { before, taken_ns, plan } = survey;
    if plan.is_empty() {
        return Ok(Copied { index: before, changed: false });
    }
    let index = order.notes.join(INDEX_NAME);
    plan.under_way(&before).write(&index).map_err(failed)?;
    drop(before);
    let counts =
        [(plan.send.len(), "to copy"), (plan.remove.len(), "to remove"), (plan.adjust.len(), "to touch")];
    let counts: Vec<String> =
        counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
    progress(format!("copying the project: {}", counts.join(", ")));
    let changes = changes(&plan);
    let length = u32::try_from(changes.len()).map_err(|_| failed("too many files to remove at a time"))?;
    let task = Task::Update { path: order.workspace.clone(), changes: length };
    let (folder, send) = (order.project.folder.clone(), plan.send.clone());
    let hashes = update(order, "copy", task, move |out| {
        out.write_all(&changes).map_err(Broken::Link)?;
        archive(&folder, &send, out)
    });
    let hashes = hashes.await?;
    let mut sent = hashes.into_iter();
    // One hash for each file, in the order of the plan.
    let done = plan.finish(taken_ns, |_| sent.next().flatten());
    done.write(&index).map_err(failed)?;
    Ok(Copied { index: done, changed: true })
}

/// Has the guest write all it holds to its disk.
pub(super) async fn flush(order: &Order, what: &'static str) -> Result<(), Failed> {
    let task = Task::Update { path: order.workspace.clone(), changes: 0 };
    update(order, what, task, |_| Ok(())).await
}

enum Broken {
    /// Nobody takes it any more.
    Link(io::Error),
    Failed(Failed),
}

/// A session of the kind `update`, fed by `write` in a thread.
async fn update<T: Send + 'static>(
    order: &Order,
    what: &'static str,
    task: Task,
    write: impl FnOnce(&mut BufWriter<Input>) -> Result<T, Broken> + Send + 'static,
) -> Result<T, Failed> {
    let lost = |why: &dyn std::fmt::Display| Failed::new(what, format!("the machine was lost: {why}"));
    let session = session(&order.session_socket, task).await.map_err(|e| lost(&e))?;
    let Session { input, mut ending, stdout: _stdout, stderr: _stderr, .. } = session;
    let writer = tokio::task::spawn_blocking(move || {
        let mut out = BufWriter::with_capacity(MAX_DATA_BYTES, input);
        let written = write(&mut out)?;
        let input = out.into_inner().map_err(|e| Broken::Link(e.into_error()))?;
        input.blocking_finish().map_err(|e| Broken::Link(io::Error::other(e)))?;
        Ok(written)
    });
    let written = writer.await.map_err(|e| lost(&e))?;
    let written = match written {
        // The guest would wait for the end of an input that stopped: half of it is never called whole.
        Err(Broken::Failed(failed)) => return Err(failed),
        // Why nobody takes it, the end of the session may tell better.
        Err(Broken::Link(error)) => Err(lost(&error)),
        Ok(written) => Ok(written),
    };
    match ending.wait().await.map_err(|e| lost(&e))? {
        End { cause: EndCause::Exit { code: 0 } } => written,
        End { cause: EndCause::CopyFailed { message, hint } | EndCause::CouldNotStart { message, hint } } => {
            Err(Failed { hint: hint.or_else(|| disk_hint(&message)), ..Failed::new(what, message) })
        }
        End { cause } => Err(Failed::new(what, format!("the copy ended in an unexpected way: {cause:?}"))),
    }
}

fn disk_hint(message: &str) -> Option<String> {
    message.contains("No space left").then(|| DISK_HINT.to_owned())
}

/// The list of changes as the guest takes it ([`Task::Update`]).
fn changes(plan: &SyncPlan) -> Vec<u8> {
    let mut list = Vec::new();
    let mut add = |head: &[u8], path: &[u8]| {
        for part in [head, b" ", path, b"\0"] {
            list.extend_from_slice(part);
        }
    };
    for gone in &plan.remove {
        let how: &[u8] = match gone.how {
            Remove::File => b"F",
            Remove::EmptyFolder => b"E",
            Remove::Tree => b"T",
        };
        add(how, &gone.path);
    }
    for entry in &plan.adjust {
        let mtime_ns = match entry.kind {
            EntryKind::File { mtime_ns, .. } => mtime_ns,
            EntryKind::Folder | EntryKind::Link { .. } => 0,
        };
        add(format!("M {:o} {mtime_ns}", entry.mode).as_bytes(), &entry.path);
    }
    list
}

/// Writes what is sent as an archive. Gives the hash of each file's bytes, `None` for one that was not whole.
fn archive(
    folder: &Path,
    send: &[Outgoing],
    out: &mut BufWriter<Input>,
) -> Result<Vec<Option<Hash>>, Broken> {
    if send.is_empty() {
        return Ok(Vec::new());
    }
    let (mut writer, mut hashes, mut meter) = (Writer::new(out), Vec::new(), Meter::of(send));
    for Outgoing { entry, .. } in send {
        match &entry.kind {
            EntryKind::File { .. } => hashes.push(file(folder, entry, &mut writer, &mut meter)?),
            EntryKind::Folder => {
                let path = [&entry.path[..], b"/"].concat();
                writer
                    .head(&head(&path, entry, ArchiveKind::Folder, b"", 0, (0, 0)))
                    .map_err(Broken::Link)?;
            }
            EntryKind::Link { target } => {
                let head = head(&entry.path, entry, ArchiveKind::Symlink, target, 0, (0, 0));
                writer.head(&head).map_err(Broken::Link)?;
            }
        }
        meter.add(1, 0);
    }
    writer.finish().map_err(Broken::Link)?;
    Ok(hashes)
}

/// How far a copy is, told now and then.
struct Meter {
    told: Instant,
    items: usize,
    of_items: usize,
    bytes: u64,
    of_bytes: u64,
}

impl Meter {
    fn of(send: &[Outgoing]) -> Meter {
        let of_bytes = send.iter().map(|outgoing| outgoing.entry.bytes()).sum();
        Meter { told: Instant::now(), items: 0, of_items: send.len(), bytes: 0, of_bytes }
    }

    fn add(&mut self, items: usize, bytes: u64) {
        self.items += items;
        self.bytes += bytes;
        if self.told.elapsed() >= PROGRESS_INTERVAL {
            self.told = Instant::now();
            progress(format!(
                "copying the project: {} of {}, {} of {}",
                self.items,
                self.of_items,
                short_bytes(self.bytes),
                short_bytes(self.of_bytes)
            ));
        }
    }
}

fn head<'a>(
    path: &'a [u8],
    entry: &FileEntry,
    kind: ArchiveKind,
    link: &'a [u8],
    size: u64,
    mtime: (i64, u32),
) -> Head<'a> {
    Head { path, kind, link, size, mode: entry.mode, uid: 0, gid: 0, mtime }
}

/// One file as it is now. One that shrinks meanwhile is filled up, and does not count as sent.
fn file<W: Write>(
    folder: &Path,
    entry: &FileEntry,
    writer: &mut Writer<W>,
    meter: &mut Meter,
) -> Result<Option<Hash>, Broken> {
    let path = full_path(folder, entry);
    let opened = open(&path).and_then(|file| Ok((file.metadata()?, file)));
    let (meta, mut file) = match opened {
        Ok((meta, file)) if meta.is_file() => (meta, file),
        // It was one when the project was listed; the next start sees what it is now.
        Ok(_) => return Ok(None),
        // ELOOP: it is a link now.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || error.raw_os_error() == Some(Errno::ELOOP as i32) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(Broken::Failed(unreadable(&path, &error))),
    };
    let size = meta.len();
    let EntryKind::File { mtime_ns, .. } = entry.kind else { return Ok(None) };
    // To the nanosecond: whoever builds there compares it with what was built in the same second.
    let seconds = i64::try_from(mtime_ns.div_euclid(NANOSECONDS)).unwrap_or_default();
    let mtime = (seconds, u32::try_from(mtime_ns.rem_euclid(NANOSECONDS)).unwrap_or_default());
    writer.head(&head(&entry.path, entry, ArchiveKind::File, b"", size, mtime)).map_err(Broken::Link)?;
    let (mut left, mut hash, mut buffer) = (size, Sha256::new(), vec![0; READ_BYTES]);
    let mut is_whole = true;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(READ_BYTES).min(READ_BYTES);
        let read = match is_whole {
            true => file.read(&mut buffer[..most]).map_err(|e| Broken::Failed(unreadable(&path, &e)))?,
            false => 0,
        };
        let bytes = if read == 0 {
            is_whole = false;
            buffer[..most].fill(0);
            &buffer[..most]
        } else {
            &buffer[..read]
        };
        hash.update(bytes);
        writer.body(bytes).map_err(Broken::Link)?;
        left -= bytes.len() as u64;
        meter.add(0, bytes.len() as u64);
    }
    writer.pad(size).map_err(Broken::Link)?;
    Ok(is_whole.then(|| hash.finalize().into()))
}
