//! What the world says to a worker: time, images, launches, machines.

use std::time::Duration;

use iii_protocol::exit::ExitRecord;
use iii_protocol::shim::MachinePhase;

use super::Turn;
use crate::actors::worker::cause;
use crate::actors::worker::state::{
    Claim, Effect, Failure, Order, Patience, Preparing, Remedy, State, Stopping, Then, Waiting,
};
use crate::vm::spec::MachineSpec;

impl Turn {
    pub(super) fn tick(&mut self, state: State) -> State {
        if state.next_tick().is_none_or(|due| self.now.mono < due) {
            return state;
        }
        match state {
            State::Stopped
            | State::Preparing(_)
            | State::Unready { .. }
            | State::Running { .. }
            | State::Failed { .. } => state,
            State::Backoff { .. } => self.try_again(),
            State::Booting { deadline, kills, detail } => {
                self.end_machine(Duration::ZERO);
                State::Booting { deadline, kills: kills + 1, detail }
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

    pub(super) fn progress(&mut self, state: State, generation: u64, detail: String) -> State {
        match state {
            State::Preparing(Preparing::Image { .. }) if generation == self.record.generation => {
                State::Preparing(Preparing::Image { detail: Some(detail) })
            }
            State::Preparing(Preparing::Claim | Preparing::Image { .. } | Preparing::Launch { .. })
            | State::Stopped
            | State::Booting { .. }
            | State::Unready { .. }
            | State::Running { .. }
            | State::Stopping(_)
            | State::Backoff { .. }
            | State::Failed { .. } => state,
        }
    }

    pub(super) fn prepared(&mut self, state: State, spec: Box<MachineSpec>) -> State {
        match state {
            State::Preparing(Preparing::Image { .. }) => {
                let boot_timeout = Duration::from_millis(spec.boot_timeout_ms);
                self.effects.push(Effect::Launch(spec));
                State::Preparing(Preparing::Launch { boot_timeout })
            }
            State::Preparing(Preparing::Claim | Preparing::Launch { .. })
            | State::Stopped
            | State::Booting { .. }
            | State::Unready { .. }
            | State::Running { .. }
            | State::Stopping(_)
            | State::Backoff { .. }
            | State::Failed { .. } => state,
        }
    }

    pub(super) fn could_not_start(&mut self, state: State, failure: Failure) -> State {
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
            | State::Unready { .. }
            | State::Running { .. }
            | State::Stopping(Stopping { waiting: Waiting::Machine, .. })
            | State::Backoff { .. }
            | State::Failed { .. } => state,
        }
    }

    pub(super) fn launched(&mut self, state: State, generation: u64) -> State {
        let ours = generation == self.record.generation;
        match state {
            State::Preparing(Preparing::Launch { boot_timeout }) if ours => {
                State::Booting { deadline: self.now.after(boot_timeout), kills: 0, detail: None }
            }
            State::Stopping(stopping @ Stopping { waiting: Waiting::Launch, .. }) if ours => {
                self.end_machine(stopping.kill_at.mono.saturating_duration_since(self.now.mono));
                State::Stopping(Stopping { waiting: Waiting::Machine, ..stopping })
            }
            State::Preparing(_)
            | State::Stopped
            | State::Booting { .. }
            | State::Unready { .. }
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

    pub(super) fn machine(&mut self, state: State, phase: MachinePhase) -> State {
        match state {
            State::Stopped
            | State::Preparing(_)
            | State::Backoff { .. }
            | State::Failed { .. }
            | State::Stopping(Stopping { waiting: Waiting::Launch, .. }) => state,
            State::Booting { deadline, kills, detail } => match phase {
                MachinePhase::Booting { deadline, detail, .. } => {
                    State::Booting { deadline: self.now.at_wall(deadline), kills, detail }
                }
                MachinePhase::Unprepared { what, message, hint, .. } => self.unready(&what, message, hint),
                MachinePhase::Running { since } => {
                    if std::mem::take(&mut self.edited) {
                        self.effects.push(Effect::Recheck);
                    }
                    State::Running { since }
                }
                MachinePhase::Stopping { .. } if kills > 0 => State::Booting { deadline, kills, detail },
                MachinePhase::Stopping { running_since, deadline } => self.goes_down(running_since, deadline),
                MachinePhase::Ended { exit } if kills > 0 => self.ended(cause::overdue(exit)),
                MachinePhase::Ended { exit } => self.ended(exit),
            },
            // What is shown stays true when the machine that shows it ends: nobody asked for that.
            State::Unready { cause } => match phase {
                MachinePhase::Booting { .. }
                | MachinePhase::Unprepared { .. }
                | MachinePhase::Running { .. } => State::Unready { cause },
                MachinePhase::Stopping { running_since, deadline } => self.goes_down(running_since, deadline),
                MachinePhase::Ended { exit } => {
                    self.record.note_exit(exit);
                    State::Failed { cause }
                }
            },
            State::Running { since } => match phase {
                MachinePhase::Booting { .. } | MachinePhase::Unprepared { .. } => state,
                MachinePhase::Running { since } => State::Running { since },
                MachinePhase::Stopping { deadline, .. } => self.goes_down(Some(since), deadline),
                MachinePhase::Ended { exit } => self.ended(exit),
            },
            State::Stopping(stopping @ Stopping { waiting: Waiting::Machine, .. }) => match phase {
                MachinePhase::Booting { .. }
                | MachinePhase::Unprepared { .. }
                | MachinePhase::Stopping { .. } => State::Stopping(stopping),
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
