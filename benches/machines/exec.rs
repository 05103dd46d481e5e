//! Commands beside the workload: how soon one is done, how many at a time, how fast bytes go.

use std::ffi::OsString;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::bare::Bare;
use crate::bed::Bed;
use crate::crun::Crun;

/// Bytes written or read at a time.
const CHUNK_BYTES: usize = 256 * 1024;
const MEBIBYTE: usize = 1024 * 1024;
/// Moved by the plain copy between the two ends.
const PLAIN_MEBIBYTES: usize = 128;

/// What runs commands somewhere.
pub(crate) trait Runner {
    /// The command line that runs this there.
    fn exec(&self, argv: &[&str]) -> Command;

    /// A command that writes so many bytes and reads none. Only runners with the same one may be compared.
    fn source(&self, bytes: usize) -> Vec<String> {
        ["head", "-c", &bytes.to_string(), "/dev/zero"].map(str::to_owned).to_vec()
    }

    /// Likewise one that reads all its input, which is so many bytes.
    fn sink(&self, _bytes: usize) -> Vec<String> {
        ["sh", "-c", "exec cat >/dev/null"].map(str::to_owned).to_vec()
    }

    /// How much is measured.
    fn scale(&self) -> Scale {
        Scale { rounds: 200, at_once: 64, mebibytes: 128 }
    }
}

/// How much is measured.
pub(crate) struct Scale {
    /// Commands, one after the other.
    pub(crate) rounds: usize,
    /// Commands at a time.
    pub(crate) at_once: usize,
    /// Sent each way.
    pub(crate) mebibytes: usize,
}

/// `iii worker exec`.
pub(crate) struct Iii<'a>(pub(crate) &'a Bed);

impl Runner for Iii<'_> {
    fn exec(&self, argv: &[&str]) -> Command {
        let mut command = self.0.command(&["worker", "exec", "bench", "--"]);
        command.args(argv);
        command
    }

    // The program of the plain copy, so that the two differ in nothing but the way of the bytes: busybox's `head -c`
    // takes each by itself, and alone in the guest is slower than half a plain copy.
    fn source(&self, bytes: usize) -> Vec<String> {
        ["/bin/flood", "write", &bytes.to_string()].map(str::to_owned).to_vec()
    }

    fn sink(&self, bytes: usize) -> Vec<String> {
        ["/bin/flood", "read", &bytes.to_string()].map(str::to_owned).to_vec()
    }
}

/// `crun exec`, on this host's own kernel.
pub(crate) struct Container(pub(crate) Crun);

impl Runner for Container {
    fn exec(&self, argv: &[&str]) -> Command {
        self.0.exec(&[], &argv.iter().map(OsString::from).collect::<Vec<_>>())
    }
}

/// What was measured.
pub(crate) struct Measured {
    /// Of one command that does nothing, from its start to its exit code.
    pub(crate) median: Duration,
    slowest_in_hundred: Duration,
    at_once: usize,
    all_at_once: Duration,
    /// MiB/s from the command to its caller, session included.
    pub(crate) out: f64,
    /// MiB/s from the caller to the command, session included.
    pub(crate) into: f64,
}

impl Measured {
    /// A line of the table.
    pub(crate) fn row(&self, what: &str) -> String {
        let (p50, p99) = (self.median.as_millis(), self.slowest_in_hundred.as_millis());
        let at_once = format!("{} at once {:.2} s", self.at_once, self.all_at_once.as_secs_f64());
        let (out, into) = (self.out, self.into);
        format!("{what:<32} p50 {p50} ms, p99 {p99} ms, {at_once}, out {out:.0} MiB/s, in {into:.0} MiB/s\n")
    }
}

/// Measures one after the other.
pub(crate) fn measure(runner: &impl Runner) -> Measured {
    let Scale { rounds, at_once, mebibytes } = runner.scale();
    let nothing = || {
        let mut command = runner.exec(&["/bin/true"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        command
    };
    let mut times: Vec<Duration> = (0..rounds)
        .map(|_| {
            let began = Instant::now();
            assert!(nothing().status().expect("it runs").success());
            began.elapsed()
        })
        .collect();
    times.sort();

    let began = Instant::now();
    let children: Vec<_> = (0..at_once).map(|_| nothing().spawn().expect("it runs")).collect();
    for mut child in children {
        assert!(child.wait().expect("it ends").success());
    }
    let all_at_once = began.elapsed();

    let of = |argv: Vec<String>| runner.exec(&argv.iter().map(String::as_str).collect::<Vec<_>>());
    let bytes = mebibytes * MEBIBYTE;
    let began = Instant::now();
    let mut command = of(runner.source(bytes));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("it runs");
    assert_eq!(drain(&mut child.stdout.take().expect("piped")), bytes);
    assert!(child.wait().expect("it ends").success());
    let out = rate(mebibytes, began);

    let began = Instant::now();
    let mut command = of(runner.sink(bytes));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it runs");
    let mut stdin = child.stdin.take().expect("piped");
    fill(&mut stdin, bytes);
    drop(stdin);
    assert!(child.wait().expect("it ends").success());
    let into = rate(mebibytes, began);

    let (median, slowest_in_hundred) = (times[rounds / 2], times[rounds * 99 / 100]);
    Measured { median, slowest_in_hundred, at_once, all_at_once, out, into }
}

/// MiB/s between a program in the guest and one here, over a vsock connection with nothing in between.
pub(crate) struct Plain {
    pub(crate) out: f64,
    pub(crate) into: f64,
}

pub(crate) fn plain_vsock(bed: &Bed) -> Plain {
    let bytes = PLAIN_MEBIBYTES * MEBIBYTE;
    let mut machine = Bare::boot(bed, None);
    let mut connection = machine.connection_of(&["/bin/flood", "send", &bytes.to_string()]);
    let began = Instant::now();
    assert_eq!(drain(&mut connection), bytes);
    let out = rate(PLAIN_MEBIBYTES, began);
    drop(machine);

    let mut machine = Bare::boot(bed, None);
    let mut connection = machine.connection_of(&["/bin/flood", "take", &bytes.to_string()]);
    let began = Instant::now();
    fill(&mut connection, bytes);
    // It answers with one byte when it has them all.
    connection.read_exact(&mut [0]).expect("the guest's answer");
    Plain { out, into: rate(PLAIN_MEBIBYTES, began) }
}

fn rate(mebibytes: usize, began: Instant) -> f64 {
    mebibytes as f64 / began.elapsed().as_secs_f64()
}

fn drain(from: &mut impl Read) -> usize {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut total = 0;
    loop {
        match from.read(&mut chunk).expect("readable") {
            0 => return total,
            count => total += count,
        }
    }
}

fn fill(to: &mut impl std::io::Write, bytes: usize) {
    let chunk = vec![0; CHUNK_BYTES];
    for _ in 0..bytes / CHUNK_BYTES {
        to.write_all(&chunk).expect("writable");
    }
}
