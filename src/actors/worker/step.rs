//! The moves of a worker: pure. One function per input, each naming every state, so that a new state or
//! input does not compile until it is placed.

use std::time::Duration;

use iii_protocol::api::{Desired, ErrorBody};
use iii_protocol::exit::{ExitCause, ExitRecord};
use iii_protocol::shim::MachinePhase;
use jiff::Timestamp;

use super::cause;
use super::durable::Record;
use super::restart::{End, History, Verdict};
use super::state::{
    Claim, Effect, Failure, Found, Input, Moment, Order, Patience, Policy, Preparing, Remedy, State,
    Stopping, Then, Waiting, Worker,
};
use crate::config::schema::RestartPolicy;
use crate::vm::spec::MachineSpec;

impl Worker {
    /// What becomes of the worker. `random` is uniform in `0.0..1.0`. An input that belongs to another
    /// generation changes nothing.
    pub fn step(self, now: Moment, random: f64, input: Input) -> (Worker, Vec<Effect>) {
        let before = (self.phase(), self.record.generation);
        let Worker { name, state, since, record, claim, policy, history } = self;
        let mut turn = Turn { name, record, claim, policy, history, now, random, effects: Vec::new() };
        let state = match input {
            Input::Start => turn.start(state),
            Input::Stop { grace } => turn.stop(state, grace),
            Input::Restart { grace } => turn.restart(state, grace),
            Input::Leave { grace } => turn.leave(state, grace),
            Input::Reconfigured { policy, restart } => turn.reconfigured(state, policy, restart),
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
        let Turn { name, record, claim, policy, history, effects, .. } = turn;
        let mut worker = Worker { name, state, since, record, claim, policy, history };
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
    now: Moment,
    random: f64,
    effects: Vec<Effect>,
}

// What the user and the root ask for.
impl Turn {
    fn start(&mut self, state: State) -> State {
        self.record.desired = Desired::Running;
        match state {
            State::Stopped | State::Backoff { .. } | State::Failed { .. } => self.begin_fresh(Order::Start),
            State::Preparing(Preparing::Claim) => {
                // A restart that was asked for before is a start with more to it.
                if self.claim != Claim::Pending(Order::Restart) {
                    self.claim = Claim::Pending(Order::Start);
                }
                state
            }
            State::Preparing(Preparing::Image { .. } | Preparing::Launch { .. })
            | State::Booting { .. }
            | State::Running { .. } => state,
            State::Stopping(stopping) => {
                self.forget_restarts();
                State::Stopping(Stopping { then: Then::Start, ..stopping })
            }
        }
    }

    fn stop(&mut self, state: State, grace: Option<Duration>) -> State {
        self.record.desired = Desired::Stopped;
        match state {
            State::Preparing(Preparing::Image { .. }) => State::Stopped,
            State::Stopped | State::Backoff { .. } | State::Failed { .. } => match self.claim {
                Claim::Held => State::Stopped,
                Claim::Pending(_) => self.begin(Order::Stop { grace }),
            },
            State::Preparing(Preparing::Claim) => {
                // One that leaves keeps leaving.
                self.claim = match self.claim {
                    Claim::Pending(Order::Leave { grace: earlier, .. }) => {
                        let desired = Some(Desired::Stopped);
                        Claim::Pending(Order::Leave { grace: grace.or(earlier), desired })
                    }
                    Claim::Pending(_) | Claim::Held => Claim::Pending(Order::Stop { grace }),
                };
                state
            }
            State::Preparing(Preparing::Launch { .. }) => {
                self.go_down(Waiting::Launch, None, Then::Rest, grace)
            }
            State::Booting { .. } => self.go_down(Waiting::Machine, None, Then::Rest, grace),
            State::Running { since } => self.go_down(Waiting::Machine, Some(since), Then::Rest, grace),
            State::Stopping(stopping) => {
                let then = match stopping.then {
                    Then::Leave => Then::Leave,
                    Then::Rest | Then::Start | Then::Judge => Then::Rest,
                };
                self.hurry(Stopping { then, ..stopping }, grace)
            }
        }
    }

    fn restart(&mut self, state: State, grace: Option<Duration>) -> State {
        self.record.desired = Desired::Running;
        match state {
            State::Stopped
            | State::Backoff { .. }
            | State::Failed { .. }
            | State::Preparing(Preparing::Image { .. }) => self.begin_fresh(Order::Restart),
            State::Preparing(Preparing::Claim) => {
                self.claim = Claim::Pending(Order::Restart);
                state
            }
            State::Preparing(Preparing::Launch { .. }) => {
                self.forget_restarts();
                self.go_down(Waiting::Launch, None, Then::Start, grace)
            }
            State::Booting { .. } => {
                self.forget_restarts();
                self.go_down(Waiting::Machine, None, Then::Start, grace)
            }
            State::Running { since } => {
                self.forget_restarts();
                self.go_down(Waiting::Machine, Some(since), Then::Start, grace)
            }
            State::Stopping(stopping) => {
                self.forget_restarts();
                self.hurry(Stopping { then: Then::Start, ..stopping }, grace)
            }
        }
    }

    fn leave(&mut self, state: State, grace: Option<Duration>) -> State {
        match state {
            State::Preparing(Preparing::Image { .. }) => self.at_rest(State::Stopped),
            State::Failed { cause } if self.claim == Claim::Held => self.at_rest(State::Failed { cause }),
            State::Stopped | State::Backoff { .. } if self.claim == Claim::Held => {
                self.at_rest(State::Stopped)
            }
            State::Stopped | State::Backoff { .. } | State::Failed { .. } => {
                self.begin(self.order_to_leave(grace))
            }
            State::Preparing(Preparing::Claim) => {
                self.claim = Claim::Pending(self.order_to_leave(grace));
                state
            }
            State::Preparing(Preparing::Launch { .. }) => {
                self.go_down(Waiting::Launch, None, Then::Leave, grace)
            }
            State::Booting { .. } => self.go_down(Waiting::Machine, None, Then::Leave, grace),
            State::Running { since } => self.go_down(Waiting::Machine, Some(since), Then::Leave, grace),
            State::Stopping(stopping) => self.hurry(Stopping { then: Then::Leave, ..stopping }, grace),
        }
    }

    fn reconfigured(&mut self, state: State, policy: Policy, restart: bool) -> State {
        self.policy = policy;
        if !restart {
            return state;
        }
        match state {
            State::Stopped if self.record.desired == Desired::Stopped => state,
            State::Stopped
            | State::Backoff { .. }
            | State::Failed { .. }
            | State::Preparing(Preparing::Image { .. }) => {
                // An edit says nothing about the desired state, known or not.
                let order = match self.claim {
                    Claim::Pending(order) => order,
                    Claim::Held => Order::Restart,
                };
                self.begin_fresh(order)
            }
            State::Preparing(Preparing::Launch { .. }) => {
                self.forget_restarts();
                self.go_down(Waiting::Launch, None, Then::Start, None)
            }
            State::Booting { .. } => {
                self.forget_restarts();
                self.go_down(Waiting::Machine, None, Then::Start, None)
            }
            State::Running { since } => {
                self.forget_restarts();
                self.go_down(Waiting::Machine, Some(since), Then::Start, None)
            }
            // What was found is compared with what is wanted at the time of the answer.
            State::Preparing(Preparing::Claim) | State::Stopping(_) => state,
        }
    }
}

// What the world answers.
impl Turn {
    fn tick(&mut self, state: State) -> State {
        if state.next_tick().is_none_or(|due| self.now.mono < due) {
            return state;
        }
        match state {
            State::Stopped | State::Preparing(_) | State::Running { .. } | State::Failed { .. } => state,
            State::Backoff { .. } => self.try_again(),
            State::Booting { deadline, kills } => {
                self.end_machine(Duration::ZERO);
                State::Booting { deadline, kills: kills + 1 }
            }
            State::Stopping(stopping) => self.lose_patience(stopping),
        }
    }

    fn lose_patience(&mut self, stopping: Stopping) -> State {
        let times = match stopping.patience {
            Patience::Asked if self.now.mono < stopping.last_call() => {
                return State::Stopping(Stopping { patience: Patience::Slow, ..stopping });
            }
            Patience::Asked | Patience::Slow => 1,
            Patience::Killed { times, .. } => times + 1,
        };
        match stopping.waiting {
            Waiting::Machine => self.end_machine(Duration::ZERO),
            Waiting::Launch => {}
        }
        State::Stopping(Stopping { patience: Patience::Killed { times, at: self.now }, ..stopping })
    }

    fn claimed(&mut self, state: State, record: Record, found: Found) -> State {
        let order = match (&state, self.claim) {
            (State::Preparing(Preparing::Claim), Claim::Pending(order)) => order,
            (State::Preparing(Preparing::Claim), Claim::Held)
            | (
                State::Stopped
                | State::Preparing(Preparing::Image { .. } | Preparing::Launch { .. })
                | State::Booting { .. }
                | State::Running { .. }
                | State::Stopping(_)
                | State::Backoff { .. }
                | State::Failed { .. },
                _,
            ) => return state,
        };
        self.record = record;
        self.claim = Claim::Held;
        match order {
            Order::Resume if self.policy.restart.policy == RestartPolicy::Always => {
                self.record.desired = Desired::Running;
            }
            Order::Start | Order::Restart => {
                self.record.desired = Desired::Running;
                self.forget_restarts();
            }
            Order::Stop { .. } => self.record.desired = Desired::Stopped,
            Order::Leave { desired: Some(desired), .. } => self.record.desired = desired,
            Order::Leave { desired: None, .. } | Order::Resume | Order::Recorded | Order::Retry => {}
        }
        match found {
            Found::Nothing => self.found_nothing(order),
            Found::Ended(exit) => self.found_ended(order, exit),
            Found::Running { status, wanted } => {
                self.record.generation = status.generation;
                let differs = wanted.is_some_and(|wanted| wanted != status.spec_hash);
                self.found_running(order, status.phase, differs)
            }
        }
    }

    /// Whether a claimed worker is to run.
    fn is_wanted(&self, order: Order) -> bool {
        !matches!(order, Order::Leave { .. }) && self.record.desired == Desired::Running
    }

    fn found_nothing(&mut self, order: Order) -> State {
        if !self.is_wanted(order) {
            return self.rest(order);
        }
        match order {
            // An earlier actor knew how the last generation ended and was about to act on it.
            Order::Recorded => match self.record.exits.first().cloned() {
                Some(exit) if exit.generation == self.record.generation && !exit.requested => {
                    let error = cause::error_of(&self.name, &exit.cause);
                    self.judge(exit, error)
                }
                _ => self.begin(order),
            },
            Order::Resume => {
                self.record.restarts = 0;
                self.begin(order)
            }
            Order::Retry | Order::Start | Order::Restart | Order::Stop { .. } | Order::Leave { .. } => {
                self.begin(order)
            }
        }
    }

    fn found_ended(&mut self, order: Order, exit: ExitRecord) -> State {
        if self.record.has_exit(exit.generation) {
            return self.found_nothing(order);
        }
        self.record.generation = self.record.generation.max(exit.generation);
        if !self.is_wanted(order) {
            // A daemon that died before it saw the end had asked for it.
            let requested = exit.requested || self.record.desired == Desired::Stopped;
            self.record.note_exit(ExitRecord { requested, ..exit });
            return self.rest(order);
        }
        match order {
            Order::Start | Order::Restart => {
                self.record.note_exit(exit);
                self.begin(order)
            }
            Order::Resume | Order::Recorded | Order::Retry | Order::Stop { .. } | Order::Leave { .. } => {
                self.ended(exit)
            }
        }
    }

    fn found_running(&mut self, order: Order, phase: MachinePhase, differs: bool) -> State {
        let (running_since, state) = match phase {
            MachinePhase::Booting { deadline, .. } => {
                (None, State::Booting { deadline: self.now.at_wall(deadline), kills: 0 })
            }
            MachinePhase::Running { since } => (Some(since), State::Running { since }),
            MachinePhase::Stopping { running_since, deadline } => {
                (running_since, self.goes_down(running_since, deadline))
            }
            MachinePhase::Ended { exit } => return self.found_ended(order, exit),
        };
        if !self.is_wanted(order) {
            let (then, grace) = match order {
                Order::Leave { grace, .. } => (Then::Leave, grace),
                Order::Stop { grace } => (Then::Rest, grace),
                Order::Resume | Order::Recorded | Order::Retry | Order::Start | Order::Restart => {
                    (Then::Rest, None)
                }
            };
            return self.go_down(Waiting::Machine, running_since, then, grace);
        }
        if differs || order == Order::Restart {
            return self.go_down(Waiting::Machine, running_since, Then::Start, None);
        }
        state
    }

    fn not_claimed(&mut self, state: State, failure: Failure) -> State {
        let order = match (&state, self.claim) {
            (State::Preparing(Preparing::Claim), Claim::Pending(order)) => order,
            (State::Preparing(Preparing::Claim), Claim::Held)
            | (
                State::Stopped
                | State::Preparing(Preparing::Image { .. } | Preparing::Launch { .. })
                | State::Booting { .. }
                | State::Running { .. }
                | State::Stopping(_)
                | State::Backoff { .. }
                | State::Failed { .. },
                _,
            ) => return state,
        };
        match order {
            // It is not ours, so nothing of ours runs.
            Order::Leave { .. } if failure.remedy == Remedy::None => self.at_rest(State::Stopped),
            Order::Stop { .. } if failure.remedy == Remedy::None => State::Stopped,
            Order::Leave { .. } => match self.failed_start(failure) {
                State::Failed { cause } => self.at_rest(State::Failed { cause }),
                state => state,
            },
            Order::Stop { .. }
            | Order::Resume
            | Order::Recorded
            | Order::Retry
            | Order::Start
            | Order::Restart => self.failed_start(failure),
        }
    }

    fn progress(&mut self, state: State, generation: u64, detail: String) -> State {
        match state {
            State::Preparing(Preparing::Image { .. }) if generation == self.record.generation => {
                State::Preparing(Preparing::Image { detail: Some(detail) })
            }
            State::Preparing(Preparing::Claim | Preparing::Image { .. } | Preparing::Launch { .. })
            | State::Stopped
            | State::Booting { .. }
            | State::Running { .. }
            | State::Stopping(_)
            | State::Backoff { .. }
            | State::Failed { .. } => state,
        }
    }

    fn prepared(&mut self, state: State, spec: Box<MachineSpec>) -> State {
        match state {
            State::Preparing(Preparing::Image { .. }) => {
                let boot_timeout = Duration::from_millis(spec.boot_timeout_ms);
                self.effects.push(Effect::Launch(spec));
                State::Preparing(Preparing::Launch { boot_timeout })
            }
            State::Preparing(Preparing::Claim | Preparing::Launch { .. })
            | State::Stopped
            | State::Booting { .. }
            | State::Running { .. }
            | State::Stopping(_)
            | State::Backoff { .. }
            | State::Failed { .. } => state,
        }
    }

    fn could_not_start(&mut self, state: State, failure: Failure) -> State {
        match state {
            State::Preparing(Preparing::Image { .. } | Preparing::Launch { .. }) => {
                if failure.remedy == Remedy::Reclaim {
                    self.claim = Claim::Pending(Order::Retry);
                }
                self.failed_start(failure)
            }
            State::Stopping(stopping @ Stopping { waiting: Waiting::Launch, .. }) => {
                if failure.remedy == Remedy::Reclaim {
                    let order = match stopping.then {
                        Then::Rest => Order::Stop { grace: None },
                        Then::Leave => Order::Leave { grace: None, desired: None },
                        Then::Start => Order::Restart,
                        Then::Judge => Order::Retry,
                    };
                    self.claim = Claim::Pending(order);
                    return self.begin(order);
                }
                self.finish(stopping.then)
            }
            State::Preparing(Preparing::Claim)
            | State::Stopped
            | State::Booting { .. }
            | State::Running { .. }
            | State::Stopping(Stopping { waiting: Waiting::Machine, .. })
            | State::Backoff { .. }
            | State::Failed { .. } => state,
        }
    }

    fn launched(&mut self, state: State, generation: u64) -> State {
        let ours = generation == self.record.generation;
        match state {
            State::Preparing(Preparing::Launch { boot_timeout }) if ours => {
                State::Booting { deadline: self.now.after(boot_timeout), kills: 0 }
            }
            State::Stopping(stopping @ Stopping { waiting: Waiting::Launch, .. }) if ours => {
                self.end_machine(stopping.kill_at.mono.saturating_duration_since(self.now.mono));
                State::Stopping(Stopping { waiting: Waiting::Machine, ..stopping })
            }
            State::Preparing(_)
            | State::Stopped
            | State::Booting { .. }
            | State::Running { .. }
            | State::Stopping(_)
            | State::Backoff { .. }
            | State::Failed { .. } => {
                // A machine that nobody waits for must not stay.
                self.effects.push(Effect::End { generation, grace: Duration::ZERO });
                state
            }
        }
    }

    fn machine(&mut self, state: State, phase: MachinePhase) -> State {
        match state {
            State::Stopped
            | State::Preparing(_)
            | State::Backoff { .. }
            | State::Failed { .. }
            | State::Stopping(Stopping { waiting: Waiting::Launch, .. }) => state,
            State::Booting { deadline, kills } => match phase {
                MachinePhase::Booting { deadline, .. } => {
                    State::Booting { deadline: self.now.at_wall(deadline), kills }
                }
                MachinePhase::Running { since } => State::Running { since },
                MachinePhase::Stopping { .. } if kills > 0 => State::Booting { deadline, kills },
                MachinePhase::Stopping { running_since, deadline } => self.goes_down(running_since, deadline),
                MachinePhase::Ended { exit } if kills > 0 => self.ended(cause::overdue(exit)),
                MachinePhase::Ended { exit } => self.ended(exit),
            },
            State::Running { since } => match phase {
                MachinePhase::Booting { .. } => state,
                MachinePhase::Running { since } => State::Running { since },
                MachinePhase::Stopping { deadline, .. } => self.goes_down(Some(since), deadline),
                MachinePhase::Ended { exit } => self.ended(exit),
            },
            State::Stopping(stopping @ Stopping { waiting: Waiting::Machine, .. }) => match phase {
                MachinePhase::Booting { .. } | MachinePhase::Stopping { .. } => State::Stopping(stopping),
                MachinePhase::Running { since } => {
                    State::Stopping(Stopping { running_since: Some(since), ..stopping })
                }
                MachinePhase::Ended { exit } => match stopping.then {
                    Then::Judge => self.ended(exit),
                    Then::Rest | Then::Leave | Then::Start => {
                        self.record.note_exit(ExitRecord { requested: true, ..exit });
                        self.finish(stopping.then)
                    }
                },
            },
        }
    }
}

// What the functions above are made of.
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
