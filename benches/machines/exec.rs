//! Commands beside the workload: how soon one is done, how many at a time, how fast bytes go.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::bare::Bare;
use crate::bed::Bed;
use crate::crun::Crun;

/// Bytes written or read at a time.
const CHUNK_BYTES: usize = 256 * 1024;
const MEBIBYTE: usize = 1024 * 1024;

/// What runs commands somewhere.
pub(crate) trait Runner {
    /// The command line that runs this there.
    fn exec(&self, argv: &[&str]) -> Command;

    /// Starts the machine, which is stopped; nothing where it need not be.
    fn start(&self) {}

    /// Stops it.
    fn stop(&self) {}

    /// A command that writes so many bytes and reads none. Only runners with the same one may be compared.
    fn source(&self, bytes: usize) -> Vec<String> {
        ["head", "-c", &bytes.to_string(), "/dev/zero"].map(str::to_owned).to_vec()
    }

    /// Likewise one that reads all its input, which is so many bytes.
    fn sink(&self, _bytes: usize) -> Vec<String> {
        ["sh", "-c", "exec cat >/dev/null"].map(str::to_owned).to_vec()
    }

    /// Commands at a time: those that it is known to serve.
    fn at_once(&self) -> usize {
        64
    }

    /// MiB sent each way at a time.
    fn mebibytes(&self) -> usize {
        64
    }
}

/// `iii worker exec`.
pub(crate) struct Iii<'a>(pub(crate) &'a Bed);

