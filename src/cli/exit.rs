//! How a command ends: the exit codes, and the one conversion from what went wrong.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done, and the answer is good |
//! | 1 | failed: the world, the worker or the daemon is not as asked for |
//! | 2 | usage: an argument, a flag, config.yaml or iii.worker.yaml is wrong; nothing was done |
//! | 130 | ended by Ctrl-C (128 + SIGINT, the shells' convention) |
//!
//! `iii worker exec` ends with the code of its command, 128 + N if signal N ended that, and else with:
//!
//! | code | meaning |
//! |---|---|
//! | 2 | usage |
//! | 124 | `--timeout` was over |
//! | 125 | the daemon, the worker or the session failed; whether the command ran is another question |
//! | 126 | the program cannot be executed |
//! | 127 | there is no such program |
//! | 130 | killed by a second Ctrl-C |

use std::io;
use std::process::ExitCode;

use iii_protocol::api::{ErrorBody, ErrorCode};

/// Exit code of a command that did what it was asked for.
pub const OK: u8 = 0;
/// Exit code of a command that failed.
pub const FAILED: u8 = 1;
/// Exit code of a command that was called wrongly.
pub const USAGE: u8 = 2;
/// Exit code of an `exec` whose time was over, as of coreutils' `timeout`.
pub const TIMED_OUT: u8 = 124;
/// Exit code of an `exec` that could not begin or was lost, as of `docker exec`.
pub const SESSION_FAILED: u8 = 125;
/// Exit code of an `exec` whose program cannot be executed, as in shells.
pub const CANNOT_EXECUTE: u8 = 126;
/// Exit code of an `exec` whose program does not exist, as in shells.
pub const NOT_FOUND: u8 = 127;

/// Exit code of a process that this signal ended, as shells tell it.
pub fn of_signal(signal: i32) -> u8 {
    u8::try_from(signal.saturating_add(128)).unwrap_or(u8::MAX)
}

/// What the user is told when a command does not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// `error: message`, an empty line, `hint: hint`.
    Told {
        /// One of the constants above.
        code: u8,
        /// What, where and why.
        message: String,
        /// What to do next.
        hint: Option<String>,
    },
    /// Everything was said already, such as one error per argument.
    Said,
    /// The exit code of somebody else's command, who has said what there was to say.
    Code(u8),
    /// The reader of our output has gone (`| head`): nobody is left to tell, and nothing is wrong.
    ReaderGone,
}

impl Failure {
    /// The world is not as asked for.
    pub fn failed(message: impl Into<String>) -> Failure {
        Failure::Told { code: FAILED, message: message.into(), hint: None }
    }

    /// The user's input is wrong.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure::Told { code: USAGE, message: message.into(), hint: None }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, text: impl Into<String>) -> Failure {
        if let Failure::Told { hint, .. } = &mut self {
            *hint = Some(text.into());
        }
        self
    }

    /// The same with another exit code, where it is told.
    #[must_use]
    pub fn with_code(mut self, other: u8) -> Failure {
        if let Failure::Told { code, .. } = &mut self {
            *code = other;
        }
        self
    }

    /// As [`SESSION_FAILED`] what is otherwise [`FAILED`]: in `exec` 1 is a code of the command, and of nobody else.
    #[must_use]
    pub fn of_session(self) -> Failure {
        match self {
            Failure::Told { code: FAILED, message, hint } => {
                Failure::Told { code: SESSION_FAILED, message, hint }
            }
            other => other,
        }
    }

    /// The process's exit code.
    pub fn code(&self) -> u8 {
        match self {
            Failure::Told { code, .. } => *code,
            Failure::Code(code) => *code,
            Failure::Said => FAILED,
            Failure::ReaderGone => OK,
        }
    }

    /// The text for stderr, if there is something to say.
    pub fn text(&self) -> Option<String> {
        match self {
            Failure::Told { message, hint: Some(hint), .. } => {
                Some(format!("error: {message}\n\nhint: {hint}"))
            }
            Failure::Told { message, hint: None, .. } => Some(format!("error: {message}")),
            Failure::Said | Failure::Code(_) | Failure::ReaderGone => None,
        }
    }
}

impl From<&Failure> for ExitCode {
    fn from(failure: &Failure) -> ExitCode {
        ExitCode::from(failure.code())
    }
}

impl From<ErrorBody> for Failure {
    fn from(body: ErrorBody) -> Failure {
        let code = match body.code {
            ErrorCode::BadRequest | ErrorCode::BadConfig => USAGE,
            ErrorCode::NotFound
            | ErrorCode::Conflict
            | ErrorCode::Image
            | ErrorCode::Host
            | ErrorCode::ShuttingDown
            | ErrorCode::Internal => FAILED,
        };
        Failure::Told { code, message: body.message, hint: body.hint }
    }
}

/// Errors of writing to stdout; every other I/O error names its place and is converted there.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::ReaderGone,
            _ => Failure::failed(format!("cannot write the output: {error}")),
        }
    }
}

impl From<crate::fsutil::PathError> for Failure {
    fn from(error: crate::fsutil::PathError) -> Failure {
        let failure = Failure::failed(error.to_string());
        if error.is_disk_full() { failure.hint("free some disk space, then try again") } else { failure }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_with_its_hint_after_an_empty_line() {
        let body = ErrorBody {
            code: ErrorCode::NotFound,
            message: "there is no worker `wbe`".to_owned(),
            hint: Some("did you mean `web`?".to_owned()),
        };
        let failure = Failure::from(body);
        assert_eq!(failure.code(), FAILED);
        assert_eq!(failure.text().unwrap(), "error: there is no worker `wbe`\n\nhint: did you mean `web`?");
    }

    #[test]
    fn in_a_session_only_the_command_ends_with_1() {
        let codes = [Failure::failed("x"), Failure::usage("x"), Failure::Code(1), Failure::ReaderGone]
            .map(|failure| failure.of_session().code());
        assert_eq!(codes, [SESSION_FAILED, USAGE, 1, OK]);
    }

    #[test]
    fn wrong_input_is_2_and_a_closed_pipe_is_no_failure() {
        let body = ErrorBody { code: ErrorCode::BadConfig, message: "line 3".to_owned(), hint: None };
        assert_eq!(Failure::from(body).code(), USAGE);
        let gone = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!((gone.code(), gone.text()), (OK, None));
        assert_eq!(Failure::from(io::Error::from(io::ErrorKind::StorageFull)).code(), FAILED);
    }
}
