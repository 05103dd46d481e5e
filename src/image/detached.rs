//! Blocking work that may take long or wait for another process.

use std::io;

use tokio::sync::oneshot;

/// Runs `work` on a thread of its own. Unlike the runtime's blocking threads nobody waits for it when the
/// daemon ends, so a lock held by another process, or a large image, cannot hold up a shutdown.
///
/// When the caller is dropped the work goes on to its end and its result is dropped. An error means that
/// the thread could not be started or panicked.
pub(super) async fn detached<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (answer, result) = oneshot::channel();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // The caller may be gone.
        let _ = answer.send(work());
    })?;
    result.await.map_err(|_| io::Error::other(format!("the thread `{name}` panicked")))
}
