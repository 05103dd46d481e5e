//! What the user and the root ask of a worker.

use std::time::Duration;

use iii_protocol::api::Desired;

use super::Turn;
use crate::actors::worker::state::{Claim, Effect, Order, Policy, Preparing, State, Stopping, Then, Waiting};

impl Turn {
    pub(super) fn start(&mut self, state: State) -> State {
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
            // It starts already, perhaps for the last time by itself; whoever asks has all tries before him.
            State::Preparing(Preparing::Image { .. } | Preparing::Launch { .. }) | State::Booting { .. } => {
                self.forget_restarts();
                state
            }
            State::Running { .. } => state,
            State::Unready { .. } => {
                self.forget_restarts();
                self.go_down(Waiting::Machine, None, Then::Start, None)
            }
            State::Stopping(stopping) => {
                self.forget_restarts();
                State::Stopping(Stopping { then: Then::Start, ..stopping })
            }
        }
    }

    pub(super) fn stop(&mut self, state: State, grace: Option<Duration>) -> State {
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
            State::Booting { .. } | State::Unready { .. } => {
                self.go_down(Waiting::Machine, None, Then::Rest, grace)
            }
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

    pub(super) fn restart(&mut self, state: State, grace: Option<Duration>) -> State {
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
            State::Booting { .. } | State::Unready { .. } => {
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

    pub(super) fn leave(&mut self, state: State, grace: Option<Duration>) -> State {
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
            State::Booting { .. } | State::Unready { .. } => {
                self.go_down(Waiting::Machine, None, Then::Leave, grace)
            }
            State::Running { since } => self.go_down(Waiting::Machine, Some(since), Then::Leave, grace),
            State::Stopping(stopping) => self.hurry(Stopping { then: Then::Leave, ..stopping }, grace),
        }
    }

    pub(super) fn reconfigured(&mut self, state: State, policy: Policy, restart: bool) -> State {
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
            State::Booting { .. } | State::Unready { .. } => {
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

    /// An edit is a wish to see what it does: it takes a worker that failed or waits out of that. A first look is
    /// none; it only brings up to date what runs.
    pub(super) fn project_seen(&mut self, state: State, edited: bool, differs: bool) -> State {
        match state {
            State::Running { since } if differs => {
                self.forget_restarts();
                self.go_down(Waiting::Machine, Some(since), Then::Start, None)
            }
            State::Running { .. } => {
                self.effects.push(Effect::Resync { generation: self.record.generation });
                state
            }
            State::Booting { .. } if differs => {
                self.forget_restarts();
                self.go_down(Waiting::Machine, None, Then::Start, None)
            }
            // Its manifest was read before the image was got, and its listing may have come before the edit.
            State::Booting { .. } | State::Preparing(Preparing::Image { .. } | Preparing::Launch { .. }) => {
                self.edited = true;
                state
            }
            State::Unready { .. } if edited => {
                self.forget_restarts();
                self.go_down(Waiting::Machine, None, Then::Start, None)
            }
            State::Backoff { .. } | State::Failed { .. } if edited && self.claim == Claim::Held => {
                self.begin_fresh(Order::Start)
            }
            State::Stopped
            | State::Preparing(Preparing::Claim)
            | State::Unready { .. }
            | State::Stopping(_)
            | State::Backoff { .. }
            | State::Failed { .. } => state,
        }
    }
}
