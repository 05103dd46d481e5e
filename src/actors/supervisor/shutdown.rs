//! The daemon's end: all workers go down in parallel under one deadline.

use std::collections::BTreeSet;
use std::time::Duration;

use ractor::ActorRef;

use super::RootState;
use super::workers::LEAVE;
use crate::actors::messages::{Fact, FactKind, SupervisorMsg};
use crate::actors::worker::messages::WorkerMsg;
use crate::actors::worker::state::{KILL_INTERVAL, STOP_MARGIN};

/// Beyond the longest stop timeout: what the workers' own margin and one more kill take.
const SHUTDOWN_MARGIN: Duration = Duration::from_secs(10);
/// How long the last writes and the actors' ends may take.
const LAST_THINGS: Duration = Duration::from_secs(5);

const _: () = assert!(SHUTDOWN_MARGIN.as_secs() >= STOP_MARGIN.as_secs() + KILL_INTERVAL.as_secs());

/// What the root is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mode {
    /// Its work.
    Serving,
    /// Its end.
    ShuttingDown {
        /// Workers that may still have a machine.
        waiting: BTreeSet<String>,
        /// All were killed.
        killed: bool,
    },
}

impl Mode {
    pub(super) fn is_shutting_down(&self) -> bool {
        match self {
            Mode::Serving => false,
            Mode::ShuttingDown { .. } => true,
        }
    }
}

impl RootState {
    /// Brings all workers down; their desired state stays. A second time with `force` kills them.
    pub(super) async fn shut_down(&mut self, myself: &ActorRef<SupervisorMsg>, force: bool) {
        match &mut self.mode {
            Mode::ShuttingDown { killed, .. } => {
                if force && !*killed {
                    *killed = true;
                    self.tell_all_to_leave(Some(Duration::ZERO));
                    set_deadline(myself, SHUTDOWN_MARGIN, true);
                }
            }
            Mode::Serving => {
                let waiting = self.entries.iter().map(|entry| entry.name().to_owned()).collect();
                self.mode = Mode::ShuttingDown { waiting, killed: force };
                for index in 0..self.entries.len() {
                    // An actor that failed too often may have left a machine.
                    if self.entries[index].actor.is_none() {
                        self.spawn_worker(myself, index, LEAVE).await;
                    }
                }
                self.tell_all_to_leave(force.then_some(Duration::ZERO));
                let longest = self.entries.iter().map(|entry| entry.config.stop_timeout).max();
                let grace = if force { Duration::ZERO } else { longest.unwrap_or_default() };
                set_deadline(myself, grace.saturating_add(SHUTDOWN_MARGIN), force);
                self.stop_if_done(myself);
            }
        }
    }

    fn tell_all_to_leave(&self, grace: Option<Duration>) {
        for actor in self.entries.iter().filter_map(|entry| entry.actor.as_ref()) {
            // An actor that fails now is followed by one that is born to leave.
            let _failed = actor.cast(WorkerMsg::Leave { grace });
        }
    }

    /// A worker has nothing running any more, or is beyond our reach.
    pub(super) fn shutdown_goes_on(&mut self, myself: &ActorRef<SupervisorMsg>, name: &str) {
        if let Mode::ShuttingDown { waiting, .. } = &mut self.mode {
            waiting.remove(name);
            self.stop_if_done(myself);
        }
    }

    fn stop_if_done(&self, myself: &ActorRef<SupervisorMsg>) {
        if matches!(&self.mode, Mode::ShuttingDown { waiting, .. } if waiting.is_empty()) {
            myself.stop(None);
        }
    }

    /// The deadline is over: first all are killed, then the rest is left to their shims.
    pub(super) fn overdue(&mut self, myself: &ActorRef<SupervisorMsg>, of_kill: bool) {
        match &mut self.mode {
            Mode::Serving => {}
            // The polite deadline, after a kill that has one of its own.
            Mode::ShuttingDown { killed: true, .. } if !of_kill => {}
            Mode::ShuttingDown { waiting, killed: killed @ false } => {
                *killed = true;
                tracing::warn!("killing what has not ended: {}", names(waiting));
                self.tell_all_to_leave(Some(Duration::ZERO));
                set_deadline(myself, SHUTDOWN_MARGIN, true);
            }
            Mode::ShuttingDown { waiting, killed: true } => {
                tracing::error!("left behind, for their shims to end: {}", names(waiting));
                myself.stop(None);
            }
        }
    }

    /// What remains to be done when the root ends in order.
    pub(super) async fn last_things(&self, myself: &ActorRef<SupervisorMsg>) {
        myself.stop_children_and_wait(None, Some(LAST_THINGS)).await;
        let written = async {
            for entry in &self.entries {
                entry.kit.store.flushed().await;
            }
        };
        if tokio::time::timeout(LAST_THINGS, written).await.is_err() {
            tracing::warn!("some workers' last states may not have been written");
        }
    }
}

fn names(waiting: &BTreeSet<String>) -> String {
    waiting.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn set_deadline(myself: &ActorRef<SupervisorMsg>, after: Duration, killed: bool) {
    let root = myself.clone();
    tokio::spawn(async move {
        tokio::time::sleep(after).await;
        let _gone = root.cast(SupervisorMsg::Fact(Fact(FactKind::Overdue { killed })));
    });
}
