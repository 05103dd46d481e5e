//! What is said of a machine's end, and how.

use anyhow::Context as _;
use iii_protocol::exit::{ExitCause, ExitRecord};
use iii_protocol::shim::{MachinePhase, ShimStatus};
use jiff::Timestamp;
use tokio::sync::watch;

use crate::fsutil::write_atomic;
use crate::vm::shim::output::Output;
use crate::vm::shim::{EXIT_FILE, SHIM_LOG, ShimSpec};

/// Characters kept of a text that the guest says; it ends up in records, on links and on terminals.
pub(super) const MAX_GUEST_CHARS: usize = 4096;

/// The last word of a shim that did not get as far as a machine.
pub(in crate::vm::shim) fn could_not_start(spec: &ShimSpec, error: &anyhow::Error) -> anyhow::Result<()> {
    write_last_word(spec, &no_start(spec, no_machine(spec, error)))
}

pub(super) fn no_machine(spec: &ShimSpec, error: &anyhow::Error) -> ExitCause {
    let hint = Some(format!("look at {}", spec.run_dir.join(SHIM_LOG).display()));
    ExitCause::CouldNotStart { what: "machine".into(), message: format!("{error:#}"), hint }
}

pub(super) fn no_start(spec: &ShimSpec, cause: ExitCause) -> ExitRecord {
    let generation = spec.machine.generation;
    ExitRecord { generation, at: Timestamp::now(), uptime_ms: 0, cause, requested: false }
}

/// An agent's word about an end, as far as it is the agent's to say.
pub(super) fn agents_cause(cause: ExitCause) -> anyhow::Result<ExitCause> {
    match cause {
        ExitCause::Exit { .. } | ExitCause::Signal { .. } | ExitCause::Oom => Ok(cause),
        ExitCause::CouldNotStart { what, message, hint } => Ok(ExitCause::CouldNotStart {
            what: plain(&what),
            message: plain(&message),
            hint: hint.map(|hint| plain(&hint)),
        }),
        ExitCause::VmmDied { .. } | ExitCause::ShimDied => {
            anyhow::bail!("it cannot know of an end by `{cause}`")
        }
    }
}

/// A text from the guest, short and without a terminal's control sequences.
pub(in crate::vm::shim) fn plain(text: &str) -> String {
    text.chars().filter(|c| matches!(c, '\n' | '\t') || !c.is_control()).take(MAX_GUEST_CHARS).collect()
}

/// A daemon that misses the message finds the file.
pub(super) fn write_last_word(spec: &ShimSpec, exit: &ExitRecord) -> anyhow::Result<()> {
    tracing::info!(cause = %exit.cause, uptime_ms = exit.uptime_ms, "ended");
    write_atomic(&spec.run_dir.join(EXIT_FILE), &serde_json::to_vec(exit)?)
        .context("the last word is not on disk")
}

/// By the host's clock, as the guest's is set.
pub(super) fn now_ns() -> u64 {
    u64::try_from(Timestamp::now().as_nanosecond()).unwrap_or_default()
}

pub(super) fn publish_end(status: &watch::Sender<ShimStatus>, output: &Output, exit: ExitRecord) {
    status.send_modify(|status| {
        status.vmm_pid = None;
        status.next_seq = output.next_seq();
        status.phase = MachinePhase::Ended { exit };
    });
}
