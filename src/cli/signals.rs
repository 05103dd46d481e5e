//! The signals that a command with a session passes on, and when they mean more than their name.

use std::io;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// A second Ctrl-C or SIGTERM within this time kills.
pub const ESCALATE_WITHIN: Duration = Duration::from_secs(1);

/// Listens from its creation on: from then on none of these ends the process by itself.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    quit: Signal,
    resized: Signal,
}

/// What has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Came {
    /// One to pass on, by its number.
    Asked(i32),
    /// The terminal has another size.
    Resized,
}

impl Signals {
    /// Within a runtime.
    pub fn listen() -> io::Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            resized: signal(SignalKind::window_change())?,
        })
    }

    /// The next one. May be cancelled without loss.
    pub async fn next(&mut self) -> Came {
        tokio::select! {
            _ = self.interrupt.recv() => Came::Asked(SignalKind::interrupt().as_raw_value()),
            _ = self.terminate.recv() => Came::Asked(SignalKind::terminate().as_raw_value()),
            _ = self.hang_up.recv() => Came::Asked(SignalKind::hangup().as_raw_value()),
            _ = self.quit.recv() => Came::Asked(SignalKind::quit().as_raw_value()),
            _ = self.resized.recv() => Came::Resized,
        }
    }

    /// The next one that asks for something, by its number. Likewise.
    pub async fn asked(&mut self) -> i32 {
        loop {
            if let Came::Asked(signal) = self.next().await {
                return signal;
            }
        }
    }
}

/// Remembers who asked when.
#[derive(Debug, Default)]
pub struct Escalation {
    last: Option<(i32, Instant)>,
}

impl Escalation {
    /// Whether this one is the second of its kind within [`ESCALATE_WITHIN`]: Ctrl-C and SIGTERM only, the
    /// others may come as often as they like.
    pub fn is_second(&mut self, signal: i32, now: Instant) -> bool {
        let kills = [SignalKind::interrupt(), SignalKind::terminate()]
            .map(|kind| kind.as_raw_value())
            .contains(&signal);
        if !kills {
            return false;
        }
        let before = self.last.replace((signal, now));
        before.is_some_and(|(last, at)| last == signal && now.duration_since(at) <= ESCALATE_WITHIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INT: i32 = 2;
    const TERM: i32 = 15;
    const QUIT: i32 = 3;

    #[test]
    fn a_second_of_the_same_kind_within_a_second_kills() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut escalation = Escalation::default();
        assert!(!escalation.is_second(INT, at(0)));
        assert!(!escalation.is_second(INT, at(1001)), "too late");
        assert!(!escalation.is_second(TERM, at(1100)), "another one");
        assert!(!escalation.is_second(QUIT, at(1150)));
        assert!(escalation.is_second(TERM, at(2100)));
        assert!(!escalation.is_second(QUIT, at(2101)));
        assert!(!escalation.is_second(QUIT, at(2102)), "nobody means to kill with this one");
    }
}
