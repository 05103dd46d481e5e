//! Ends as people are told of them.

use iii_protocol::api::{ErrorBody, ErrorCode};
use iii_protocol::exit::{ExitCause, ExitRecord};

use super::restart::{GiveUp, START_TRIES};

/// An end as the cause of a backoff or a failure.
pub fn error_of(worker: &str, cause: &ExitCause) -> ErrorBody {
    let logs = || Some(format!("`iii worker logs {worker}` shows its last words"));
    let (code, message, hint) = match cause {
        ExitCause::Exit { code } => (ErrorCode::Conflict, format!("the workload ended: exit {code}"), logs()),
        ExitCause::Signal { signal } => {
            (ErrorCode::Conflict, format!("the workload was ended by signal {signal}"), logs())
        }
        ExitCause::Oom => (
            ErrorCode::Host,
            "the workload needed more memory than its machine has".to_owned(),
            Some(format!("raise `resources: {{memory: ...}}` of worker `{worker}`")),
        ),
        ExitCause::CouldNotStart { what, message, hint } => {
            (ErrorCode::Host, format!("{what}: {message}"), hint.clone())
        }
        ExitCause::VmmDied { detail } => {
            (ErrorCode::Host, format!("the machine died under the workload: {detail}"), logs())
        }
        ExitCause::ShimDied => (
            ErrorCode::Host,
            "the process that held the machine was killed, and the machine with it".to_owned(),
            None,
        ),
    };
    ErrorBody { code, message, hint }
}

/// The end of a machine that was killed because it did not come up. The shim takes that kill for a request;
/// it is none of anybody's, and the restart policy has to judge it.
pub fn overdue(exit: ExitRecord) -> ExitRecord {
    let exit = ExitRecord { requested: false, ..exit };
    if exit.cause.is_could_not_start() {
        return exit;
    }
    let cause = ExitCause::CouldNotStart {
        what: "boot".to_owned(),
        message: "the machine did not come up in time and was killed".to_owned(),
        hint: Some("raise `boot_timeout:`, or look at the host's load".to_owned()),
    };
    ExitRecord { cause, ..exit }
}

/// Why a project could not be made ready, as the cause of a failure.
pub fn unready(what: &str, message: String, hint: Option<String>) -> ErrorBody {
    // The script's own failure says which it was.
    let message = if message.starts_with(what) { message } else { format!("{what}: {message}") };
    ErrorBody { code: ErrorCode::Conflict, message, hint }
}

/// The cause of a crash loop.
pub fn crash_loop(error: ErrorBody) -> ErrorBody {
    ErrorBody { message: format!("it dies again and again; last: {}", error.message), ..error }
}

/// The cause of a failure that is not tried again.
pub fn gave_up(error: ErrorBody, why: GiveUp) -> ErrorBody {
    let why = match why {
        GiveUp::Policy => "its restart policy is `never`".to_owned(),
        GiveUp::StartTries => format!("{START_TRIES} tries"),
        GiveUp::MaxRestarts(max) => format!("`max_restarts: {max}` is used up"),
    };
    ErrorBody { message: format!("{} ({why})", error.message), ..error }
}
