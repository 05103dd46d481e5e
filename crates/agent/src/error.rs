//! Why the workload is not running, in the words the user will read.

use std::fmt;

use iii_protocol::exit::ExitCause;
use serde::{Deserialize, Serialize};

/// A failure between the boot plan and the running workload; becomes [`ExitCause::CouldNotStart`]. Also
/// travels from the exec stage to the agent, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StartError {
    /// What was being done, a short fragment: `exec`, `user`, `root disk`...
    pub(crate) what: String,
    /// What went wrong, lower case.
    pub(crate) message: String,
    /// What the user can do next.
    pub(crate) hint: Option<String>,
}

impl StartError {
    /// An error without a hint.
    pub(crate) fn new(what: &str, message: impl fmt::Display) -> StartError {
        StartError { what: what.to_owned(), message: message.to_string(), hint: None }
    }

    /// The same error, with what to do next.
    pub(crate) fn hint(mut self, hint: impl fmt::Display) -> StartError {
        self.hint = Some(hint.to_string());
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
