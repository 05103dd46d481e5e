//! The moves of a worker: pure. One function per input, each naming every state, so that a new state or
//! input does not compile until it is placed.
//!
//! `requests` holds what the user and the root ask for, `claim` what a new actor finds, `answers` what
//! the world says after that; here is what they are made of.

mod answers;
mod claim;
mod requests;
#[cfg(test)]
mod tests;

use std::time::Duration;

use iii_protocol::api::{Desired, ErrorBody};
use iii_protocol::exit::{ExitCause, ExitRecord};
use jiff::Timestamp;

use super::cause;
use super::durable::Record;
use super::restart::{End, History, Verdict};
use super::state::{
    Claim, Effect, Failure, Input, Moment, Order, Patience, Policy, Preparing, Remedy, State, Stopping, Then,
    Waiting, Worker,
};

impl Worker {
    /// What becomes of the worker. `random` is uniform in `0.0..1.0`. An input that belongs to another
    /// generation changes nothing.
    pub fn step(self, now: Moment, random: f64, input: Input) -> (Worker, Vec<Effect>) {
        let before = (self.phase(), self.record.generation);
        let Worker { name, state, since, record, claim, policy, history, edited } = self;
        let effects = Vec::new();
        let mut turn = Turn { name, record, claim, policy, history, edited, now, random, effects };
        let state = match input {
            Input::Start => turn.start(state),
            Input::Stop { grace } => turn.stop(state, grace),
            Input::Restart { grace } => turn.restart(state, grace),
            Input::Leave { grace } => turn.leave(state, grace),
            Input::Reconfigured { policy, restart } => turn.reconfigured(state, policy, restart),
            Input::ProjectSeen { edited, differs } => turn.project_seen(state, edited, differs),
            Input::Tick => turn.tick(state),
            Input::Claimed { record, found } => turn.claimed(state, record, *found),
            Input::NotClaimed(failure) => turn.not_claimed(state, failure),
            Input::Progress { generation, detail } => turn.progress(state, generation, detail),
            Input::Prepared { spec } => match spec.generation == turn.record.generation {
                true => turn.prepared(state, spec),
                false => state,
            },
            Input::CouldNotStart { generation, failure } => match generation == turn.record.generation {
                true => turn.could_not_start(state, failure),
                false => state,
            },
            Input::Launched { generation } => turn.launched(state, generation),
            Input::Machine { generation, phase } => match generation == turn.record.generation {
                true => turn.machine(state, phase),
                false => state,
            },
        };
        let Turn { name, record, claim, policy, history, edited, effects, .. } = turn;
        let mut worker = Worker { name, state, since, record, claim, policy, history, edited };
        if before != (worker.phase(), worker.record.generation) {
            worker.since = now.wall;
        }
        (worker, effects)
    }
}

/// One step under way: all of a worker but its state, which the functions below take and give.
struct Turn {
    name: String,
    record: Record,
    claim: Claim,
    policy: Policy,
    history: History,
    edited: bool,
    now: Moment,
    random: f64,
    effects: Vec<Effect>,
}

impl Turn {
    fn forget_restarts(&mut self) {
        self.history = History::default();
        self.record.restarts = 0;
    }

    fn begin_fresh(&mut self, order: Order) -> State {
        self.forget_restarts();
        self.begin(order)
    }

    /// Leaving does not make what the user asked for before the claim forgotten.
    fn order_to_leave(&self, grace: Option<Duration>) -> Order {
        let desired = match self.claim {
            Claim::Pending(Order::Start | Order::Restart) => Some(Desired::Running),
            Claim::Pending(Order::Stop { .. }) => Some(Desired::Stopped),
            Claim::Pending(Order::Leave { desired, .. }) => desired,
            Claim::Pending(Order::Resume | Order::Recorded | Order::Retry) | Claim::Held => None,
        };
        Order::Leave { grace, desired }
    }

    /// A new start; or, for a worker that is not claimed, the claim that `order` then follows.
    fn begin(&mut self, order: Order) -> State {
        match self.claim {
            Claim::Held => {
                self.record.generation += 1;
                // What comes lists the project itself.
                self.edited = false;
                self.effects.push(Effect::Prepare { generation: self.record.generation });
                State::Preparing(Preparing::Image { detail: None })
            }
            Claim::Pending(_) => {
                self.claim = Claim::Pending(order);
                self.effects.push(Effect::Claim);
                State::Preparing(Preparing::Claim)
            }
        }
    }

