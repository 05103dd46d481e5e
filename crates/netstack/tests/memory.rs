//! What connections cost that do nothing. A process of its own, so that nothing else is measured.

#[path = "stack/guest.rs"]
#[expect(dead_code, reason = "made for the other tests")]
mod guest;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use iii_protocol::network::Egress;
use smoltcp::socket::tcp::State;

use guest::{by_gateway, loopback, start};

const CONNECTIONS: usize = 1000;
/// What one may cost, the guest's and the server's end in this process included.
const BYTES_PER_CONNECTION: usize = 40 << 10;

fn resident_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn an_idle_connection_takes_little_memory_and_no_work() {
    let listener = TcpListener::bind(loopback()).unwrap();
    let address = by_gateway(listener.local_addr().unwrap());
    let (mut guest, handle) = start(Egress::All);
    guest.open(address);
    let mut accepted = vec![listener.accept().unwrap()];
    let before = resident_bytes();
    for _ in 0..CONNECTIONS / 100 {
        let batch: Vec<_> = (0..100).map(|_| guest.connect(address, 64)).collect();
        guest.until("connections", |guest| {
            batch.iter().all(|one| guest.state(*one) == State::Established).then_some(())
        });
        accepted.extend((0..100).map(|_| listener.accept().unwrap()));
        for one in batch {
            guest.send(one, b"a few bytes");
        }
    }
    assert_eq!(handle.counters().tcp_open.get(), CONNECTIONS as u64 + 1);
    let each = (resident_bytes() - before) / CONNECTIONS;
    println!("{each} bytes per connection");
    assert!(each < BYTES_PER_CONNECTION, "{each} bytes");

    // And no work: once its last timers are over, the stack's thread sleeps.
    let (mut last, mut since) = (switches(), Instant::now());
    guest.until("silence", |_| {
        let now = switches();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        (since.elapsed() > Duration::from_millis(1500)).then_some(())
    });
}

/// How often the stack's thread went to sleep.
fn switches() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let of_stack =
        |path: &std::path::PathBuf| std::fs::read_to_string(path.join("comm")).unwrap().trim() == "netstack";
    let status = std::fs::read_to_string(tasks.into_iter().find(of_stack).unwrap().join("status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
