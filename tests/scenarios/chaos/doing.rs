//! What is disturbed.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use iii_protocol::api::{Phase, WorkerStatus};
use serde_json::json;

use super::super::bed::{Bed, shell_layer};
use super::super::lifecycle::SERVE;
use crate::support::registry::{Gate, Packing, TestLayer, Tree, image, layer, noise};

/// Bytes of each image that no other one has, so that every pull takes them from the registry.
pub(super) const PULLED_BYTES: usize = 1 << 20;
/// A panic's exit code: no command may end so, whatever dies around it.
const PANICKED: i32 = 101;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Doing {
    Start,
    Stop,
    Restart,
    Reload,
    Pull,
}

impl Doing {
    pub(super) const ALL: [Doing; 5] =
        [Doing::Start, Doing::Stop, Doing::Restart, Doing::Reload, Doing::Pull];
}

/// The worker `web` and what becomes of it.
pub(super) struct Stage {
    reference: String,
    round: u64,
    /// How the last pull was asked for.
    add: Vec<String>,
}

/// Something that was begun.
pub(super) struct Operation {
    /// `None` for an edit: nobody waits for that.
    command: Option<Child>,
    gate: Option<Gate>,
    generation_before: u64,
    begun: Instant,
}

impl Stage {
    pub(super) fn new(bed: &Bed) -> Stage {
        let reference = bed.script_image("web", SERVE);
        let stage = Stage { reference, round: 0, add: Vec::new() };
        stage.edit(bed);
        stage
    }

    fn edit(&self, bed: &Bed) {
        let more =
            ["restart: { delay: 10ms, max_delay: 100ms }", &format!("config: {{ ROUND: '{}' }}", self.round)];
        bed.configure(&[bed.entry("web", &self.reference, &more)]);
    }

    /// Begins it. A pull stands still after `gate` bytes of its layer until [`Operation::open`].
    pub(super) fn begin(
        &mut self,
        bed: &Bed,
        doing: Doing,
        before: &WorkerStatus,
        gate: Option<usize>,
    ) -> Operation {
        self.round += 1;
        let begun = Instant::now();
        let mut opened = None;
        let words: Vec<&str> = match doing {
            Doing::Start => vec!["worker", "start", "web"],
            Doing::Stop => vec!["worker", "stop", "web"],
            Doing::Restart => vec!["worker", "restart", "web"],
            Doing::Reload => {
                self.edit(bed);
                Vec::new()
            }
            Doing::Pull => {
                opened = self.push(bed, gate);
                self.add_again()
            }
        };
        let quiet = |words: &[&str]| bed.command(words).stderr(Stdio::null()).spawn().unwrap();
        let command = (!words.is_empty()).then(|| quiet(&words));
        let operation = Operation { command, gate: opened, generation_before: before.generation, begun };
        if let Some(bytes) = gate {
            let (digest, patience) = (self.fresh().digest(), bed.patience());
            while bed.registry.bytes_served(&digest) < bytes as u64
                || bed.registry.offsets(&digest).is_empty()
            {
                assert!(begun.elapsed() < patience, "the layer is never asked for");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        operation
    }

    /// Bytes of this round alone.
    fn fresh(&self) -> TestLayer {
        layer(&Tree::new().file("fresh", &noise(PULLED_BYTES, self.round)).finish(), Packing::Plain)
    }

    /// An image whose second layer was never pulled.
    fn push(&mut self, bed: &Bed, gate: Option<usize>) -> Option<Gate> {
        let fresh = self.fresh();
        let gate = gate.map(|bytes| bed.registry.gate_after(&fresh.digest(), bytes));
        let config = json!({ "Entrypoint": ["/bin/sh", "-c", SERVE] });
        let reference = bed.push(&format!("fresh{}", self.round), &image(&[shell_layer(), fresh], config));
        self.add = ["worker", "add", &reference, "--name", "web", "--force"].map(str::to_owned).into();
        gate
    }

    /// The last pull once more.
    pub(super) fn add_again(&self) -> Vec<&str> {
        self.add.iter().map(String::as_str).collect()
    }
}

impl Operation {
    /// Lets a pull go on.
    pub(super) fn open(&mut self) {
        if let Some(gate) = self.gate.take() {
            gate.open();
        }
    }

    pub(super) fn is_under_way(&mut self, bed: &Bed) -> bool {
        match &mut self.command {
            Some(command) => command.try_wait().unwrap().is_none(),
            None => !bed.status("web").is_some_and(|status| {
                status.phase == Phase::Running && status.generation > self.generation_before
            }),
        }
    }

    /// Waits for its end; how long it took.
    pub(super) fn run_to_its_end(&mut self, bed: &Bed) -> Duration {
        bed.until("the end of an operation", || !self.is_under_way(bed));
        self.begun.elapsed()
    }

    /// The exit code of its command, which may well have failed, but not in a way of its own.
    pub(super) fn end(self) -> Option<i32> {
        let status = self.command?.wait_with_output().unwrap().status;
        assert!(status.code().is_some_and(|code| code != PANICKED), "a command ended with {status}");
        status.code()
    }
}