    /// The restart policy's next start.
    fn try_again(&mut self) -> State {
        let ran = self.record.exits.first().is_some_and(|exit| !exit.cause.is_could_not_start());
        match self.claim {
            Claim::Held => {
                self.record.restarts += u64::from(ran);
                self.begin(Order::Retry)
            }
            Claim::Pending(order) => self.begin(order),
        }
    }

    fn end_machine(&mut self, grace: Duration) {
        self.effects.push(Effect::End { generation: self.record.generation, grace });
    }

    fn at_rest(&mut self, state: State) -> State {
        self.effects.push(Effect::AtRest);
        state
    }

    fn rest(&mut self, order: Order) -> State {
        if matches!(order, Order::Leave { .. }) { self.at_rest(State::Stopped) } else { State::Stopped }
    }

    fn finish(&mut self, then: Then) -> State {
        match then {
            Then::Rest => State::Stopped,
            Then::Leave => self.at_rest(State::Stopped),
            Then::Start | Then::Judge => self.begin(Order::Start),
        }
    }

    fn go_down(
        &mut self,
        waiting: Waiting,
        running_since: Option<Timestamp>,
        then: Then,
        grace: Option<Duration>,
    ) -> State {
        let grace = grace.unwrap_or(self.policy.stop_timeout);
        match waiting {
            Waiting::Machine => self.end_machine(grace),
            Waiting::Launch => {}
        }
        let (asked, kill_at) = (self.now, self.now.after(grace));
        State::Stopping(Stopping { asked, kill_at, patience: Patience::Asked, waiting, running_since, then })
    }

    /// The machine is up, and its workload will not run.
    fn unready(&mut self, what: &str, message: String, hint: Option<String>) -> State {
        State::Unready { cause: cause::unready(what, message, hint) }
    }

    /// The machine goes down without our asking, as an orphaned one does. Whether that is a failure, its
    /// last word tells.
    fn goes_down(&mut self, running_since: Option<Timestamp>, deadline: Timestamp) -> State {
        State::Stopping(Stopping {
            asked: self.now,
            kill_at: self.now.at_wall(deadline),
            patience: Patience::Asked,
            waiting: Waiting::Machine,
            running_since,
            then: Then::Judge,
        })
    }

    /// A later request may shorten the grace of a stop, never lengthen it.
    fn hurry(&mut self, stopping: Stopping, grace: Option<Duration>) -> State {
        let Some(grace) = grace else { return State::Stopping(stopping) };
        let kill_at = self.now.after(grace);
        if kill_at.mono >= stopping.kill_at.mono {
            return State::Stopping(stopping);
        }
        match stopping.waiting {
            Waiting::Machine => self.end_machine(grace),
            Waiting::Launch => {}
        }
        State::Stopping(Stopping { kill_at, ..stopping })
    }

    /// The machine of a worker that should run is gone.
    fn ended(&mut self, exit: ExitRecord) -> State {
        if exit.requested {
            self.record.note_exit(exit);
            return self.begin(Order::Start);
        }
        let error = cause::error_of(&self.name, &exit.cause);
        self.judge(exit, error)
    }

    fn failed_start(&mut self, failure: Failure) -> State {
        let exit = ExitRecord {
            generation: self.record.generation,
            at: self.now.wall,
            uptime_ms: 0,
            cause: ExitCause::CouldNotStart {
                what: failure.what.to_owned(),
                message: failure.error.message.clone(),
                hint: failure.error.hint.clone(),
            },
            requested: false,
        };
        match failure.remedy {
            Remedy::Retry | Remedy::Reclaim => self.judge(exit, failure.error),
            Remedy::None => {
                self.record.note_exit(exit);
                State::Failed { cause: failure.error }
            }
        }
    }

    fn judge(&mut self, exit: ExitRecord, error: ErrorBody) -> State {
        let uptime = Duration::from_millis(exit.uptime_ms);
        let end = End { at: self.now.mono, cause: &exit.cause, uptime };
        let verdict = self.history.judge(&self.policy.restart, end, self.random);
        self.record.note_exit(exit);
        match verdict {
            Verdict::Rest => State::Stopped,
            Verdict::GiveUp(why) => State::Failed { cause: cause::gave_up(error, why) },
            Verdict::Again { after, .. } if after.is_zero() => self.try_again(),
            Verdict::Again { after, attempt, crash_loop } => {
                let cause = if crash_loop { cause::crash_loop(error) } else { error };
                State::Backoff { until: self.now.after(after), attempt, crash_loop, cause }
            }
        }
    }
}
