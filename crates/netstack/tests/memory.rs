//! What connections cost that do nothing. A process of its own, so that nothing else is measured.

#[path = "stack/guest.rs"]
#[expect(dead_code, reason = "made for the other tests")]
mod guest;

use std::net::TcpListener;

use iii_protocol::network::Egress;
use smoltcp::socket::tcp::State;

use guest::{by_gateway, loopback, start};

const CONNECTIONS: usize = 1000;
/// What one may cost, the guest's and the server's end in this process included.
const BYTES_PER_CONNECTION: usize = 24 << 10;

fn resident_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn an_idle_connection_takes_little_memory() {
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
}
