//! A worker's states and what moves it between them: types only; the moves are in `step`.
//!
//! ```text
//!            start                prepared            launched           running
//!  Stopped ---------> Preparing ------------> (launch) ------> Booting ----------> Running
//!     ^                   |  could not start                     | ended             | ended
//!     | ended, or no      v                                      v                   v
//!     | machine yet    Backoff <---------------------- restart policy's verdict -----+
//!  Stopping <---- stop, restart, remove, shutdown        |         |
//!                 (from every state)                     v         v
//!                                                     Stopped    Failed
//! ```
//!
//! A machine whose project could not be made ready goes from Booting to Unready, which ends as Running does.
//!
//! Before anything else a worker is *claimed*: its record is read and the machine an earlier daemon
//! may have left is taken over.

use std::time::Duration;

use iii_protocol::api::{Desired, ErrorBody, Phase};
use iii_protocol::exit::ExitRecord;
use iii_protocol::shim::{MachinePhase, ShimStatus};
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::durable::Record;
use super::restart::History;
use crate::config::schema::RestartConfig;
use crate::vm::spec::MachineSpec;

/// How much longer than its grace a machine may take to end before it is killed again: the agent's
/// sync, the power off and the shim's own kill happen in this time.
pub const STOP_MARGIN: Duration = Duration::from_secs(5);
/// How much later than the boot deadline, which the shim keeps, the actor steps in.
pub const BOOT_MARGIN: Duration = Duration::from_secs(5);
/// Between two kills of a machine that does not end.
pub const KILL_INTERVAL: Duration = Duration::from_secs(5);
/// Kills of a machine that does not end, then only its shim's death can end it.
pub const KILL_TRIES: u32 = 5;
/// A stop that takes longer says so.
pub const SLOW_STOP: Duration = Duration::from_secs(2);

/// A point in time on both clocks: the monotonic one decides, the wall's is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Monotonic.
    pub mono: Instant,
    /// By the host's clock.
    pub wall: Timestamp,
}

impl Moment {
    /// The present.
    pub fn now() -> Moment {
        Moment { mono: Instant::now(), wall: Timestamp::now() }
    }

    /// This much later; bounded by a year, so that no configured time can overflow.
    pub fn after(self, delay: Duration) -> Moment {
        const FAR: Duration = Duration::from_secs(365 * 24 * 3600);
        let delay = delay.min(FAR);
        let wall = SignedDuration::try_from(delay)
            .ok()
            .and_then(|delay| self.wall.checked_add(delay).ok())
            .unwrap_or(Timestamp::MAX);
        Moment { mono: self.mono + delay, wall }
    }

    /// The moment at which the wall clock will show `wall`, or now if that is over.
    pub fn at_wall(self, wall: Timestamp) -> Moment {
        self.after(Duration::try_from(wall.duration_since(self.wall)).unwrap_or(Duration::ZERO))
    }
}

/// A worker: what `step` takes and gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Worker {
    /// For hints.
    pub name: String,
    /// Where it is.
    pub state: State,
    /// Since when, in the sense of what `list` shows.
    pub since: Timestamp,
    /// What outlives the daemon.
    pub record: Record,
    /// Whether the record is the real one.
    pub claim: Claim,
    /// The part of the configuration that decides moves.
    pub policy: Policy,
    /// Recent ends.
    pub history: History,
    /// Its project was edited since its machine may have listed it.
    pub edited: bool,
}

/// The part of a worker's configuration that decides moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// When it is started again.
    pub restart: RestartConfig,
    /// Grace of a stop that names none.
    pub stop_timeout: Duration,
}

/// Whether the worker's record was read and its earlier machine looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// Not yet; what to do then.
    Pending(Order),
    /// The record is ours and every machine of the worker is known.
    Held,
}

/// What to do with a worker once it is claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// A new daemon: what the record says, and `restart: always` overrules a stop.
    Resume,
    /// A new actor under the same daemon: what the record says.
    Recorded,
    /// Run, as the restart policy's next try.
    Retry,
    /// Run.
    Start,
    /// Run in a new machine.
    Restart,
    /// Do not run.
    Stop {
        /// Instead of the configured one.
        grace: Option<Duration>,
    },
    /// Do not run, and leave the desired state as it is: removal and shutdown.
    Leave {
        /// Instead of the configured one.
        grace: Option<Duration>,
        /// What the user asked for while the record was not known.
        desired: Option<Desired>,
    },
}

