//! A worker's network beside passt's, behind the same libkrun and guest kernel, in one run: `make bench`.
//!
//! The server is in the network namespace of `scripts/lib/test-world`, so that everything leaves the host by a device.
//! Only ratios within a run mean something.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use iii_protocol::api::Phase;
use iii_protocol::guest::{GuestAddress, GuestNetwork};
use iii_protocol::network::{GATEWAY_IPV4, GATEWAY_MAC, GUEST_IPV4, GUEST_MAC, IPV4_PREFIX, MTU};
use serde_json::json;

#[path = "machines/bare.rs"]
#[allow(dead_code, reason = "another bench measures its boot")]
mod bare;
#[path = "../tests/scenarios/bed.rs"]
#[allow(dead_code, unreachable_pub, reason = "the tests share it, and use more of it")]
mod bed;
#[path = "machines/host.rs"]
mod host;
#[path = "../tests/support/mod.rs"]
#[allow(unused_imports, unreachable_pub, reason = "the tests share it, and use more of it")]
mod support;
#[path = "../tests/kvm/network/world.rs"]
#[allow(dead_code, reason = "the tests share it, and use more of it")]
mod world;

use bare::Bare;
use bed::{Bed, shell_layer};
use host::{MEMORY_MIB, TIER, binary, environment};
use support::registry::{Packing, Tree, image, layer};

/// Machines of each kind, in turn.
const ROUNDS: usize = 3;
/// Sent each way.
const MEBIBYTES: &str = "64";
/// Bytes that the server moves at a time.
const CHUNK_BYTES: usize = 256 * 1024;
/// The host's device behind which the server is; passt has to be told, as no default route leads there.
const DEVICE: &str = "iii-lan";

fn main() {
    let bed = Bed::new();
    let program = fs::read(environment("III_BENCH_WIRE")).expect("the guest's program");
    let tools = layer(&Tree::new().dir("bin").program("bin/wire", &program).finish(), Packing::Plain);
    let config = json!({ "Entrypoint": ["/bin/sh", "-c", "exec sleep 2147483647"] });
    let reference = bed.push("bench", &image(&[shell_layer(), tools], config));
    let resources = format!("resources: {{ memory: {MEMORY_MIB}, cpus: 1, disk: 4GiB }}");
    bed.configure(&[bed.entry("bench", &reference, &[&resources])]);
    let daemon = bed.daemon();
    let server = serve(world::listen(world::public(10), 80));

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        bed.ok(&["worker", "start", "bench"]);
        bed.wait_phase("bench", Phase::Running);
        let (address, port) = (server.ip().to_string(), server.port().to_string());
        let wire = ["worker", "exec", "bench", "/bin/wire", &address, &port, MEBIBYTES];
        ours.push(numbers(&bed.ok(&wire)));
        bed.ok(&["worker", "stop", "bench"]);
        theirs.push(numbers(&behind_passt(&bed, server)));
    }
    let rows = [
        ("connect_us", "connection, p50", "µs", Aim::AtMost(1.2)),
        ("round_trip_us", "round trip, p50", "µs", Aim::AtMost(1.3)),
        ("out", "throughput out", "MiB/s", Aim::AtLeast(0.7)),
        ("into", "throughput in", "MiB/s", Aim::AtLeast(0.7)),
    ];
    for (name, what, unit, aim) in rows {
        let (mine, peers) = (median(&ours, name), median(&theirs, name));
        let ratio = mine / peers;
        let (sign, bound, met) = match aim {
            Aim::AtMost(bound) => ("<=", bound, ratio <= bound),
            Aim::AtLeast(bound) => (">=", bound, ratio >= bound),
        };
        let value = format!("{mine:.0} {unit}, passt {peers:.0} = {ratio:.2} x");
        println!("{what:<20} {value:<44} aim {sign} {bound} x: {}", if met { "met" } else { "MISSED" });
    }
    daemon.stop();
}

/// A bound on the ratio to the peer.
enum Aim {
    AtMost(f64),
    AtLeast(f64),
}

/// What the guest's program printed.
fn numbers(said: &str) -> BTreeMap<String, f64> {
    let line = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    let numbers: BTreeMap<_, _> = said.lines().filter_map(line).collect();
    assert_eq!(numbers.len(), 4, "{said:?}");
    numbers
}

fn median(rounds: &[BTreeMap<String, f64>], name: &str) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(|round| round[name]).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The same program in a machine whose network is passt's. The bed's worker must be stopped.
fn behind_passt(bed: &Bed, server: SocketAddr) -> String {
    let (theirs, guests_end) = UnixStream::pair().expect("a pair of sockets");
    let _passt = Passt::start(theirs);
    let network = GuestNetwork {
        mac: GUEST_MAC,
        mtu: MTU,
        addresses: vec![GuestAddress {
            address: GUEST_IPV4.into(),
            prefix: IPV4_PREFIX,
            gateway: GATEWAY_IPV4.into(),
        }],
        dns: Vec::new(),
        hosts: Vec::new(),
    };
    let mut machine = Bare::boot(bed, Some((guests_end, network)));
    let (address, port) = (server.ip().to_string(), server.port().to_string());
    let mut said = String::new();
    let mut numbers = machine.connection_of(&["/bin/wire", &address, &port, MEBIBYTES, "host"]);
    numbers.read_to_string(&mut said).expect("the guest's numbers");
    said
}

/// passt on one end of a stream; killed when dropped.
struct Passt(Child);

impl Passt {
    fn start(link: UnixStream) -> Passt {
        let words = format!(
            "--foreground --quiet --fd 0 --ipv4-only --interface {DEVICE} --mtu {MTU} --address {GUEST_IPV4} \
             --netmask {IPV4_PREFIX} --gateway {GATEWAY_IPV4} --no-dhcp --mac-addr"
        );
        let mac = GATEWAY_MAC.map(|byte| format!("{byte:02x}")).join(":");
        let child = Command::new("passt")
            .args(words.split_whitespace())
            .arg(mac)
            .stdin(OwnedFd::from(link))
            .stdout(Stdio::null())
            .spawn()
            .expect("passt is installed by scripts/setup --bench");
        Passt(child)
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        self.0.kill().expect("passt can be killed");
        self.0.wait().expect("passt ends");
    }
}

/// Serves what `network/wire.c` asks for, each connection in a thread.
fn serve(listener: TcpListener) -> SocketAddr {
    let address = listener.local_addr().expect("a bound socket");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that leaves in the middle is the guest's business.
            std::thread::spawn(move || answer(stream));
        }
    });
    address
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut kind, mut count, mut chunk) = ([0], [0; 8], vec![0; CHUNK_BYTES]);
    stream.read_exact(&mut kind)?;
    if kind == *b"e" {
        let mut byte = [0];
        loop {
            stream.read_exact(&mut byte)?;
            stream.write_all(&byte)?;
        }
    }
    stream.read_exact(&mut count)?;
    let mut left = u64::from_be_bytes(count);
    while left > 0 {
        let most = usize::try_from(left).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES));
        left -= match kind[0] {
            b't' => match stream.read(&mut chunk[..most])? {
                0 => return Ok(()),
                count => count as u64,
            },
            _ => stream.write(&chunk[..most])? as u64,
        };
    }
    if kind == *b"t" {
        stream.write_all(&[1])?;
    }
    Ok(())
}
