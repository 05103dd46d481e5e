//! A worker is claimed: its record is read, and what an earlier daemon or actor left is taken over.

use iii_protocol::api::Desired;
use iii_protocol::exit::ExitRecord;
use iii_protocol::shim::MachinePhase;

use super::Turn;
use crate::actors::worker::cause;
use crate::actors::worker::durable::Record;
use crate::actors::worker::state::{Claim, Failure, Found, Order, Preparing, Remedy, State, Then, Waiting};
use crate::config::schema::RestartPolicy;

impl Turn {
    /// What the worker is claimed for; `None` where the answer to a claim comes too late to count.
    fn order_to_claim(&self, state: &State) -> Option<Order> {
        match (state, self.claim) {
            (State::Preparing(Preparing::Claim), Claim::Pending(order)) => Some(order),
            (State::Preparing(Preparing::Claim), Claim::Held)
            | (
                State::Stopped
                | State::Preparing(Preparing::Image { .. } | Preparing::Launch { .. })
                | State::Booting { .. }
                | State::Unready { .. }
                | State::Running { .. }
                | State::Stopping(_)
                | State::Backoff { .. }
                | State::Failed { .. },
                _,
            ) => None,
        }
    }

    pub(super) fn claimed(&mut self, state: State, record: Record, found: Found) -> State {
        let Some(order) = self.order_to_claim(&state) else { return state };
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
            MachinePhase::Booting { deadline, detail, .. } => {
                (None, State::Booting { deadline: self.now.at_wall(deadline), kills: 0, detail })
            }
            MachinePhase::Unprepared { what, message, hint, .. } => {
                (None, self.unready(&what, message, hint))
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
        // Whoever asks for a start of one that is not ready wants another try.
        let again = order == Order::Start && matches!(state, State::Unready { .. });
        if differs || again || order == Order::Restart {
            return self.go_down(Waiting::Machine, running_since, Then::Start, None);
        }
        state
    }

    pub(super) fn not_claimed(&mut self, state: State, failure: Failure) -> State {
        let Some(order) = self.order_to_claim(&state) else { return state };
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
}
