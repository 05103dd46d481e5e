//! Accepts connections, and ends them with the daemon.

use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::routes::refusing_router;
use super::socket::may_talk;

/// How many connections are served at once. A command holds one, a `logs --follow` holds one as long as it
/// runs, an `exec` until its session has begun: scripts begin those by the dozen, in several workers at a time.
/// Sessions that have begun have a limit of their own ([`super::sessions::MAX_SESSIONS_AT_ONCE`]).
pub const MAX_CONNECTIONS: usize = 256;
/// How many connections above the limit are told so; those above that are closed without a word.
pub const MAX_REFUSALS: usize = 16;
/// How long a client may take to send a request's head.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long open streams have to drain when the daemon ends.
pub const DRAIN: Duration = Duration::from_secs(1);
/// Pause after a failed `accept` (no file descriptors left): trying again at once would only spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `closing` is true, then lets open requests end, for [`DRAIN`] at most.
pub async fn serve(listener: UnixListener, routes: Router, mut closing: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(e) => {
                    tracing::warn!(error = %e, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            _ = connections.join_next(), if !connections.is_empty() => continue,
            () = closed(&mut closing) => break,
        };
        if !may_talk(&stream) {
            continue;
        }
        let routes = match connections.len() {
            served if served < MAX_CONNECTIONS => routes.clone(),
            served if served < MAX_CONNECTIONS + MAX_REFUSALS => refusing_router(),
            _ => continue,
        };
        connections.spawn(serve_one(stream, routes, closing.clone()));
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        tracing::info!("clients did not read their last words in time");
    }
}

/// Waits until the flag is set, or nobody is left to set it.
pub(super) async fn closed(closing: &mut watch::Receiver<bool>) {
    let _ = closing.wait_for(|closing| *closing).await;
}

async fn serve_one(stream: UnixStream, routes: Router, mut closing: watch::Receiver<bool>) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes))
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = closed(&mut closing) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = ended {
        // A client that left in the middle is nothing to talk about.
        tracing::debug!(error = %e, "a connection ended");
    }
}
