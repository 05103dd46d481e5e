//! What is said of a machine's end, and how.

use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Context as _;
use iii_protocol::exit::{ExitCause, ExitRecord};
use iii_protocol::guest;
use iii_protocol::shim::{MachinePhase, ShimStatus};
use jiff::Timestamp;
use tokio::sync::watch;

use super::{Machine, SIGKILL};
use crate::fsutil::write_atomic;
use crate::vm::shim::output::Output;
use crate::vm::shim::{EXIT_FILE, SHIM_LOG, ShimSpec};

/// Characters kept of a text that the guest says; it ends up in records, on links and on terminals.
pub(super) const MAX_GUEST_CHARS: usize = 4096;
/// What a start of the guest fails at when its machine is well, and the image or the entry is not: the console has
/// nothing to say of these.
const OF_THE_WORKLOAD: [&str; 4] = ["exec", "user", "working directory", "environment"];

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

/// An agent's word about an end, as far as it is the agent's to say. It does not know which file on the host its disk
/// is, nor what users can do about that.
pub(super) fn agents_cause(spec: &ShimSpec, cause: ExitCause) -> anyhow::Result<ExitCause> {
    match cause {
        ExitCause::Exit { .. } | ExitCause::Signal { .. } | ExitCause::Oom => Ok(cause),
        ExitCause::CouldNotStart { what, message, .. } if what == guest::ROOT_DISK => {
            Ok(ExitCause::CouldNotStart { what, message: plain(&message), hint: Some(root_disk_hint(spec)) })
        }
        ExitCause::CouldNotStart { what, message, .. } if what == guest::SCRATCH_DISK => {
            Ok(ExitCause::CouldNotStart {
                what,
                message: plain(&message),
                hint: Some(scratch_disk_hint(spec)),
            })
        }
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

fn root_disk_hint(spec: &ShimSpec) -> String {
    format!(
        "`iii worker start {}` looks whether {} is damaged, as each next try does, and builds it again if so",
        spec.machine.worker,
        spec.machine.root_disk.display()
    )
}

fn scratch_disk_hint(spec: &ShimSpec) -> String {
    let disk = spec.scratch_disk.display();
    let renew = match &spec.machine.project {
        Some(project) => {
            let (folder, name) = (project.folder.display(), &spec.machine.worker);
            format!("`iii worker add {folder} --name {name} --force` begins with a new disk")
        }
        None => "`iii worker remove` and `iii worker add` make a new one".to_owned(),
    };
    format!("`e2fsck -fy {disk}` may mend it (copy it before); {renew}, and what the worker wrote is lost")
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

impl Machine {
    /// Why a machine is killed that has not got as far as it should.
    pub(super) fn overdue(&self) -> ExitCause {
        let limit = Duration::from_millis(self.spec.machine.boot_timeout_ms);
        let shown = humantime::format_duration(limit);
        let (what, since) = match self.refresh.is_restarting() {
            true => ("restart", "the end of the one before it"),
            false => ("boot", "the machine's start"),
        };
        let message = format!("the workload was not running {shown} after {since}{}", self.console_said());
        let hint = Some("give it longer with `boot_timeout:` in config.yaml if the host is slow".into());
        ExitCause::CouldNotStart { what: what.into(), message, hint }
    }

    /// The agent's last word; with the console's, which is whole only now, if it is about a failed boot.
    fn with_console(&mut self, exit: ExitRecord) -> ExitRecord {
        let is_boot = self.running_since.is_none() && !exit.requested;
        match exit.cause {
            ExitCause::CouldNotStart { what, message, hint }
                if is_boot && !OF_THE_WORKLOAD.contains(&what.as_str()) =>
            {
                self.is_written = false;
                let message = format!("{message}{}", self.console_said());
                ExitRecord { cause: ExitCause::CouldNotStart { what, message, hint }, ..exit }
            }
            cause => ExitRecord { cause, ..exit },
        }
    }

    /// The VMM has ended: what is to be said of it is put on disk, and told.
    pub(super) async fn conclude(&mut self, vmm: ExitStatus) -> anyhow::Result<()> {
        self.output.finish();
        self.console.drained().await;
        let ran_ms = self.running_since.map_or(0, |since| {
            u64::try_from(Timestamp::now().duration_since(since).as_millis()).unwrap_or(0)
        });
        let exit = match (self.last_word.take(), self.verdict.take()) {
            (Some(exit), _) => self.with_console(exit),
            (None, Some(verdict)) => self.record(verdict, ran_ms),
            (None, None) if self.stop_requested => self.record(ExitCause::Signal { signal: SIGKILL }, ran_ms),
            (None, None) if self.running_since.is_some() => {
                let detail = format!("the VMM ended ({vmm}) while the workload ran{}", self.console_said());
                self.record(ExitCause::VmmDied { detail }, ran_ms)
            }
            (None, None) => {
                let message = format!("the VMM ended ({vmm}) before the workload ran{}", self.console_said());
                let hint = "see the whole console in the worker's log folder (`iii worker status` names it)";
                self.record(
                    ExitCause::CouldNotStart { what: "boot".into(), message, hint: Some(hint.into()) },
                    0,
                )
            }
        };
        let written = match self.is_written {
            true => Ok(()),
            false => write_last_word(&self.spec, &exit),
        };
        publish_end(&self.status, &self.output, exit);
        written
    }
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
