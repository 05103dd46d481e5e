//! The daemon's end of the link to one shim: turns frames into machine events and log records.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use iii_protocol::api::Refused;
use iii_protocol::exit::{ExitCause, ExitRecord};
use iii_protocol::frame::Frame;
use iii_protocol::log::LogRecord;
use iii_protocol::shim::{KIND_LOG, KIND_RESYNC, KIND_STATUS, KIND_STOP, MachinePhase, ShimStatus};
use jiff::Timestamp;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::launcher::{MACHINE_QUEUE, Machine, MachineCommand};
use super::shim::{EXIT_FILE, SHIM_LOCK, remove_sockets};
use super::wire::{FrameReader, write_frame};
use crate::fsutil::LockFile;
use crate::logs::disk::{self, DiskQuery};
use crate::logs::{DEFAULT_RING_BYTES, LogRing, RECORD_BYTES};

/// How long a shim whose link has ended may take to be gone.
const SHIM_EXIT_LIMIT: Duration = Duration::from_secs(5);

/// What a link knows about its machine.
#[derive(Debug, Clone)]
pub(super) struct LinkTarget {
    pub(super) worker: String,
    pub(super) generation: u64,
    pub(super) spec_hash: String,
    pub(super) run_dir: PathBuf,
    pub(super) log_dir: PathBuf,
    pub(super) ring: Arc<LogRing>,
}

/// A link whose first word has been exchanged.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) reader: FrameReader<OwnedReadHalf>,
    pub(super) writer: OwnedWriteHalf,
}

impl Link {
    pub(super) fn new(stream: UnixStream) -> Link {
        let (reader, writer) = stream.into_split();
        Link { reader: FrameReader::new(reader), writer }
    }
}

/// Follows the shim in a task of its own. `first` is its status if that has been read already.
pub(super) fn follow(target: LinkTarget, link: Link, first: Option<ShimStatus>) -> Machine {
    let (commands, command_queue) = mpsc::channel(MACHINE_QUEUE);
    let (event_queue, events) = mpsc::channel(MACHINE_QUEUE);
    tokio::spawn(run(target, link, first, command_queue, event_queue));
    Machine { commands, events }
}

async fn run(
    target: LinkTarget,
    Link { mut reader, mut writer }: Link,
    first: Option<ShimStatus>,
    mut commands: mpsc::Receiver<MachineCommand>,
    events: mpsc::Sender<ShimStatus>,
) {
    let mut pending = first.map(|status| Frame::json(KIND_STATUS, &status));
    let mut last: Option<ShimStatus> = None;
    loop {
        let frame = tokio::select! {
            frame = async { match pending.take() {
                Some(frame) => Ok(Some(frame)),
                None => reader.next().await,
            } } => frame,
            command = commands.recv() => match command {
                Some(command) => {
                    pass_on(&mut writer, &command).await;
                    continue;
                }
                // The worker's actor let go of the machine: it runs on, without a daemon for now.
                None => return,
            },
        };
        match frame {
            Ok(Some(frame)) if frame.kind == KIND_STATUS => {
                let Ok(status) = frame.parse::<ShimStatus>() else { break };
                if last.is_none() {
                    refill(&target, status.next_seq).await;
                }
                last = Some(status.clone());
                if matches!(status.phase, MachinePhase::Ended { .. }) {
                    finish(status, &events).await;
                    return;
                }
                if events.send(status).await.is_err() {
                    return;
                }
            }
            Ok(Some(frame)) if frame.kind == KIND_LOG => match LogRecord::from_line(&frame.payload) {
                Ok(record) => target.ring.push(record),
                Err(error) => tracing::warn!(worker = target.worker, %error, "a bad log record"),
            },
            // A gap in the numbers tells the ring what it needs to know.
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(worker = target.worker, %error, "the shim's link broke");
                break;
            }
        }
    }
    let status = lost(&target, last).await;
    finish(status, &events).await;
}

