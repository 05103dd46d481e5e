//! Machines against their floor and a peer, all in one run on one host: `make bench` prints the table.
//!
//! Only ratios within a run mean something: the host may be emulated, and machines differ.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use iii_protocol::api::Phase;

#[path = "machines/bare.rs"]
mod bare;
#[path = "../tests/scenarios/bed.rs"]
#[allow(dead_code, unreachable_pub, reason = "the tests share it, and use more of it")]
mod bed;
#[path = "../tests/compare/crun.rs"]
mod crun;
#[path = "machines/exec.rs"]
mod exec;
#[path = "machines/host.rs"]
mod host;
#[path = "machines/peer.rs"]
mod peer;
#[path = "machines/project.rs"]
mod project;
#[path = "../tests/support/mod.rs"]
#[allow(unused_imports, unreachable_pub, reason = "the tests share it, and use more of it")]
mod support;

use bare::Bare;
use bed::{Bed, shell_layer};
use host::{MEMORY_MIB, TIER, binary, environment};
use peer::Peer;
use serde_json::json;
use support::registry::{Packing, Tree, image, layer};

/// Repetitions of each timed step.
const ROUNDS: usize = 5;
/// How long an idle daemon is watched.
const IDLE: Duration = Duration::from_secs(20);

fn main() {
    let bed = Bed::new();
    // Its shell would tell of the ended sleep.
    let script = "exec 2>/dev/null; trap 'exit 0' TERM; echo ready; while :; do sleep 1000 & wait $!; done";
    let flood = fs::read(environment("III_BENCH_FLOOD")).expect("the program that moves bytes");
    let tools = layer(&Tree::new().dir("bin").program("bin/flood", &flood).finish(), Packing::Plain);
    let config = json!({ "Entrypoint": ["/bin/sh", "-c", script] });
    let reference = bed.push("bench", &image(&[shell_layer(), tools], config));
    let resources = format!("resources: {{ memory: {MEMORY_MIB}, cpus: 1, disk: 4GiB }}");
    let entries = [bed.entry("bench", &reference, &[&resources])];
    bed.configure(&entries);
    let daemon = bed.daemon();
    bed.wait_phase("bench", Phase::Running);
    bed.wait_log("bench", "ready");

    let mut rows = Vec::new();
    let shim = bed.status("bench").and_then(|status| status.shim_pid).expect("a running machine has a shim");
    let (wakes, cpu) = idle(daemon.pid(), IDLE);
    rows.push(row(
        "daemon, resident",
        mib(rss_kib(daemon.pid())),
        "15 MiB",
        rss_kib(daemon.pid()) <= 15 * 1024,
    ));
    rows.push(row("daemon, idle wakes", format!("{wakes:.2} /s"), "1 /s", wakes < 1.0));
    rows.push(row("daemon, idle CPU", format!("{:.3} %", cpu * 100.0), "", true));
    rows.push(row("shim, resident", mib(rss_kib(shim)), "6 MiB", rss_kib(shim) <= 6 * 1024));
    let (shim_wakes, _) = idle(shim, IDLE);
    rows.push(row("shim, idle wakes", format!("{shim_wakes:.2} /s"), "", true));

    let mut stops = Vec::new();
    let mut starts = Vec::new();
    let mut floors = Vec::new();
    // In turn, and each boot right after the stop of a worker that has run: a boot that finds the memory of one that
    // was killed half way costs the emulated host a fifth less, for the same number of exits.
    for _ in 0..ROUNDS {
        stops.push(stop(&bed));
        floors.push(Bare::boot(&bed, None).hello_after);
        bed.ok(&["worker", "start", "bench"]);
        stops.push(stop(&bed));
        starts.push(cold_start(&bed, "bench"));
    }
    let (start, stop, floor) = (median(starts), median(stops), median(floors));
    rows.push(row("floor: bare libkrun to hello", seconds(floor), "", true));
    let ratio = start.as_secs_f64() / floor.as_secs_f64();
    rows.push(row(
        "cold start to first log line",
        format!("{} = {ratio:.2} x floor", seconds(start)),
        "1.3 x",
        ratio <= 1.3,
    ));
    let ours = exec::Iii(&bed);
    bed.ok(&["worker", "stop", "bench"]);
    match Peer::make(&bed) {
        Ok(peer) => {
            let [mine, its] = exec::latencies([&ours, &peer]);
            rows.push(its.row("peer: msb exec"));
            rows.push(mine.row("exec"));
            let ratio = mine.median().as_secs_f64() / its.median().as_secs_f64();
            rows.push(row("exec, p50", format!("{ratio:.2} x peer"), "0.2 x", ratio <= 0.2));
            rows.push(exec::bulk(&peer, "peer: msb exec"));
            let peers = peer.stops(ROUNDS);
            let ratio = stop.as_secs_f64() / peers.as_secs_f64();
            rows.push(row("peer: msb stop", seconds(peers), "", true));
            rows.push(row("stop", format!("{} = {ratio:.2} x peer", seconds(stop)), "0.5 x", ratio <= 0.5));
        }
        Err(why) => rows.push(row("stop", format!("{} (no peer: {why})", seconds(stop)), "", true)),
    }
    let container = exec::Container(crun::Crun::start());
    let [mine, its] = exec::latencies([&ours, &container]);
    rows.push(its.row("crun exec, no machine"));
    rows.push(mine.row("exec beside it"));
    rows.push(exec::bulk(&container, "crun exec, no machine"));
    rows.push(exec::bulk(&ours, "exec"));
    let beside = exec::beside_plain(&bed);
    rows.push(beside.plain.row("plain vsock"));
    rows.push(beside.ours.row("exec"));
    rows.push(row(
        "exec throughput",
        format!("out {:.2}, in {:.2} x plain", beside.ratio.out, beside.ratio.into),
        ">= 0.5 x",
        beside.ratio.out.min(beside.ratio.into) >= 0.5,
    ));
    rows.extend(project::rows(&bed, &entries, &reference, script, start));
    print!("{}", rows.concat());
    daemon.stop();
}

