//! How a pull and a wait are shown: bars on a terminal, plain lines otherwise. All of it is talk: stderr.

use std::collections::HashMap;

use iii_protocol::api::{PullEvent, WorkerStatus};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::{Printer, Style};
use super::wait::Phases;
use crate::units::short_bytes;

/// How many characters of a digest tell layers apart.
const SHORT_DIGEST: usize = 12;

/// What is said of a root disk that is looked at.
const CHECKING: &str = "checking the root disk";
/// What is said of one that is built.
const BUILDING: &str = "building the root disk";

/// Shows one pull.
pub struct PullProgress {
    show: Show,
}

enum Show {
    /// Those of the disk are by what is done to it.
    Bars {
        all: MultiProgress,
        layers: HashMap<String, ProgressBar>,
        disk: HashMap<&'static str, ProgressBar>,
    },
    /// What was said of the disk already.
    Lines { done: HashMap<String, bool>, disk: Vec<&'static str> },
}

impl PullProgress {
    /// For a stderr of this style.
    pub fn new(style: Style) -> PullProgress {
        let show = if style.terminal {
            let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
            Show::Bars { all, layers: HashMap::new(), disk: HashMap::new() }
        } else {
            Show::Lines { done: HashMap::new(), disk: Vec::new() }
        };
        PullProgress { show }
    }

    /// Shows what happened.
    pub fn event(&mut self, printer: &mut Printer, event: &PullEvent) {
        match &mut self.show {
            Show::Bars { all, layers, disk } => bars(all, layers, disk, event),
            Show::Lines { done, disk } => {
                if let Some(line) = line(done, disk, event) {
                    printer.say(&line);
                }
            }
        }
    }