/// Where a worker is. A variant holds exactly what exists in that state.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// No machine, and none wanted.
    Stopped,
    /// On the way to a machine.
    Preparing(Preparing),
    /// There is a machine; its workload has not started.
    Booting {
        /// When the shim gives up.
        deadline: Moment,
        /// How often it was killed since, for not keeping the deadline.
        kills: u32,
        /// How far its project is, if it waits for that.
        detail: Option<String>,
    },
    /// There is a machine, up for a look; its project could not be made ready, so its workload does not run.
    Unready {
        /// Why.
        cause: ErrorBody,
    },
    /// The workload runs.
    Running {
        /// Since when.
        since: Timestamp,
    },
    /// On the way down.
    Stopping(Stopping),
    /// No machine; the next try is set.
    Backoff {
        /// When.
        until: Moment,
        /// Which try in a row that will be.
        attempt: u32,
        /// It dies again and again.
        crash_loop: bool,
        /// Why it is here.
        cause: ErrorBody,
    },
    /// No machine and no further try.
    Failed {
        /// Why.
        cause: ErrorBody,
    },
}

/// What is being done before there is a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Preparing {
    /// Reading the record, looking for a machine.
    Claim,
    /// Getting the image and deciding the spec.
    Image {
        /// How far a pull is.
        detail: Option<String>,
    },
    /// Waiting for the launcher. It cannot be called back: whatever happens, its answer is awaited.
    Launch {
        /// How long the boot may take after that.
        boot_timeout: Duration,
    },
}

/// A machine, or a launch, on the way down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stopping {
    /// When it was asked.
    pub asked: Moment,
    /// When its grace is over.
    pub kill_at: Moment,
    /// How far the asking went.
    pub patience: Patience,
    /// What has to end.
    pub waiting: Waiting,
    /// Since when the workload runs, if it does.
    pub running_since: Option<Timestamp>,
    /// What follows.
    pub then: Then,
}

/// How far the asking of a stop went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Politely, just now.
    Asked,
    /// It takes long enough to say so.
    Slow,
    /// The grace and the margin are over.
    Killed {
        /// How often.
        times: u32,
        /// The last time.
        at: Moment,
    },
}

/// What a stop waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// The launcher's answer; the machine it gives is stopped.
    Launch,
    /// The machine's last word.
    Machine,
}

/// What follows a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Stay down.
    Rest,
    /// Stay down and tell the root.
    Leave,
    /// Start.
    Start,
    /// What the restart policy says: nobody asked for this stop.
    Judge,
}

/// Everything that happens to a worker. Results carry the generation they belong to.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The user wants it to run.
    Start,
    /// The user wants it down.
    Stop {
        /// Instead of the configured one.
        grace: Option<Duration>,
    },
    /// The user wants a new machine.
    Restart {
        /// Instead of the configured one.
        grace: Option<Duration>,
    },
    /// It is removed from the configuration, or the daemon goes down.
    Leave {
        /// Instead of the configured one.
        grace: Option<Duration>,
    },
    /// Its entry was edited.
    Reconfigured {
        /// The new policy.
        policy: Policy,
        /// Whether what runs differs from what is wanted now.
        restart: bool,
    },
    /// The files of its project are looked at, for the first time or because some have changed.
    ProjectSeen {
        /// Some have changed while they were followed.
        edited: bool,
        /// What is to be run of it is another thing than what runs.
        differs: bool,
    },
    /// Time has passed; harmless at any time.
    Tick,
    /// Answer to [`Effect::Claim`].
    Claimed {
        /// As read.
        record: Record,
        /// What an earlier daemon left.
        found: Box<Found>,
    },
    /// Answer to [`Effect::Claim`].
    NotClaimed(Failure),
    /// A pull makes progress.
    Progress {
        /// Of which start.
        generation: u64,
        /// For people.
        detail: String,
    },
    /// Answer to [`Effect::Prepare`].
    Prepared {
        /// What to launch; it holds the generation.
        spec: Box<MachineSpec>,
    },
    /// Answer to [`Effect::Prepare`] or [`Effect::Launch`].
    CouldNotStart {
        /// Of which start.
        generation: u64,
        /// Why.
        failure: Failure,
    },
    /// Answer to [`Effect::Launch`]: there is a machine.
    Launched {
        /// Of which start.
        generation: u64,
    },
    /// A machine tells how far it is.
    Machine {
        /// Which.
        generation: u64,
        /// How far.
        phase: MachinePhase,
    },
}

