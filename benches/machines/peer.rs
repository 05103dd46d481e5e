//! The peer `msb` with the same kind of workload in the same host.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::bed::Bed;
use crate::exec::Runner;
use crate::median;

/// The image in the archive that the peer loads.
const IMAGE: &str = "ticker";

/// A machine of the peer's, stopped between two measurements.
pub(crate) struct Peer {
    msb: PathBuf,
    home: PathBuf,
}

impl Peer {
    pub(crate) fn make(bed: &Bed) -> Result<Peer, String> {
        let variable = |name| std::env::var_os(name).map(PathBuf::from).ok_or(format!("{name} is not set"));
        let peer = Peer { msb: variable("III_BENCH_MSB")?, home: bed.home() };
        let archive = variable("III_BENCH_ARCHIVE")?;
        peer.run(&["load", "-i", archive.to_str().expect("UTF-8 paths")])?;
        // Which starts it.
        peer.run(&["create", "--name", "bench", "--memory", "512M", "--cpus", "1", IMAGE])?;
        peer.run(&["stop", "bench"])?;
        Ok(peer)
    }

    /// The median of so many stops.
    pub(crate) fn stops(&self, rounds: usize) -> Duration {
        let mut times = Vec::new();
        for _ in 0..rounds {
            Runner::start(self);
            let began = Instant::now();
            Runner::stop(self);
            times.push(began.elapsed());
        }
        median(times)
    }

    fn run(&self, args: &[&str]) -> Result<(), String> {
        let output = self.command().args(args).stdin(Stdio::null()).output().map_err(|e| e.to_string())?;
        if output.status.success() {
            return Ok(());
        }
        let (said, out) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
        Err(format!("msb {args:?}: {said}{out}"))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.msb);
        command.env("HOME", &self.home).env("MSB_HOME", Path::new(&self.home).join("msb"));
        command
    }
}

impl Runner for Peer {
    fn exec(&self, argv: &[&str]) -> Command {
        let mut command = self.command();
        command.args(["exec", "bench", "--"]).args(argv);
        command
    }

    fn start(&self) {
        self.run(&["start", "bench"]).expect("msb starts its machine");
    }

    fn stop(&self) {
        self.run(&["stop", "bench"]).expect("msb stops its machine");
    }

    // It is not known to serve many at a time.
    fn at_once(&self) -> usize {
        8
    }

    fn mebibytes(&self) -> usize {
        16
    }
}