    /// Takes the bars away: what comes next is written below what stays.
    pub fn finish(self) {
        if let Show::Bars { all, .. } = self.show {
            // A terminal that is gone shows nothing anyway.
            let _ = all.clear();
        }
    }
}

fn bars(
    all: &MultiProgress,
    layers: &mut HashMap<String, ProgressBar>,
    disk: &mut HashMap<&'static str, ProgressBar>,
    event: &PullEvent,
) {
    let style = ProgressStyle::with_template("  {msg:<22} {bar:28} {binary_bytes:>11}/{binary_total_bytes}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let new_bar =
        |message: String| all.add(ProgressBar::new(0).with_style(style.clone()).with_message(message));
    match event {
        PullEvent::Layer { digest, done_bytes, total_bytes, cached } => {
            let bar = layers
                .entry(digest.clone())
                .or_insert_with(|| new_bar(format!("layer {}", short_digest(digest))));
            set(bar, if *cached { *total_bytes } else { *done_bytes }, *total_bytes);
        }
        PullEvent::Checking { done_bytes, total_bytes } => {
            set(
                disk.entry(CHECKING).or_insert_with(|| new_bar("root disk, check".to_owned())),
                *done_bytes,
                *total_bytes,
            );
        }
        PullEvent::Building { done_bytes, total_bytes } => {
            set(
                disk.entry(BUILDING).or_insert_with(|| new_bar("root disk".to_owned())),
                *done_bytes,
                *total_bytes,
            );
        }
        PullEvent::Resolved { .. } | PullEvent::Done { .. } | PullEvent::Failed { .. } => {}
    }
}

fn set(bar: &ProgressBar, position: u64, length: u64) {
    bar.set_length(length);
    bar.set_position(position);
}

/// The line for the first event of a kind.
fn first(said: &mut Vec<&'static str>, line: &'static str) -> Option<String> {
    if said.contains(&line) {
        return None;
    }
    said.push(line);
    Some(line.to_owned())
}

fn line(done: &mut HashMap<String, bool>, disk: &mut Vec<&'static str>, event: &PullEvent) -> Option<String> {
    match event {
        PullEvent::Resolved { digest, layers, total_bytes } => {
            let plural = if *layers == 1 { "" } else { "s" };
            Some(format!("resolved {digest}: {layers} layer{plural}, {}", short_bytes(*total_bytes)))
        }
        PullEvent::Layer { digest, done_bytes, total_bytes, cached } => {
            let ready = *cached || done_bytes >= total_bytes;
            if !ready || done.insert(digest.clone(), true).is_some() {
                return None;
            }
            let how = if *cached { "is here already" } else { "pulled" };
            Some(format!("layer {} {how}, {}", short_digest(digest), short_bytes(*total_bytes)))
        }
        PullEvent::Checking { .. } => first(disk, CHECKING),
        PullEvent::Building { .. } => first(disk, BUILDING),
        PullEvent::Done { image } => {
            Some(format!("ready, root disk of {}", short_bytes(image.root_disk_bytes)))
        }
        PullEvent::Failed { .. } => None,
    }
}

fn short_digest(digest: &str) -> &str {
    let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
    hex.get(..SHORT_DIGEST).unwrap_or(hex)
}

/// Shows the phases of a worker that is waited for.
pub struct WaitProgress {
    phases: Phases,
    spinner: Option<ProgressBar>,
}

impl WaitProgress {
    /// For a stderr of this style.
    pub fn new(style: Style) -> WaitProgress {
        // Redrawn by news only: no ticker, a phase that hangs looks like one.
        let spinner = style.terminal.then(|| {
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(
                ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar()),
            )
        });
        WaitProgress { phases: Phases::default(), spinner }
    }

    /// Shows a change.
    pub fn status(&mut self, printer: &mut Printer, status: &WorkerStatus) {
        let Some(line) = self.phases.line(status, self.spinner.is_some()) else { return };
        match &self.spinner {
            Some(spinner) => spinner.set_message(line),
            None => printer.say(&line),
        }
    }

    /// Prints above the line, which stays the last one.
    pub fn above(&self, print: impl FnOnce()) {
        match &self.spinner {
            Some(spinner) => spinner.suspend(print),
            None => print(),
        }
    }

    /// Takes the line away: the answer comes in its place.
    pub fn finish(self) {
        if let Some(spinner) = self.spinner {
            spinner.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use iii_protocol::api::{PulledImage, ResourceHints};

    use super::super::output::tests::Captured;
    use super::*;

    #[test]
    fn a_pull_without_a_terminal_says_each_thing_once() {
        let (out, err) = (Captured::default(), Captured::default());
        let mut printer = Printer::to(out.clone(), err.clone());
        let mut progress = PullProgress::new(Style::default());
        let layer = |done_bytes, cached| PullEvent::Layer {
            digest: "sha256:0123456789abcdef".to_owned(),
            done_bytes,
            total_bytes: 3 << 20,
            cached,
        };
        let events = [
            PullEvent::Resolved { digest: "sha256:aa".to_owned(), layers: 1, total_bytes: 3 << 20 },
            layer(1 << 20, false),
            layer(3 << 20, false),
            layer(3 << 20, false),
            PullEvent::Checking { done_bytes: 0, total_bytes: 3 << 20 },
            PullEvent::Checking { done_bytes: 3 << 20, total_bytes: 3 << 20 },
            PullEvent::Building { done_bytes: 0, total_bytes: 3 << 20 },
            PullEvent::Building { done_bytes: 3 << 20, total_bytes: 3 << 20 },
            PullEvent::Done {
                image: PulledImage {
                    digest: "sha256:aa".to_owned(),
                    env: vec![],
                    root_disk_bytes: 8 << 20,
                    resources: ResourceHints::default(),
                    warnings: vec![],
                },
            },
        ];
        for event in &events {
            progress.event(&mut printer, event);
        }
        progress.finish();
        insta::assert_snapshot!(err.text(), @r"
        resolved sha256:aa: 1 layer, 3 MiB
        layer 0123456789ab pulled, 3 MiB
        checking the root disk
        building the root disk
        ready, root disk of 8 MiB
        ");
        assert_eq!(out.text(), "");
    }
}
