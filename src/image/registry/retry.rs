//! When to try again: only what may pass, only so often, a little later each time.

use std::time::Duration;

use super::TransferLimits;
use super::failure::{Failure, Remedy};
use crate::image::error::ImageError;

/// A registry that limits requests is asked more slowly; it counts seconds, not milliseconds.
const RATE_LIMIT_FACTOR: u32 = 8;
/// Jitter, as a share of the delay, so that many pulls do not come back together.
const JITTER: f64 = 0.2;

/// The attempts at one manifest or blob.
pub(super) struct Retries<'a> {
    limits: &'a TransferLimits,
    used: u32,
}

impl<'a> Retries<'a> {
    pub(super) fn new(limits: &'a TransferLimits) -> Retries<'a> {
        Retries { limits, used: 0 }
    }

    /// Something came through: the count starts over.
    pub(super) fn progressed(&mut self) {
        self.used = 0;
    }

    /// Returns when it is time for the next attempt, or the error when there is none.
    pub(super) async fn wait(&mut self, failure: Failure) -> Result<(), ImageError> {
        let Some(delay) = delay(self.limits, self.used, failure.remedy, rand::random::<f64>()) else {
            return Err(failure.error);
        };
        tracing::debug!(error = %failure.error, ?delay, "will try again");
        self.used += 1;
        tokio::time::sleep(delay).await;
        Ok(())
    }
}

/// The wait before retry number `used` (from 0), or `None` to give up. `random` is in `0..1`.
fn delay(limits: &TransferLimits, used: u32, remedy: Remedy, random: f64) -> Option<Duration> {
    let factor = match remedy {
        Remedy::GiveUp => return None,
        Remedy::Retry => 1,
        Remedy::RetryLater => RATE_LIMIT_FACTOR,
    };
    if used >= limits.retries {
        return None;
    }
    let doubled = limits.first_delay.saturating_mul(factor).saturating_mul(1 << used.min(16));
    Some(doubled.min(limits.max_delay).mul_f64(1.0 - JITTER + 2.0 * JITTER * random))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_cap_and_end() {
        let limits = TransferLimits { retries: 6, ..TransferLimits::default() };
        let delays: Vec<_> = (0..8).map(|n| delay(&limits, n, Remedy::Retry, 0.5)).collect();
        let ms = |n| Some(Duration::from_millis(n));
        assert_eq!(delays, [ms(200), ms(400), ms(800), ms(1600), ms(3200), ms(5000), None, None]);
        assert_eq!(delay(&limits, 0, Remedy::RetryLater, 0.5), ms(1600));
        assert_eq!(delay(&limits, 0, Remedy::Retry, 0.0), ms(160));
    }

    #[test]
    fn what_cannot_pass_is_not_tried_again() {
        assert_eq!(delay(&TransferLimits::default(), 0, Remedy::GiveUp, 0.5), None);
    }
}
