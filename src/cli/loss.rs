//! A session that ended without a last word: what became of the worker?

use std::time::Duration;

use iii_protocol::api::{ErrorBody, ErrorCode, Phase, WorkerStatus};
use jiff::Timestamp;

use super::client::{ClientError, worker_path};
use super::context::Context;
use super::exit::{Failure, SESSION_FAILED};
use crate::session::Lost;

/// How long the daemon may take to notice an end that the session's connection has noticed already.
pub const LOSS_PATIENCE: Duration = Duration::from_secs(2);

/// Asks the daemon why a session that began at `since` was lost, and says it.
pub async fn explain(ctx: &Context, worker: &str, since: Timestamp, lost: &Lost) -> Failure {
    let failure = match lost {
        Lost::Broken(_) => Failure::failed(format!("the session with `{worker}` was given up: {lost}"))
            .hint(format!("`iii worker restart {worker}` gives it an agent of this version")),
        Lost::Disconnected => match tokio::time::timeout(LOSS_PATIENCE, ask(ctx, worker, since)).await {
            Ok(failure) => failure,
            Err(_) => Failure::failed(format!("the connection to `{worker}` was lost, though it runs on"))
                .hint(format!("what its machine says: `iii worker status {worker}`")),
        },
    };
    failure.with_code(SESSION_FAILED)
}

/// Waits until the worker's status tells.
async fn ask(ctx: &Context, worker: &str, since: Timestamp) -> Failure {
    let mut changes = match ctx.client().get_lines(&worker_path(worker, "watch")).await {
        Ok(changes) => changes,
        Err(ClientError::Refused(ErrorBody { code: ErrorCode::NotFound, .. })) => {
            return Failure::failed(format!("`{worker}` was removed while the command ran"));
        }
        Err(ClientError::Refused(body)) => return body.into(),
        Err(_) => return daemon_gone(),
    };
    while let Ok(Some(status)) = changes.next_json::<WorkerStatus>().await {
        if let Some(message) = what_became(&status, since) {
            return Failure::failed(message).hint(format!("see what it wrote: `iii worker logs {worker}`"));
        }
    }
    daemon_gone()
}

fn daemon_gone() -> Failure {
    Failure::failed("the connection was lost: the daemon is gone, and the command with it")
        .hint("start it again with `iii`; it takes over the workers that still run")
}

/// What happened to the worker since then; `None` if that is not known yet.
fn what_became(status: &WorkerStatus, since: Timestamp) -> Option<String> {
    let name = &status.name;
    let end = status.exits.first().filter(|exit| exit.at >= since);
    Some(match (end, status.phase) {
        (Some(end), _) if end.requested => format!("worker `{name}` was stopped while the command ran"),
        (Some(end), _) => format!("worker `{name}` ended while the command ran ({})", end.cause),
        (None, Phase::Stopping) => format!("worker `{name}` was stopped while the command ran"),
        (None, Phase::Running) if status.running_since.is_some_and(|at| at > since) => {
            format!("worker `{name}` was started again while the command ran")
        }
        // Its end is about to be noticed.
        (None, Phase::Running) => return None,
        (None, Phase::Preparing | Phase::Booting) => {
            format!("worker `{name}` was restarted while the command ran")
        }
        (None, Phase::Stopped | Phase::Backoff | Phase::CrashLoop | Phase::Failed) => {
            format!("worker `{name}` ended while the command ran")
        }
    })
}

#[cfg(test)]
mod tests {
    use iii_protocol::exit::ExitCause;

    use super::super::output::tests::{at, exit, worker};
    use super::*;

    #[test]
    fn the_end_of_the_worker_is_told_with_its_cause() {
        let running = worker("web", Phase::Running);
        assert_eq!(what_became(&running, at(0)), None, "not noticed yet");
        let mut old = running.clone();
        old.exits = vec![exit(1, -60, ExitCause::Exit { code: 1 })];
        assert_eq!(what_became(&old, at(0)), None, "an end from before");

        let mut crashed = worker("web", Phase::Backoff);
        crashed.exits = vec![exit(1, 5, ExitCause::Exit { code: 7 })];
        let told = what_became(&crashed, at(0)).unwrap();
        assert_eq!(told, "worker `web` ended while the command ran (exit 7)");
        crashed.exits[0].requested = true;
        let told = what_became(&crashed, at(0)).unwrap();
        assert_eq!(told, "worker `web` was stopped while the command ran");
        assert_eq!(what_became(&worker("web", Phase::Stopping), at(0)).unwrap(), told);

        let again = WorkerStatus { running_since: Some(at(9)), ..running };
        assert!(what_became(&again, at(0)).unwrap().contains("started again"));
    }
}