/// What an earlier daemon, or an earlier actor, left of a worker.
#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// It ended meanwhile.
    Ended(ExitRecord),
    /// It runs.
    Running {
        /// What its shim says.
        status: ShimStatus,
        /// Hash of the spec that is wanted now; `None` when that cannot be told (the image is not here,
        /// or the entry has an error): then what runs is left running.
        wanted: Option<String>,
    },
}

/// Why a start came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What was being done: `state`, `adopt`, `config`, `host`, `image`, `launch`.
    pub what: &'static str,
    /// Why it failed.
    pub error: ErrorBody,
    /// What may be tried.
    pub remedy: Remedy,
}

/// What may be tried after a start came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// The same again.
    Retry,
    /// The same again, after looking for a machine that may be there after all.
    Reclaim,
    /// Nothing: only an edit or another request can help.
    None,
}

/// What the actor does for the pure part. Each is performed once, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Read the record, look for a machine. Answered by [`Input::Claimed`] or [`Input::NotClaimed`].
    Claim,
    /// Get the image, decide the spec. Answered by [`Input::Prepared`] or [`Input::CouldNotStart`].
    Prepare {
        /// Of this start.
        generation: u64,
    },
    /// Launch. Always answered: [`Input::Launched`] or [`Input::CouldNotStart`].
    Launch(Box<MachineSpec>),
    /// Ask a machine to end.
    End {
        /// Which.
        generation: u64,
        /// Its grace; zero kills.
        grace: Duration,
    },
    /// Read the project again. Answered by [`Input::ProjectSeen`].
    Recheck,
    /// Have the machine bring its project up to date.
    Resync {
        /// Which.
        generation: u64,
    },
    /// Tell the root that nothing of this worker runs any more.
    AtRest,
}

impl Worker {
    /// A worker that nothing is known of yet. Its first effect is [`Effect::Claim`].
    pub fn new(name: &str, policy: Policy, order: Order, now: Moment) -> Worker {
        Worker {
            name: name.to_owned(),
            state: State::Preparing(Preparing::Claim),
            since: now.wall,
            record: Record::default(),
            claim: Claim::Pending(order),
            policy,
            history: History::default(),
            edited: false,
        }
    }

    /// The STATUS word.
    pub fn phase(&self) -> Phase {
        match &self.state {
            State::Stopped => Phase::Stopped,
            State::Preparing(Preparing::Claim) => match self.claim {
                Claim::Pending(Order::Stop { .. } | Order::Leave { .. }) => Phase::Stopping,
                Claim::Pending(
                    Order::Resume | Order::Recorded | Order::Retry | Order::Start | Order::Restart,
                )
                | Claim::Held => Phase::Preparing,
            },
            State::Preparing(Preparing::Image { .. } | Preparing::Launch { .. }) => Phase::Preparing,
            State::Booting { .. } => Phase::Booting,
            State::Running { .. } => Phase::Running,
            State::Stopping(_) => Phase::Stopping,
            State::Backoff { crash_loop: false, .. } => Phase::Backoff,
            State::Backoff { crash_loop: true, .. } => Phase::CrashLoop,
            State::Unready { .. } | State::Failed { .. } => Phase::Failed,
        }
    }
}

impl State {
    /// When [`Input::Tick`] is due.
    pub fn next_tick(&self) -> Option<Instant> {
        match self {
            State::Stopped
            | State::Preparing(_)
            | State::Unready { .. }
            | State::Running { .. }
            | State::Failed { .. } => None,
            State::Booting { deadline, kills, .. } => {
                (*kills < KILL_TRIES).then(|| deadline.mono + BOOT_MARGIN + KILL_INTERVAL * *kills)
            }
            State::Stopping(stopping) => match stopping.patience {
                Patience::Asked => Some((stopping.asked.mono + SLOW_STOP).min(stopping.last_call())),
                Patience::Slow => Some(stopping.last_call()),
                Patience::Killed { times, at } => (times < KILL_TRIES).then(|| at.mono + KILL_INTERVAL),
            },
            State::Backoff { until, .. } => Some(until.mono),
        }
    }
}

impl Stopping {
    /// When a machine that had its grace, and the time to power off, is killed by the actor.
    pub fn last_call(&self) -> Instant {
        self.kill_at.mono + STOP_MARGIN
    }
}
