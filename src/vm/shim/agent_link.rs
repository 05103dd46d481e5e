//! The shim's end of the link to the guest's agent.

use iii_protocol::frame::Frame;
use tokio::net::UnixListener;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use crate::vm::wire::FrameReader;

/// What comes from the guest.
#[derive(Debug)]
pub(super) enum FromAgent {
    /// It has connected; frames can be sent.
    Connected(OwnedWriteHalf),
    /// One frame.
    Frame(Frame),
    /// The link has ended, cleanly or not. Nothing more comes.
    Gone,
}

/// Takes the first connection, and no other: a guest process that connects to the same port later
/// cannot pose as the agent.
pub(super) async fn serve(listener: UnixListener, events: mpsc::Sender<FromAgent>) {
    let Ok((stream, _)) = listener.accept().await else { return };
    drop(listener);
    let (reader, writer) = stream.into_split();
    if events.send(FromAgent::Connected(writer)).await.is_err() {
        return;
    }
    pump(FrameReader::new(reader), &events).await;
    // The main loop is gone: so is the reason to tell it.
    let _ = events.send(FromAgent::Gone).await;
}

async fn pump(mut reader: FrameReader<OwnedReadHalf>, events: &mpsc::Sender<FromAgent>) {
    loop {
        match reader.next().await {
            Ok(Some(frame)) => {
                if events.send(FromAgent::Frame(frame)).await.is_err() {
                    return;
                }
            }
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "the agent's link broke");
                return;
            }
        }
    }
}
