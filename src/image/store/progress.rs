//! Progress of a pull: often enough to be seen moving, never so often that it costs.

use std::cell::OnceCell;
use std::sync::atomic::{AtomicU64, Ordering};

use iii_protocol::api::PullEvent;
use tokio::sync::mpsc;

use crate::image::digest::Digest;
use crate::image::registry::{Blob, ImageManifest};

/// Bytes between two events, unless a hundredth of the whole is more.
const STEP_BYTES: u64 = 256 * 1024;

/// Where progress goes. A full or closed channel skips it: progress is never worth waiting for.
#[derive(Debug, Clone)]
pub(super) struct Events {
    sender: mpsc::Sender<PullEvent>,
}

impl Events {
    pub(super) fn new(sender: mpsc::Sender<PullEvent>) -> Events {
        Events { sender }
    }

    pub(super) fn resolved(&self, digest: &Digest, manifest: &ImageManifest) {
        let total_bytes =
            unique(&manifest.layers).iter().map(|layer| layer.size).fold(0, u64::saturating_add);
        self.send(PullEvent::Resolved {
            digest: digest.to_string(),
            layers: manifest.layers.len(),
            total_bytes,
        });
    }

    pub(super) fn layer(&self, blob: &Blob, done_bytes: u64, cached: bool) {
        self.send(PullEvent::Layer {
            digest: blob.digest.to_string(),
            done_bytes,
            total_bytes: blob.size,
            cached,
        });
    }

    pub(super) fn building(&self, done_bytes: u64, total_bytes: u64) {
        self.send(PullEvent::Building { done_bytes, total_bytes });
    }

    /// For a look at a whole root disk: takes how many bytes were looked at, and of how many.
    pub(super) fn checking(self) -> impl Fn(u64, u64) + Send + 'static {
        let throttle = OnceCell::new();
        move |done_bytes, total_bytes| {
            if throttle.get_or_init(|| Throttle::new(total_bytes)).passes(done_bytes) {
                self.send(PullEvent::Checking { done_bytes, total_bytes });
            }
        }
    }

    fn send(&self, event: PullEvent) {
        let _ = self.sender.try_send(event);
    }
}

/// The layers by digest, each once, in order.
pub(super) fn unique(layers: &[Blob]) -> Vec<&Blob> {
    let mut seen = std::collections::HashSet::new();
    layers.iter().filter(|layer| seen.insert(&layer.digest)).collect()
}

/// Lets through the first, the last, and some of the values between.
#[derive(Debug)]
pub(super) struct Throttle {
    total: u64,
    /// The value from which on the next one is let through.
    next: AtomicU64,
}

impl Throttle {
    pub(super) fn new(total: u64) -> Throttle {
        Throttle { total, next: AtomicU64::new(0) }
    }

    /// Whether `done` is worth an event.
    pub(super) fn passes(&self, done: u64) -> bool {
        let next = self.next.load(Ordering::Relaxed);
        let step = STEP_BYTES.max(self.total / 100);
        // After a restart from the first byte the count goes back.
        let back = done.saturating_add(step) < next;
        let passes = done >= next || back || done == self.total;
        if passes {
            self.next.store(done.saturating_add(step), Ordering::Relaxed);
        }
        passes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_in_steps_and_at_the_end() {
        let small = Throttle::new(1_000_000);
        let told: Vec<u64> = (0..=1_000_000).step_by(10_000).filter(|n| small.passes(*n)).collect();
        assert_eq!(told, [0, 270_000, 540_000, 810_000, 1_000_000]);

        let large = Throttle::new(1 << 40);
        let told = (0..=1u64 << 40).step_by(1 << 30).filter(|n| large.passes(*n)).count();
        assert!(told <= 101, "{told}");
        assert!(large.passes(0), "a download that starts over shows it");
    }
}
