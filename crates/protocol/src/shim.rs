//! Daemon to shim, over the shim's Unix socket, or over the socket pair it was born with.
//!
//! A shim serves one daemon at a time: a new [`Attach`] replaces the old link. When the machine has
//! ended, the shim writes `exit.json` (an [`ExitRecord`]) into its run folder, says
//! [`MachinePhase::Ended`], closes the link and leaves.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::api::Refused;
use crate::exit::ExitRecord;

/// Daemon to shim, first frame of the birth link only: the machine spec as JSON.
pub const KIND_LAUNCH: u8 = 1;
/// Daemon to shim, first frame on the socket: [`Attach`].
pub const KIND_ATTACH: u8 = 2;
/// Daemon to shim: [`StopMachine`].
pub const KIND_STOP: u8 = 3;
/// Daemon to shim: the project has changed. What did is copied into the running machine, installed if it has to be,
/// and the workload is started again in place. No payload; without effect on a machine that has no project, or
/// whose workload does not run.
pub const KIND_RESYNC: u8 = 4;
/// Shim to daemon: [`ShimStatus`], at once after launch or attach and at every change.
pub const KIND_STATUS: u8 = 32;
/// Shim to daemon: one log record, the JSON line of [`crate::log`].
pub const KIND_LOG: u8 = 33;
/// Shim to daemon: records were skipped because the daemon was slow ([`Lagged`]); they are on disk.
pub const KIND_LAGGED: u8 = 34;

/// How [`ShimStatus::activity`] begins when an edit was not brought into the running machine.
pub const NOT_IN_FORCE: &str = "the project's last change is not in force";

/// What stands between the end of a project's script and the last lines that it wrote.
pub const LAST_LINES: &str = "; its last lines:";

/// A failure's message for somebody who has seen what the script wrote.
pub fn without_last_lines(message: &str) -> &str {
    let lines =
        message.match_indices(LAST_LINES).find(|(at, _)| message[at + LAST_LINES.len()..].starts_with('\n'));
    lines.map_or(message, |(at, _)| &message[..at])
}

/// Takes over a running shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attach {
    /// The daemon's process id, for the shim's log.
    pub daemon_pid: u32,
}

/// Ends the machine: signal, grace, SIGKILL, power off, then the VMM is killed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopMachine {
    /// Milliseconds the workload has to end by itself; 0 kills at once.
    pub grace_ms: u64,
}

/// What a shim says of its machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShimStatus {
    /// The worker's name.
    pub worker: String,
    /// The worker's start counter.
    pub generation: u64,
    /// Hash of the machine spec: the daemon restarts the machine when its own differs.
    pub spec_hash: String,
    /// The shim's process id.
    pub shim_pid: u32,
    /// The VMM's process id, once spawned.
    pub vmm_pid: Option<u32>,
    /// How far the machine is.
    pub phase: MachinePhase,
    /// The next log record's number.
    pub next_seq: u64,
    /// What the machine's network has refused.
    #[serde(default)]
    pub refused: Refused,
    /// What is done to a running machine, for people: its project is brought up to date. Or what came of it, if that
    /// is [`NOT_IN_FORCE`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activity: Option<String>,
}

/// How far a machine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "kebab-case", deny_unknown_fields)]
pub enum MachinePhase {
    /// The VMM was started; the workload has not been.
    Booting {
        /// Since when.
        since: Timestamp,
        /// When the shim gives up.
        deadline: Timestamp,
        /// What it is busy with, for people.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
    },
    /// The project could not be made ready, so the workload was never started. The machine takes sessions, so
    /// that people can look why.
    Unprepared {
        /// Since when.
        since: Timestamp,
        /// What was being done, a short fragment.
        what: String,
        /// What went wrong, lower case.
        message: String,
        /// What to do next.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hint: Option<String>,
    },
    /// The workload runs.
    Running {
        /// Since when.
        since: Timestamp,
    },
    /// The workload was told to end.
    Stopping {
        /// Since when the workload had been running, if it ever did.
        running_since: Option<Timestamp>,
        /// When SIGKILL follows.
        deadline: Timestamp,
    },
    /// Over; the shim leaves after this.
    Ended {
        /// How.
        exit: ExitRecord,
    },
}

/// Log records in front of `next_seq` were not sent on this link; they are in the log files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lagged {
    /// The number of the next record on this link.
    pub next_seq: u64,
}
