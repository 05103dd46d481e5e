//! How often an actor may fail before it is left alone: pure.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// This many failures within [`WINDOW`] are too many.
pub const LIMIT: usize = 5;
/// See [`LIMIT`].
pub const WINDOW: Duration = Duration::from_secs(60);

/// The newest failures of one actor.
#[derive(Debug, Clone, Default)]
pub struct Failures(VecDeque<Instant>);

impl Failures {
    /// Notes a failure; true when it is one too many.
    pub fn note(&mut self, at: Instant) -> bool {
        self.0.push_back(at);
        while self.0.front().is_some_and(|first| at.saturating_duration_since(*first) > WINDOW) {
            self.0.pop_front();
        }
        self.0.len() >= LIMIT
    }

    /// Forgets them all.
    pub fn forgive(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fifth_failure_within_a_minute_is_one_too_many() {
        let start = Instant::now();
        let mut quick = Failures::default();
        let verdicts: Vec<bool> = (0..5).map(|n| quick.note(start + Duration::from_secs(n))).collect();
        assert_eq!(verdicts, [false, false, false, false, true]);
        let mut slow = Failures::default();
        assert!((0..50).all(|n| !slow.note(start + Duration::from_secs(16 * n))));
        quick.forgive();
        assert!(!quick.note(start));
    }
}
