//! When a worker that ended is started again. Pure: time, cause and chance come as arguments.
//!
//! The first restart is at once, then the delay doubles up to a cap, with jitter so that workers that
//! fell together do not come back together. Failures to start are another matter: they rarely mend
//! themselves, so only a few tries are made. A run that lasted makes all of it forgotten.

use std::collections::VecDeque;
use std::time::Duration;

use iii_protocol::exit::ExitCause;
use tokio::time::Instant;

use crate::config::schema::{RestartConfig, RestartPolicy};

/// How often in a row a worker may fail to start before it is `failed`.
pub const START_TRIES: u32 = 3;
/// This many deaths within [`CRASH_LOOP_WINDOW`] are a crash loop.
pub const CRASH_LOOP_DEATHS: usize = 5;
/// See [`CRASH_LOOP_DEATHS`].
pub const CRASH_LOOP_WINDOW: Duration = Duration::from_secs(60);
/// Share of a delay by which chance may change it, up or down.
pub const JITTER: f64 = 0.2;

/// What is remembered of a worker's recent ends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// Restarts in a row without a run that lasted.
    restarts: u32,
    /// Failures to start in a row.
    start_failures: u32,
    /// The newest deaths, at most [`CRASH_LOOP_DEATHS`].
    deaths: VecDeque<Instant>,
    /// Seen a crash loop; true until a run lasts.
    crash_loop: bool,
}

/// How one generation ended without being asked to.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// When.
    pub at: Instant,
    /// Why.
    pub cause: &'a ExitCause,
    /// How long the workload ran.
    pub uptime: Duration,
}

/// What follows an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Start again.
    Again {
        /// After this long; zero means at once.
        after: Duration,
        /// Which try in a row this will be, from 1.
        attempt: u32,
        /// Whether it is shown as a crash loop.
        crash_loop: bool,
    },
    /// It is done and stays down.
    Rest,
    /// It failed and stays down.
    GiveUp(GiveUp),
}

/// Why no further try is made after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GiveUp {
    /// `restart: never`.
    Policy,
    /// [`START_TRIES`] are used up.
    StartTries,
    /// `max_restarts` is used up; its value.
    MaxRestarts(u32),
}

impl History {
    /// Takes note of an end and says what follows. `random` is uniform in `0.0..1.0`.
    pub fn judge(&mut self, config: &RestartConfig, end: End<'_>, random: f64) -> Verdict {
        if end.cause.is_could_not_start() {
            return self.judge_start_failure(config, random);
        }
        self.start_failures = 0;
        if end.uptime >= config.reset_after {
            *self = History::default();
        }
        match config.policy {
            RestartPolicy::Always | RestartPolicy::UnlessStopped => {}
            RestartPolicy::OnFailure if end.cause.is_success() => return Verdict::Rest,
            RestartPolicy::OnFailure => {}
            RestartPolicy::Never if end.cause.is_success() => return Verdict::Rest,
            RestartPolicy::Never => return Verdict::GiveUp(GiveUp::Policy),
        }
        self.note_death(end.at);
        if let Some(max) = config.max_restarts
            && self.restarts >= max
        {
            return Verdict::GiveUp(GiveUp::MaxRestarts(max));
        }
        let after = delay(config, self.restarts, random);
        self.restarts = self.restarts.saturating_add(1);
        Verdict::Again { after, attempt: self.restarts, crash_loop: self.crash_loop }
    }

    fn judge_start_failure(&mut self, config: &RestartConfig, random: f64) -> Verdict {
        self.start_failures = self.start_failures.saturating_add(1);
        if config.policy == RestartPolicy::Never {
            return Verdict::GiveUp(GiveUp::Policy);
        }
        if self.start_failures >= START_TRIES {
            return Verdict::GiveUp(GiveUp::StartTries);
        }
        // Nothing changed since the failure just now, so even the first further try waits a little.
        let after = delay(config, self.start_failures, random);
        Verdict::Again { after, attempt: self.start_failures, crash_loop: self.crash_loop }
    }

    fn note_death(&mut self, at: Instant) {
        self.deaths.push_back(at);
        while self.deaths.len() > CRASH_LOOP_DEATHS {
            self.deaths.pop_front();
        }
        let oldest = self.deaths.front().copied().unwrap_or(at);
        if self.deaths.len() == CRASH_LOOP_DEATHS && at.saturating_duration_since(oldest) <= CRASH_LOOP_WINDOW
        {
            self.crash_loop = true;
        }
    }
}

