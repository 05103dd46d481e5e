//! Why a process is not running, in the words the user will read.

use std::fmt;

use iii_protocol::exit::ExitCause;
use iii_protocol::session::EndCause;

/// A failure on the way to a running process: the workload's becomes [`ExitCause::CouldNotStart`], a
/// session's the [`EndCause`] of its fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StartError {
    /// What was being done, a short fragment: `exec`, `user`, `root disk`...
    pub(crate) what: String,
    /// What went wrong, lower case.
    pub(crate) message: String,
    /// What the user can do next.
    pub(crate) hint: Option<String>,
    /// Whose fault it is, as shells tell it.
    pub(crate) fault: Fault,
}

/// What a shell would say by its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing was tried yet (125).
    Surroundings,
    /// The program is there and cannot be executed (126).
    CannotExecute,
    /// There is no such program (127).
    NotFound,
}

impl StartError {
    /// An error without a hint, of the surroundings.
    pub(crate) fn new(what: &str, message: impl fmt::Display) -> StartError {
        let fault = Fault::Surroundings;
        StartError { what: what.to_owned(), message: message.to_string(), hint: None, fault }
    }

    /// The same error, with what to do next.
    pub(crate) fn hint(mut self, hint: impl fmt::Display) -> StartError {
        self.hint = Some(hint.to_string());
        self
    }

    /// The same error, with its fault.
    pub(crate) fn fault(mut self, fault: Fault) -> StartError {
        self.fault = fault;
        self
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.message)
    }
}

impl std::error::Error for StartError {}

impl From<StartError> for ExitCause {
    fn from(error: StartError) -> ExitCause {
        ExitCause::CouldNotStart { what: error.what, message: error.message, hint: error.hint }
    }
}

impl From<StartError> for EndCause {
    fn from(error: StartError) -> EndCause {
        let message = match error.what.as_str() {
            // The program is named by the message itself.
            "exec" => error.message,
            what => format!("{what}: {}", error.message),
        };
        let hint = error.hint;
        match error.fault {
            Fault::Surroundings => EndCause::CouldNotStart { message, hint },
            Fault::CannotExecute => EndCause::CannotExecute { message, hint },
            Fault::NotFound => EndCause::NotFound { message, hint },
        }
    }
}
