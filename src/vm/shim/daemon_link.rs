//! The shim's end of the link to its daemon: one at a time, the newest wins.

use std::sync::Arc;
use std::time::Duration;

use iii_protocol::frame::{Frame, FrameError};
use iii_protocol::shim::{
    Attach, KIND_ATTACH, KIND_LAGGED, KIND_LOG, KIND_RESYNC, KIND_STATUS, KIND_STOP, Lagged, MachinePhase,
    ShimStatus, StopMachine,
};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::logs::{Chunk, LogRing};
use crate::vm::wire::{FrameReader, write_frame};

/// How long a new link may take to say who it is; until then nobody else is served.
const ADMISSION_LIMIT: Duration = Duration::from_secs(1);
/// Log records taken from the ring at a time.
const BATCH: usize = 64;

/// What a daemon does to the shim.
#[derive(Debug)]
pub(super) enum FromDaemon {
    /// Link number so-and-so is the one in force.
    Attached(u64),
    /// It is gone.
    Gone(u64),
    /// End the machine.
    Stop(StopMachine),
    /// The project was edited.
    Resync,
}

/// What every link needs.
#[derive(Debug, Clone)]
pub(super) struct LinkContext {
    pub(super) status: watch::Receiver<ShimStatus>,
    pub(super) ring: Arc<LogRing>,
    pub(super) events: mpsc::Sender<FromDaemon>,
}

/// Serves the birth link, then every daemon that attaches.
pub(super) async fn serve(
    birth: FrameReader<OwnedReadHalf>,
    birth_writer: OwnedWriteHalf,
    listener: UnixListener,
    ctx: LinkContext,
) {
    let mut number = 0;
    let mut current: JoinHandle<()> = tokio::spawn(run(number, birth, birth_writer, ctx.clone()));
    loop {
        tokio::select! {
            // The machine is over and its last word is out.
            () = finished(&ctx), if current.is_finished() => return,
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let Ok(Some((reader, writer))) = timeout(ADMISSION_LIMIT, admit(stream)).await else { continue };
                number += 1;
                current.abort();
                current = tokio::spawn(run(number, reader, writer, ctx.clone()));
            }
            _ = &mut current, if !current.is_finished() => {}
        }
    }
}

async fn finished(ctx: &LinkContext) {
    let mut status = ctx.status.clone();
    // An error means the shim's main loop is gone: nothing will come any more.
    let _ = status.wait_for(is_ended).await;
}

fn is_ended(status: &ShimStatus) -> bool {
    matches!(status.phase, MachinePhase::Ended { .. })
}

/// Only our own user (or root) may attach, and only with the right first word.
async fn admit(stream: UnixStream) -> Option<(FrameReader<OwnedReadHalf>, OwnedWriteHalf)> {
    let peer = stream.peer_cred().ok()?.uid();
    if peer != 0 && peer != nix::unistd::geteuid().as_raw() {
        tracing::warn!(peer, "a foreign user tried to attach");
        return None;
    }
    let (reader, writer) = stream.into_split();
    let mut reader = FrameReader::new(reader);
    let frame = reader.next().await.ok()??;
    if frame.kind != KIND_ATTACH {
        return None;
    }
    let attach: Attach = frame.parse().ok()?;
    tracing::info!(daemon = attach.daemon_pid, "attached");
    Some((reader, writer))
}

async fn run(
    number: u64,
    mut reader: FrameReader<OwnedReadHalf>,
    mut writer: OwnedWriteHalf,
    ctx: LinkContext,
) {
    let events = ctx.events.clone();
    if events.send(FromDaemon::Attached(number)).await.is_err() {
        return;
    }
    let receive = async {
        while let Ok(Some(frame)) = reader.next().await {
            let request = match frame.kind {
                KIND_STOP => frame.parse().ok().map(FromDaemon::Stop),
                KIND_RESYNC => Some(FromDaemon::Resync),
                _ => None,
            };
            if let Some(request) = request
                && events.send(request).await.is_err()
            {
                return;
            }
        }
    };
    tokio::select! {
        () = receive => {}
        result = send(&mut writer, ctx) => if let Err(error) = result {
            tracing::debug!(%error, "the daemon's link broke");
        },
    }
    // Nobody left to tell means the shim is on its way out.
    let _ = events.send(FromDaemon::Gone(number)).await;
}

/// Sends the status at once and at every change, and log records as they come; returns after `Ended`,
/// which follows the last record.
async fn send(writer: &mut OwnedWriteHalf, mut ctx: LinkContext) -> Result<(), FrameError> {
    let mut news = ctx.ring.subscribe();
    let mut status = ctx.status.borrow_and_update().clone();
    let mut next_seq = status.next_seq;
    loop {
        if is_ended(&status) {
            drain(writer, &ctx.ring, &mut next_seq).await?;
            return write_frame(writer, &Frame::json(KIND_STATUS, &status)).await;
        }
        write_frame(writer, &Frame::json(KIND_STATUS, &status)).await?;
        loop {
            drain(writer, &ctx.ring, &mut next_seq).await?;
            tokio::select! {
                changed = ctx.status.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    break;
                }
                changed = news.changed() => if changed.is_err() {
                    return Ok(());
                },
            }
        }
        status = ctx.status.borrow_and_update().clone();
    }
}

async fn drain(writer: &mut OwnedWriteHalf, ring: &LogRing, next_seq: &mut u64) -> Result<(), FrameError> {
    loop {
        match ring.read(*next_seq, BATCH) {
            Chunk::Expired { oldest } => {
                *next_seq = oldest;
                write_frame(writer, &Frame::json(KIND_LAGGED, &Lagged { next_seq: oldest })).await?;
            }
            Chunk::Records(records) if records.is_empty() => return Ok(()),
            Chunk::Records(records) => {
                for record in records {
                    *next_seq = record.seq + 1;
                    write_frame(writer, &Frame { kind: KIND_LOG, payload: record.to_line() }).await?;
                }
            }
        }
    }
}