/// The wait before try number `n` (0 is the first) in a row: never more than `max_delay`.
pub fn delay(config: &RestartConfig, n: u32, random: f64) -> Duration {
    let Some(doublings) = n.checked_sub(1) else { return Duration::ZERO };
    let factor = 2u32.checked_pow(doublings).unwrap_or(u32::MAX);
    let plain = config.delay.saturating_mul(factor).min(config.max_delay);
    plain.mul_f64(1.0 + JITTER * (2.0 * random.clamp(0.0, 1.0) - 1.0)).min(config.max_delay)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXIT_7: ExitCause = ExitCause::Exit { code: 7 };
    const EXIT_0: ExitCause = ExitCause::Exit { code: 0 };

    fn config(policy: RestartPolicy) -> RestartConfig {
        RestartConfig {
            policy,
            max_restarts: None,
            delay: Duration::from_millis(250),
            max_delay: Duration::from_secs(30),
            reset_after: Duration::from_secs(60),
        }
    }

    fn no_start() -> ExitCause {
        ExitCause::CouldNotStart { what: "exec".into(), message: "no such file".into(), hint: None }
    }

    /// Feeds ends of `uptime` one after the other and gives the delays.
    fn delays(history: &mut History, config: &RestartConfig, uptime: Duration, n: usize) -> Vec<u128> {
        let mut at = Instant::now();
        (0..n)
            .map(|_| {
                at += uptime;
                match history.judge(config, End { at, cause: &EXIT_7, uptime }, 0.5) {
                    Verdict::Again { after, .. } => {
                        at += after;
                        after.as_millis()
                    }
                    other => panic!("{other:?}"),
                }
            })
            .collect()
    }

    #[test]
    fn the_first_restart_is_at_once_and_the_delay_doubles_to_the_cap() {
        let config = config(RestartPolicy::UnlessStopped);
        let got = delays(&mut History::default(), &config, Duration::from_millis(10), 11);
        assert_eq!(got, [0, 250, 500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);
    }

    #[test]
    fn a_run_that_lasted_makes_the_count_start_anew() {
        let config = config(RestartPolicy::UnlessStopped);
        let mut history = History::default();
        delays(&mut history, &config, Duration::from_secs(1), 6);
        assert!(history.crash_loop);
        assert_eq!(delays(&mut history, &config, Duration::from_secs(60), 1), [0]);
        assert!(!history.crash_loop);
    }

    #[test]
    fn five_deaths_in_a_minute_are_a_crash_loop_until_a_run_lasts() {
        let config = config(RestartPolicy::Always);
        let mut history = History::default();
        delays(&mut history, &config, Duration::from_secs(1), 4);
        assert!(!history.crash_loop);
        // At the cap there are fewer than five deaths in a minute, and it is still the same loop.
        delays(&mut history, &config, Duration::from_secs(1), 20);
        assert!(history.crash_loop);
        let mut calm = History::default();
        delays(&mut calm, &config, Duration::from_secs(30), 9);
        assert!(!calm.crash_loop);
    }

    #[test]
    fn three_failures_to_start_in_a_row_are_enough() {
        let config = config(RestartPolicy::UnlessStopped);
        let mut history = History::default();
        let (at, cause, uptime) = (Instant::now(), &no_start(), Duration::ZERO);
        let mut judge = || history.judge(&config, End { at, cause, uptime }, 0.5);
        assert!(matches!(judge(), Verdict::Again { after, attempt: 1, .. } if after.as_millis() == 250));
        assert!(matches!(judge(), Verdict::Again { after, attempt: 2, .. } if after.as_millis() == 500));
        assert_eq!(judge(), Verdict::GiveUp(GiveUp::StartTries));
    }

    #[test]
    fn a_run_between_failures_to_start_forgives_them() {
        let config = config(RestartPolicy::UnlessStopped);
        let mut history = History::default();
        let at = Instant::now();
        for _ in 0..5 {
            let end = End { at, cause: &no_start(), uptime: Duration::ZERO };
            assert!(matches!(history.judge(&config, end, 0.5), Verdict::Again { attempt: 1, .. }));
            history.judge(&config, End { at, cause: &EXIT_7, uptime: Duration::from_secs(1) }, 0.5);
        }
    }

    #[test]
    fn each_policy_knows_which_ends_it_restarts() {
        use RestartPolicy::{Always, Never, OnFailure, UnlessStopped};
        let judge = |policy, cause: &ExitCause| {
            let end = End { at: Instant::now(), cause, uptime: Duration::from_secs(1) };
            History::default().judge(&config(policy), end, 0.5)
        };
        for policy in [Always, UnlessStopped] {
            assert!(matches!(judge(policy, &EXIT_0), Verdict::Again { .. }));
            assert!(matches!(judge(policy, &ExitCause::Oom), Verdict::Again { .. }));
        }
        assert_eq!(judge(OnFailure, &EXIT_0), Verdict::Rest);
        assert!(matches!(judge(OnFailure, &ExitCause::Signal { signal: 9 }), Verdict::Again { .. }));
        assert_eq!(judge(Never, &EXIT_0), Verdict::Rest);
        assert_eq!(judge(Never, &EXIT_7), Verdict::GiveUp(GiveUp::Policy));
        assert_eq!(judge(Never, &no_start()), Verdict::GiveUp(GiveUp::Policy));
    }

    #[test]
    fn max_restarts_ends_in_failure() {
        let config = RestartConfig { max_restarts: Some(2), ..config(RestartPolicy::Always) };
        let mut history = History::default();
        delays(&mut history, &config, Duration::from_secs(1), 2);
        let end = End { at: Instant::now(), cause: &EXIT_7, uptime: Duration::from_secs(1) };
        assert_eq!(history.judge(&config, end, 0.5), Verdict::GiveUp(GiveUp::MaxRestarts(2)));
    }

    proptest! {
        #[test]
        fn a_delay_stays_within_jitter_and_cap(
            n in 0u32..200, random in 0.0f64..1.0, delay_ms in 0u64..5_000, max_ms in 0u64..120_000,
        ) {
            let config = RestartConfig {
                delay: Duration::from_millis(delay_ms),
                max_delay: Duration::from_millis(max_ms),
                ..config(RestartPolicy::Always)
            };
            let got = delay(&config, n, random);
            prop_assert!(got <= config.max_delay);
            let plain = match n {
                0 => 0.0,
                n => (delay_ms as f64 * 2f64.powi(n as i32 - 1)).min(max_ms as f64) / 1000.0,
            };
            prop_assert!(got.as_secs_f64() <= plain * 1.2 + 1e-6);
            prop_assert!(got.as_secs_f64() >= plain * 0.8 - 1e-6);
        }
    }
}