fn stop(bed: &Bed) -> Duration {
    let began = Instant::now();
    bed.ok(&["worker", "stop", "bench"]);
    began.elapsed()
}

fn row(what: &str, value: String, aim: &str, met: bool) -> String {
    let verdict = if aim.is_empty() {
        String::new()
    } else {
        let bound = if aim.starts_with('>') { "" } else { "<= " };
        format!("aim {bound}{aim}: {}", if met { "met" } else { "MISSED" })
    };
    format!("{what:<32} {value:<32} {verdict}\n")
}

fn seconds(duration: Duration) -> String {
    format!("{:.3} s", duration.as_secs_f64())
}

fn mib(kib: u64) -> String {
    format!("{:.1} MiB", kib as f64 / 1024.0)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// One who follows a worker's log, from the last line there is.
struct Follower {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Follower {
    fn start(bed: &Bed, worker: &str) -> Follower {
        let mut command = bed.command(&["worker", "logs", worker, "-f", "-n", "1"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut child = child.expect("the CLI runs");
        let lines = BufReader::new(child.stdout.take().expect("piped"));
        let mut follower = Follower { child, lines };
        // That of the run before: from here on it only waits.
        follower.line();
        follower
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("a log line");
        line
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.child.kill().expect("the follower can be killed");
        self.child.wait().expect("the follower ends");
    }
}

/// From the start command's own start to the first log line in a follower's hands.
fn cold_start(bed: &Bed, worker: &str) -> Duration {
    let mut follower = Follower::start(bed, worker);
    let began = Instant::now();
    let mut start = bed.command(&["worker", "start", worker, "--no-wait"]).spawn().expect("the CLI runs");
    let line = follower.line();
    let took = began.elapsed();
    assert_eq!(line, "ready\n");
    start.wait().expect("the start command ends");
    took
}

fn proc_field(pid: u32, field: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    value.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

fn rss_kib(pid: u32) -> u64 {
    proc_field(pid, "VmRSS:")
}

/// Voluntary switches per second and the share of a CPU, over all threads that live through the watch.
fn idle(pid: u32, watch: Duration) -> (f64, f64) {
    let sample = || -> BTreeMap<OsString, (f64, f64)> {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        tasks
            .map(|task| {
                let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
                let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
                let switches = line.and_then(|value| value.trim().parse().ok()).unwrap_or(0.0);
                let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
                let ticks: f64 = fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
                (task.file_name(), (switches, ticks / 100.0))
            })
            .collect()
    };
    let before = sample();
    // Nothing to wait for: the absence of events is what is measured.
    std::thread::sleep(watch);
    let after = sample();
    let (mut switches, mut seconds) = (0.0, 0.0);
    for (task, then) in &before {
        if let Some(now) = after.get(task) {
            switches += now.0 - then.0;
            seconds += now.1 - then.1;
        }
    }
    (switches / watch.as_secs_f64(), seconds / watch.as_secs_f64())
}
