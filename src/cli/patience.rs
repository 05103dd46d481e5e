//! How long a session may be silent: until its first word, and past its time limit.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// How long a worker may take for its first word before the person is told that there is none.
pub const TELL_AFTER: Duration = Duration::from_secs(5);
/// How long after the time limit the guest may take to say so, before it is taken for hung.
pub const MARGIN: Duration = Duration::from_secs(5);

/// What is overdue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overdue {
    /// The first word; comes once.
    Answer,
    /// The end: the time limit is over, and its margin.
    End,
}

/// Counts from its creation on.
#[derive(Debug)]
pub struct Patience {
    limit: Option<Duration>,
    answer_by: Option<Instant>,
    end_by: Option<Instant>,
}

impl Patience {
    /// With the session's time limit, if it has one.
    pub fn begin(limit: Option<Duration>) -> Patience {
        Patience { limit, answer_by: Instant::now().checked_add(TELL_AFTER), end_by: end_by(limit) }
    }

    /// The command runs, or never will: the guest counts from now on, and so does this.
    pub fn answered(&mut self) {
        self.answer_by = None;
        self.end_by = end_by(self.limit);
    }

    /// The end has come.
    pub fn ended(&mut self) {
        self.answer_by = None;
        self.end_by = None;
    }

    /// Waits until something is overdue. May be cancelled without loss.
    pub async fn overdue(&mut self) -> Overdue {
        tokio::select! {
            // One that is overdue altogether is not told of as late.
            biased;
            () = at(self.end_by) => Overdue::End,
            () = at(self.answer_by) => {
                self.answer_by = None;
                Overdue::Answer
            }
        }
    }
}

fn end_by(limit: Option<Duration>) -> Option<Instant> {
    Instant::now().checked_add(limit?)?.checked_add(MARGIN)
}

/// Waits for a point in time; for ever without one.
pub async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    async fn waits(patience: &mut Patience) -> (Overdue, Duration) {
        let begun = Instant::now();
        (patience.overdue().await, begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_told_once_and_the_limit_ends_it() {
        let mut patience = Patience::begin(Some(SECOND));
        assert_eq!(waits(&mut patience).await.0, Overdue::Answer);
        let (overdue, more) = waits(&mut patience).await;
        assert_eq!(overdue, Overdue::End);
        assert!(more <= SECOND + MARGIN - TELL_AFTER + Duration::from_millis(10), "{more:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_limit_counts_from_the_answer_and_not_past_the_end() {
        let mut patience = Patience::begin(Some(SECOND));
        tokio::time::advance(4 * SECOND).await;
        patience.answered();
        let (overdue, waited) = waits(&mut patience).await;
        assert_eq!(overdue, Overdue::End);
        assert!(waited >= SECOND + MARGIN, "{waited:?}");
        patience.ended();
        let day = 86_400 * SECOND;
        assert!(tokio::time::timeout(day, patience.overdue()).await.is_err(), "nothing is overdue any more");
        let mut patience = Patience::begin(Some(Duration::MAX));
        patience.answered();
        assert!(
            tokio::time::timeout(day, patience.overdue()).await.is_err(),
            "a limit past all time is none"
        );
    }
}
