//! How a machine ended: the one vocabulary that agent, shim, daemon and CLI share.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Why a workload, and with it its machine, ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ExitCause {
    /// The workload ended by itself with this status.
    Exit {
        /// 0 to 255.
        code: i32,
    },
    /// A signal ended the workload.
    Signal {
        /// The guest's signal number.
        signal: i32,
    },
    /// The guest's kernel ran out of memory and killed the workload.
    Oom,
    /// The workload was never running: image, configuration, host or boot.
    CouldNotStart {
        /// What was being done, as a short fragment: `exec`, `boot`, `pull`, `scratch disk`...
        what: String,
        /// Why it failed, lower case, without the hint.
        message: String,
        /// What the user can do next.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hint: Option<String>,
    },
    /// The VMM ended without the agent's last word: guest panic, reset, or the VMM itself died.
    VmmDied {
        /// What is known, with the console's tail.
        detail: String,
    },
    /// The shim was killed, and the machine with it.
    ShimDied,
}

impl ExitCause {
    /// Whether this is a failure to start: such causes are retried a few times only.
    pub fn is_could_not_start(&self) -> bool {
        matches!(self, ExitCause::CouldNotStart { .. })
    }

    /// Whether the workload never ran, and it failed at this, as [`ExitCause::CouldNotStart`] names it.
    pub fn could_not_start_by(&self, at: &str) -> bool {
        matches!(self, ExitCause::CouldNotStart { what, .. } if what == at)
    }

    /// Whether the workload ended well (`exit 0`).
    pub fn is_success(&self) -> bool {
        matches!(self, ExitCause::Exit { code: 0 })
    }
}

/// The LAST-EXIT column: `exit 7`, `signal 9`, `oom`, `vmm-died`, `shim-died`, `could not start`.
impl fmt::Display for ExitCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitCause::Exit { code } => write!(f, "exit {code}"),
            ExitCause::Signal { signal } => write!(f, "signal {signal}"),
            ExitCause::Oom => f.write_str("oom"),
            ExitCause::CouldNotStart { .. } => f.write_str("could not start"),
            ExitCause::VmmDied { .. } => f.write_str("vmm-died"),
            ExitCause::ShimDied => f.write_str("shim-died"),
        }
    }
}

/// One end of one generation, as kept in a worker's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExitRecord {
    /// The start counter of the worker that this end belongs to.
    pub generation: u64,
    /// When it ended, by the host's clock.
    pub at: Timestamp,
    /// How long the workload had been running, in milliseconds; 0 if it never ran.
    pub uptime_ms: u64,
    /// Why.
    pub cause: ExitCause,
    /// Whether the end had been asked for (stop, restart, reload, remove).
    #[serde(default)]
    pub requested: bool,
}
