//! Brings the project of a running machine up to date, and starts its workload again in place.
//!
//! ```text
//!   Idle ── asked ──▶ Syncing ── changed ──▶ Restarting ── Started ──▶ Idle
//!                        └── nothing changed, or failed: the workload runs on ──▶ Idle
//! ```
//! Whoever asks meanwhile is answered by another round: what this one lists may be older than his edit. A stop goes
//! before all of it.

use std::time::Duration;

use iii_protocol::frame::Frame;
use iii_protocol::guest::{self, Stop};
use iii_protocol::shim::NOT_IN_FORCE;
use tokio::time::Instant;

use super::last_word::{now_ns, plain};
use super::preparation::{News, Preparation};
use super::{LONGEST_GRACE, Machine, STOP_MARGIN};
use crate::prepare::{Done, Failed};

/// What is said besides why an edit could not be brought in.
const RUNS_ON: &str = "the workload runs on as it was started; the next edit tries again";

/// How far it is.
#[derive(Debug, Default)]
pub(super) struct Refresh {
    state: State,
    /// Asked for while it was under way.
    again: bool,
    /// The disk may hold what the workload was not started with: an earlier round failed half way.
    is_stale: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// The workload runs with what is there.
    #[default]
    Idle,
    /// The project is copied and installed.
    Syncing,
    /// The agent was told to start the workload again.
    Restarting,
}

impl Refresh {
    /// Whether the agent is to say once more that the workload was started.
    pub(super) fn is_restarting(&self) -> bool {
        self.state == State::Restarting
    }
}

impl Machine {
    /// The project was edited.
    pub(super) fn resync(&mut self) {
        let is_running = self.running_since.is_some() && !self.stop_requested && self.last_word.is_none();
        if !is_running {
            return;
        }
        match self.refresh.state {
            State::Idle => self.begin_refresh(),
            State::Syncing | State::Restarting => self.refresh.again = true,
        }
    }

    fn begin_refresh(&mut self) {
        self.refresh.again = false;
        match Preparation::start(&self.spec, false) {
            Ok(Some(mut preparation)) => {
                preparation.held();
                self.preparation = Some(preparation);
                self.refresh.state = State::Syncing;
            }
            Ok(None) => {}
            Err(error) => {
                self.not_in_force(&Failed { what: "copy".into(), message: format!("{error:#}"), hint: None });
            }
        }
    }

    /// The process that copies and installs has something to tell, and the workload runs.
    pub(super) fn on_refresh(&mut self, news: News) {
        match news {
            News::Progress(detail) => self.set_activity(Some(plain(&detail))),
            News::Note(text) => self.output.event(&plain(&text)),
            News::Skipped(lines) => self.tell_skipped(lines),
            News::Output(stream, bytes) => self.output.feed(stream, now_ns(), &bytes),
            News::Done(Done { changed }) => {
                self.preparation = None;
                match changed || self.refresh.is_stale {
                    true => self.restart_workload(),
                    false => self.settle(),
                }
            }
            News::Failed(failed) => {
                self.preparation = None;
                self.refresh.is_stale = true;
                self.refresh.state = State::Idle;
                self.not_in_force(&failed);
                self.go_on();
            }
        }
    }

    fn restart_workload(&mut self) {
        self.refresh.state = State::Restarting;
        self.refresh.is_stale = false;
        self.set_activity(Some("restarting the workload: its project has changed".to_owned()));
        self.output.event("the project has changed: the workload is restarted in place");
        let spec = &self.spec.machine;
        let grace = Duration::from_millis(spec.stop_timeout_ms).min(LONGEST_GRACE);
        let limit = Duration::from_millis(spec.boot_timeout_ms).min(LONGEST_GRACE);
        self.kill_at = Some(Instant::now() + grace + STOP_MARGIN + limit);
        let stop = Stop { signal: spec.stop_signal, grace_ms: spec.stop_timeout_ms };
        self.say(Frame::json(guest::KIND_RESTART, &stop));
    }

    /// The agent has started the workload again.
    pub(super) fn has_restarted(&mut self) {
        // The last line of the one before is all there is of it.
        self.output.finish();
        self.settle();
    }

    fn settle(&mut self) {
        self.refresh.state = State::Idle;
        self.set_activity(None);
        self.go_on();
    }

    fn go_on(&mut self) {
        if self.refresh.again {
            self.resync();
        }
    }

    /// The workload runs on with what it was started with.
    fn not_in_force(&mut self, failed: &Failed) {
        tracing::warn!(what = failed.what, message = failed.message, "the project is not up to date");
        self.output.finish();
        self.output.event(&plain(&failed.message));
        // That of a script is for a machine that waits for it.
        if let Some(hint) = failed.hint.as_ref().filter(|_| failed.what == "copy") {
            self.output.event(&format!("hint: {}", plain(hint)));
        }
        self.output.event(RUNS_ON);
        self.set_activity(Some(plain(&format!("{NOT_IN_FORCE}: {}", failed.in_short()))));
    }

    pub(super) fn set_activity(&self, activity: Option<String>) {
        self.status.send_if_modified(|status| {
            let is_new = status.activity != activity;
            status.activity = activity;
            is_new
        });
    }
}

#[cfg(test)]
mod tests;
