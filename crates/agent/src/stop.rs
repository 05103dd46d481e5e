//! When a stop becomes a kill: pure policy.
//!
//! ```text
//!   Running ── Stop{grace} ──> Asked{deadline} ── deadline, or Stop{grace 0} ──> Killed
//!      └────────── Stop{grace 0}, link lost ────────────────────────────────────────^
//! ```

use std::time::{Duration, Instant};

use iii_protocol::guest::Stop;

use crate::sys::LAST_SIGNAL;

/// Sent when the shim names a signal that does not exist.
const FALLBACK_SIGNAL: i32 = nix::libc::SIGTERM;

/// How far a stop is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopState {
    /// Nobody asked.
    Running,
    /// The signal was sent; SIGKILL follows at `deadline`.
    Asked {
        /// Only ever moves closer.
        deadline: Instant,
    },
    /// Everything was sent SIGKILL.
    Killed,
}

/// What the caller has to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopAction {
    /// Nothing.
    Nothing,
    /// Send this signal to the workload's process group.
    Signal(i32),
    /// Send SIGKILL to everything.
    Kill,
}

impl StopState {
    /// When to call [`StopState::at`] next, if ever.
    pub(crate) fn deadline(self) -> Option<Instant> {
        match self {
            StopState::Asked { deadline } => Some(deadline),
            StopState::Running | StopState::Killed => None,
        }
    }

    /// The shim asked for an end. A second request may shorten the grace, never extend it, and does not
    /// send the signal again: many programs take a second one as "now".
    pub(crate) fn asked(self, now: Instant, stop: &Stop) -> (StopState, StopAction) {
        if matches!(self, StopState::Killed) {
            return (self, StopAction::Nothing);
        }
        if stop.grace_ms == 0 {
            return (StopState::Killed, StopAction::Kill);
        }
        // A grace too long for the clock is as good as none: a century from now.
        let deadline = now
            .checked_add(Duration::from_millis(stop.grace_ms))
            .unwrap_or_else(|| now + Duration::from_secs(100 * 365 * 24 * 3600));
        match self {
            StopState::Asked { deadline: earlier } => {
                (StopState::Asked { deadline: earlier.min(deadline) }, StopAction::Nothing)
            }
            StopState::Running | StopState::Killed => {
                let valid = (1..=LAST_SIGNAL).contains(&stop.signal);
                let signal = if valid { stop.signal } else { FALLBACK_SIGNAL };
                (StopState::Asked { deadline }, StopAction::Signal(signal))
            }
        }
    }

    /// Time has passed.
    pub(crate) fn at(self, now: Instant) -> (StopState, StopAction) {
        match self {
            StopState::Asked { deadline } if deadline <= now => (StopState::Killed, StopAction::Kill),
            StopState::Asked { .. } | StopState::Running | StopState::Killed => (self, StopAction::Nothing),
        }
    }

    /// The shim is gone: nobody is left to be polite for.
    pub(crate) fn abandoned(self) -> (StopState, StopAction) {
        match self {
            StopState::Killed => (self, StopAction::Nothing),
            StopState::Running | StopState::Asked { .. } => (StopState::Killed, StopAction::Kill),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stop(signal: i32, grace_ms: u64) -> Stop {
        Stop { signal, grace_ms }
    }

    #[test]
    fn a_stop_signals_first_and_kills_at_the_deadline() {
        let start = Instant::now();
        let (state, action) = StopState::Running.asked(start, &stop(15, 1000));
        assert_eq!(action, StopAction::Signal(15));
        let (state, action) = state.at(start + Duration::from_millis(999));
        assert_eq!(action, StopAction::Nothing);
        let (state, action) = state.at(start + Duration::from_millis(1000));
        assert_eq!((state, action), (StopState::Killed, StopAction::Kill));
    }

    #[test]
    fn a_second_stop_only_ever_shortens_the_grace() {
        let start = Instant::now();
        let (state, _) = StopState::Running.asked(start, &stop(15, 1000));
        let (later, action) = state.asked(start, &stop(15, 5000));
        assert_eq!((later, action), (state, StopAction::Nothing));
        let (sooner, action) = state.asked(start, &stop(15, 10));
        assert_eq!(sooner.deadline(), Some(start + Duration::from_millis(10)));
        assert_eq!(action, StopAction::Nothing);
    }

    #[test]
    fn no_grace_kills_at_once_and_only_once() {
        let now = Instant::now();
        let (state, action) = StopState::Running.asked(now, &stop(15, 0));
        assert_eq!((state, action), (StopState::Killed, StopAction::Kill));
        assert_eq!(state.asked(now, &stop(9, 0)).1, StopAction::Nothing);
        assert_eq!(state.abandoned().1, StopAction::Nothing);
        assert_eq!(state.deadline(), None);
    }

    #[test]
    fn a_lost_link_kills_whatever_the_grace() {
        let (state, _) = StopState::Running.asked(Instant::now(), &stop(15, 60_000));
        assert_eq!(state.abandoned(), (StopState::Killed, StopAction::Kill));
    }

    #[test]
    fn real_time_signals_are_sent_and_impossible_ones_replaced() {
        let now = Instant::now();
        assert_eq!(StopState::Running.asked(now, &stop(37, 1)).1, StopAction::Signal(37));
        for signal in [0, -9, 65, i32::MAX] {
            assert_eq!(StopState::Running.asked(now, &stop(signal, 1)).1, StopAction::Signal(15));
        }
        let (state, _) = StopState::Running.asked(now, &stop(15, u64::MAX));
        assert!(state.deadline().is_some());
    }
}