impl Runner for Iii<'_> {
    fn exec(&self, argv: &[&str]) -> Command {
        let mut command = self.0.command(&["worker", "exec", "bench", "--"]);
        command.args(argv);
        command
    }

    fn start(&self) {
        self.0.ok(&["worker", "start", "bench"]);
    }

    fn stop(&self) {
        self.0.ok(&["worker", "stop", "bench"]);
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

/// Commands in a row, before it is another runner's turn.
const ROUNDS_IN_A_ROW: usize = 40;
/// Turns of each runner.
const TURNS: usize = 5;
/// Copies each way beside a plain one; the median counts.
const COPIES: usize = 9;

/// Times of commands that do nothing, each from its start to its exit code.
pub(crate) struct Latency {
    times: Vec<Duration>,
}

impl Latency {
    pub(crate) fn median(&self) -> Duration {
        self.times[self.times.len() / 2]
    }

    /// A line of the table.
    pub(crate) fn row(&self, what: &str) -> String {
        let (count, p50, p99) = (self.times.len(), self.median(), self.times[self.times.len() * 99 / 100]);
        format!("{what:<32} p50 {} ms, p99 {} ms of {count}\n", p50.as_millis(), p99.as_millis())
    }
}

/// Of each runner. They take turns, for how fast the host is changes within minutes, and each is alone at its turn.
pub(crate) fn latencies<const N: usize>(runners: [&dyn Runner; N]) -> [Latency; N] {
    let mut times = [const { Vec::new() }; N];
    for _ in 0..TURNS {
        for (runner, times) in runners.iter().zip(&mut times) {
            runner.start();
            for _ in 0..ROUNDS_IN_A_ROW {
                let began = Instant::now();
                assert!(nothing(*runner).status().expect("it runs").success());
                times.push(began.elapsed());
            }
            runner.stop();
        }
    }
    times.map(|mut times| {
        times.sort();
        Latency { times }
    })
}

fn nothing(runner: &dyn Runner) -> Command {
    let mut command = runner.exec(&["/bin/true"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    command
}

/// How long many at once take, and how fast bytes go, as lines of the table. The machine is stopped before and afterwards.
pub(crate) fn bulk(runner: &dyn Runner, what: &str) -> String {
    let count = runner.at_once();
    runner.start();
    let began = Instant::now();
    let children: Vec<_> = (0..count).map(|_| nothing(runner).spawn().expect("it runs")).collect();
    for mut child in children {
        assert!(child.wait().expect("it ends").success());
    }
    let took = began.elapsed().as_secs_f64();
    let copied = copy(runner);
    runner.stop();
    format!("{what:<32} {count} at once {took:.2} s\n{}", copied.row(what))
}

/// MiB/s, out of the guest and into it.
pub(crate) struct Throughput {
    pub(crate) out: f64,
    pub(crate) into: f64,
}

impl Throughput {
    /// Of the medians of each way.
    fn median(all: &[Throughput]) -> Throughput {
        let of = |way: fn(&Throughput) -> f64| {
            let mut rates: Vec<f64> = all.iter().map(way).collect();
            rates.sort_by(f64::total_cmp);
            rates[rates.len() / 2]
        };
        Throughput { out: of(|it| it.out), into: of(|it| it.into) }
    }

    /// A line of the table.
    pub(crate) fn row(&self, what: &str) -> String {
        format!("{what:<32} out {:.0} MiB/s, in {:.0} MiB/s\n", self.out, self.into)
    }
}

/// Commands of the bed's worker beside a connection with nothing in between.
pub(crate) struct Beside {
    pub(crate) ours: Throughput,
    pub(crate) plain: Throughput,
    /// Ours by the plain one's.
    pub(crate) ratio: Throughput,
}

/// Two machines that take turns copy by copy, for how fast the host is changes within seconds. The worker is stopped before
/// and afterwards.
pub(crate) fn beside_plain(bed: &Bed) -> Beside {
    let runner = Iii(bed);
    let mut machine = Bare::boot_beside(bed);
    let bytes = runner.mebibytes() * MEBIBYTE;
    let mut connection = machine.connection_of(&["/bin/flood", "serve", &bytes.to_string()]);
    runner.start();
    let (mut ours, mut plain, mut ratio) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..COPIES {
        let (out, plain_out) = (copy_out(&runner), plain_out(&mut connection, bytes));
        let (into, plain_into) = (copy_in(&runner), plain_in(&mut connection, bytes));
        ours.push(Throughput { out, into });
        plain.push(Throughput { out: plain_out, into: plain_into });
        ratio.push(Throughput { out: out / plain_out, into: into / plain_into });
    }
    runner.stop();
    Beside {
        ours: Throughput::median(&ours),
        plain: Throughput::median(&plain),
        ratio: Throughput::median(&ratio),
    }
}

/// Both ways, each with its session.
fn copy(runner: &dyn Runner) -> Throughput {
    Throughput { out: copy_out(runner), into: copy_in(runner) }
}

fn copy_out(runner: &dyn Runner) -> f64 {
    let bytes = runner.mebibytes() * MEBIBYTE;
    let began = Instant::now();
    let mut command = of(runner, runner.source(bytes));
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("it runs");
    assert_eq!(drain(&mut child.stdout.take().expect("piped"), bytes), bytes);
    assert!(child.wait().expect("it ends").success());
    rate(bytes, began)
}

fn copy_in(runner: &dyn Runner) -> f64 {
    let bytes = runner.mebibytes() * MEBIBYTE;
    let began = Instant::now();
    let mut command = of(runner, runner.sink(bytes));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it runs");
    let mut stdin = child.stdin.take().expect("piped");
    fill(&mut stdin, bytes);
    drop(stdin);
    assert!(child.wait().expect("it ends").success());
    rate(bytes, began)
}

fn of(runner: &dyn Runner, argv: Vec<String>) -> Command {
    runner.exec(&argv.iter().map(String::as_str).collect::<Vec<_>>())
}

fn plain_out(connection: &mut UnixStream, bytes: usize) -> f64 {
    let began = Instant::now();
    connection.write_all(b"s").expect("the guest's program is there");
    assert_eq!(drain(connection, bytes), bytes);
    rate(bytes, began)
}

fn plain_in(connection: &mut UnixStream, bytes: usize) -> f64 {
    let began = Instant::now();
    connection.write_all(b"t").expect("the guest's program is there");
    fill(connection, bytes);
    // It answers with one byte when it has them all.
    connection.read_exact(&mut [0]).expect("the guest's answer");
    rate(bytes, began)
}

/// MiB/s since then.
fn rate(bytes: usize, began: Instant) -> f64 {
    bytes as f64 / MEBIBYTE as f64 / began.elapsed().as_secs_f64()
}

/// Reads all that comes up to so many bytes. How many came.
fn drain(from: &mut impl Read, bytes: usize) -> usize {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut total = 0;
    while total < bytes {
        match from.read(&mut chunk).expect("readable") {
            0 => break,
            count => total += count,
        }
    }
    total
}

fn fill(to: &mut impl Write, bytes: usize) {
    let chunk = vec![0; CHUNK_BYTES];
    for _ in 0..bytes / CHUNK_BYTES {
        to.write_all(&chunk).expect("writable");
    }
}
