//! A pull's progress as one line.

use std::collections::BTreeMap;
use std::fmt;

use iii_protocol::api::PullEvent;

/// What is known of a pull under way.
#[derive(Debug, Clone)]
pub struct Progress {
    reference: String,
    resolved: Option<PullEvent>,
    layers: BTreeMap<String, PullEvent>,
    /// What is done to the root disk.
    disk: Option<PullEvent>,
}

impl Progress {
    /// A pull of which nothing is known yet.
    pub fn new(reference: &str) -> Progress {
        Progress { reference: reference.to_owned(), resolved: None, layers: BTreeMap::new(), disk: None }
    }

    /// Takes note of an event.
    pub fn note(&mut self, event: &PullEvent) {
        match event {
            PullEvent::Resolved { .. } => self.resolved = Some(event.clone()),
            PullEvent::Layer { digest, .. } => {
                self.layers.insert(digest.clone(), event.clone());
            }
            PullEvent::Checking { .. } | PullEvent::Building { .. } => self.disk = Some(event.clone()),
            PullEvent::Done { .. } | PullEvent::Failed { .. } => {}
        }
    }

    /// The events that tell one who comes late all that is known.
    pub fn replay(&self) -> impl Iterator<Item = PullEvent> + '_ {
        self.resolved.iter().chain(self.layers.values()).chain(&self.disk).cloned()
    }
}

/// `pulling <reference>: 3/5 layers, 12.3 MiB of 40.0 MiB`
impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reference = &self.reference;
        let on_disk = match self.disk {
            Some(PullEvent::Building { done_bytes, total_bytes }) => {
                Some(("building", done_bytes, total_bytes))
            }
            // What was found damaged is pulled again, and its layers are what counts then.
            Some(PullEvent::Checking { done_bytes, total_bytes }) if self.layers.is_empty() => {
                Some(("checking", done_bytes, total_bytes))
            }
            _ => None,
        };
        if let Some((what, done_bytes, total_bytes)) = on_disk {
            let percent = done_bytes.saturating_mul(100).checked_div(total_bytes).unwrap_or(100);
            return write!(f, "{what} the root disk of {reference}: {} %", percent.min(100));
        }
        let Some(PullEvent::Resolved { layers, total_bytes, .. }) = &self.resolved else {
            return write!(f, "pulling {reference}");
        };
        let (mut ready, mut bytes) = (0, 0);
        for layer in self.layers.values() {
            if let PullEvent::Layer { done_bytes, total_bytes, cached, .. } = layer {
                ready += usize::from(*cached || done_bytes >= total_bytes);
                bytes += if *cached { 0 } else { *done_bytes };
            }
        }
        let (bytes, total) = (Mib(bytes), Mib(*total_bytes));
        write!(f, "pulling {reference}: {ready}/{layers} layers, {bytes} of {total}")
    }
}

struct Mib(u64);

impl fmt::Display for Mib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = u128::from(self.0) * 10 / (1024 * 1024);
        write!(f, "{}.{} MiB", tenths / 10, tenths % 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn layer(digest: &str, done_bytes: u64, total_bytes: u64, cached: bool) -> PullEvent {
        PullEvent::Layer { digest: digest.into(), done_bytes, total_bytes, cached }
    }

    #[test]
    fn a_pull_is_told_in_layers_and_bytes() {
        let mut progress = Progress::new("r/x");
        assert_eq!(progress.to_string(), "pulling r/x");
        let digest = "sha256:1".to_owned();
        progress.note(&PullEvent::Resolved { digest, layers: 3, total_bytes: 40 * MIB });
        progress.note(&layer("a", 10 * MIB, 10 * MIB, false));
        progress.note(&layer("b", MIB, 30 * MIB, false));
        progress.note(&layer("b", 2 * MIB + MIB / 3, 30 * MIB, false));
        progress.note(&layer("c", 0, MIB, true));
        assert_eq!(progress.to_string(), "pulling r/x: 2/3 layers, 12.3 MiB of 40.0 MiB");
        assert_eq!(progress.replay().count(), 4);
        progress.note(&PullEvent::Checking { done_bytes: 10, total_bytes: 40 });
        assert_eq!(progress.to_string(), "pulling r/x: 2/3 layers, 12.3 MiB of 40.0 MiB");
        progress.note(&PullEvent::Building { done_bytes: 10, total_bytes: 40 });
        assert_eq!(progress.to_string(), "building the root disk of r/x: 25 %");

        let mut forced = Progress::new("r/x");
        forced.note(&PullEvent::Checking { done_bytes: 30, total_bytes: 40 });
        assert_eq!(forced.to_string(), "checking the root disk of r/x: 75 %");
    }
}