async fn pass_on(writer: &mut OwnedWriteHalf, command: &MachineCommand) {
    let frame = match command {
        MachineCommand::Stop(stop) => Frame::json(KIND_STOP, stop),
        MachineCommand::Resync => Frame { kind: KIND_RESYNC, payload: Vec::new() },
    };
    if let Err(error) = write_frame(writer, &frame).await {
        // The reading side is about to see the end of the link.
        tracing::debug!(%error, ?command, "the shim did not take a command");
    }
}

/// The last event. The record on disk stays: whoever takes this event may die before it is noted. The
/// next adoption recognises by its generation what is known already.
async fn finish(status: ShimStatus, events: &mpsc::Sender<ShimStatus>) {
    // Nobody listening: the worker's actor is gone, and its successor adopts.
    let _ = events.send(status).await;
}

/// The link ended without a last word: look for it on disk, else the shim was killed, and its sockets are still there.
async fn lost(target: &LinkTarget, last: Option<ShimStatus>) -> ShimStatus {
    let run_dir = target.run_dir.clone();
    let gone = tokio::task::spawn_blocking(move || {
        let lock = LockFile::acquire(&run_dir.join(SHIM_LOCK));
        // Held meanwhile: the next shim makes its own.
        lock.map(|_held| remove_sockets(&run_dir)).is_ok()
    });
    if !matches!(timeout(SHIM_EXIT_LIMIT, gone).await, Ok(Ok(true))) {
        tracing::warn!(worker = target.worker, "the shim closed its link but is still there");
    }
    let running_since = last.as_ref().and_then(|status| match status.phase {
        MachinePhase::Running { since } => Some(since),
        MachinePhase::Stopping { running_since, .. } => running_since,
        MachinePhase::Booting { .. } | MachinePhase::Unprepared { .. } | MachinePhase::Ended { .. } => None,
    });
    let exit = read_last_word(&target.run_dir)
        .filter(|exit| exit.generation == target.generation)
        .unwrap_or_else(|| {
            let at = Timestamp::now();
            let uptime_ms = running_since
                .map_or(0, |since| u64::try_from(at.duration_since(since).as_millis()).unwrap_or(0));
            ExitRecord {
                generation: target.generation,
                at,
                uptime_ms,
                cause: ExitCause::ShimDied,
                requested: false,
            }
        });
    // What the link did not bring is on disk.
    refill(target, u64::MAX).await;
    let status = last.unwrap_or_else(|| ShimStatus {
        worker: target.worker.clone(),
        generation: target.generation,
        spec_hash: target.spec_hash.clone(),
        shim_pid: 0,
        vmm_pid: None,
        phase: MachinePhase::Ended { exit: exit.clone() },
        next_seq: 0,
        refused: Refused::default(),
        activity: None,
    });
    ShimStatus { vmm_pid: None, activity: None, phase: MachinePhase::Ended { exit }, ..status }
}

/// Reads the end of the log files into the ring: what was written before this link began.
pub(super) async fn refill(target: &LinkTarget, until_seq: u64) {
    let (dir, ring) = (target.log_dir.clone(), Arc::clone(&target.ring));
    let read = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
        let tail = u64::try_from(DEFAULT_RING_BYTES / RECORD_BYTES).unwrap_or(u64::MAX);
        let query = DiskQuery { until_seq: Some(until_seq), tail: Some(tail), ..DiskQuery::default() };
        for record in disk::read(&dir, &query)? {
            ring.push(record?);
        }
        Ok(())
    });
    match read.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(worker = target.worker, %error, "log files cannot be read"),
        Err(error) => tracing::warn!(worker = target.worker, %error, "reading log files failed"),
    }
}

/// The shim's last word, if it left one.
pub(super) fn read_last_word(run_dir: &Path) -> Option<ExitRecord> {
    let bytes = fs::read(run_dir.join(EXIT_FILE)).ok()?;
    serde_json::from_slice(&bytes).ok()
}
