//! Connections of the guest.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use iii_netstack::TO_GUEST_BYTES;
use iii_protocol::network::{Egress, GATEWAY_IPV4};
use smoltcp::socket::tcp::State;
use socket2::SockRef;

use crate::guest::{Guest, PATIENCE, by_gateway, eventually, loopback, start, start_with};

/// A server that handles each connection on a thread of its own.
pub(crate) fn serve(handler: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> SocketAddr {
    let listener = TcpListener::bind(loopback()).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, handler) = (stream.unwrap(), handler.clone());
            thread::spawn(move || handler(stream));
        }
    });
    address
}

pub(crate) fn echo() -> SocketAddr {
    serve(|mut stream| {
        let mut buffer = [0; 16384];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..count]).is_err() {
                return;
            }
        }
    })
}

/// The server's end of the one connection that is made.
fn one() -> (SocketAddr, mpsc::Receiver<TcpStream>) {
    let (sender, receiver) = mpsc::channel();
    (serve(move |stream| drop(sender.send(stream))), receiver)
}

fn nobody() -> SocketAddr {
    TcpListener::bind(loopback()).unwrap().local_addr().unwrap()
}

#[test]
fn what_is_sent_comes_back() {
    let (mut guest, handle) = start(Egress::All);
    let connection = guest.open(by_gateway(echo()));
    guest.send(connection, b"hello");
    assert_eq!(guest.receive(connection, 5), b"hello");
    guest.tcp(connection).close();
    assert_eq!(guest.receive_to_end(connection), b"");
    eventually("the connection's end", || handle.counters().tcp_open.get() == 0);
}

#[test]
fn ipv6_works_alike() {
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let (mut guest, _handle) = start(Egress::All);
    let connection = guest.open(by_gateway(listener.local_addr().unwrap()));
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(b"six").unwrap();
    assert_eq!(guest.receive(connection, 3), b"six");
}

#[test]
fn a_refused_port_is_refused() {
    let (mut guest, handle) = start(Egress::All);
    let connection = guest.connect(by_gateway(nobody()), 4096);
    guest.until("a refusal", |guest| (guest.state(connection) == State::Closed).then_some(()));
    assert_eq!(handle.counters().tcp_failed.get(), 1);
}

/// An address that the host's kernel refuses to connect to, without sending anything: a network's broadcast address, or
/// any at all where there is no network.
fn no_way() -> SocketAddr {
    let broadcasts = nix::ifaddrs::getifaddrs().unwrap().filter_map(|interface| {
        let is_up = interface.flags.contains(nix::net::if_::InterfaceFlags::IFF_UP);
        let broadcast = interface.broadcast.as_ref()?.as_sockaddr_in()?.ip();
        (is_up && !broadcast.is_loopback()).then_some(broadcast)
    });
    let fallback = std::net::Ipv4Addr::new(192, 0, 2, 1);
    SocketAddr::new(broadcasts.last().unwrap_or(fallback).into(), 80)
}

#[test]
fn an_unreachable_network_is_unreachable() {
    let (mut guest, _handle) = start(Egress::All);
    let to = no_way();
    guest.connect(to, 4096);
    let (kind, code, about) = guest.icmp_error();
    assert_eq!((kind, code), (3, 0));
    assert_eq!(std::net::IpAddr::from(<[u8; 4]>::try_from(&about[16..20]).unwrap()), to.ip());
}

/// A listener that accepts nothing until asked, with a backlog that is full.
struct Slow {
    listener: TcpListener,
    filler: Vec<TcpStream>,
}

impl Slow {
    fn new() -> Slow {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&loopback().into()).unwrap();
        socket.listen(0).unwrap();
        let listener = TcpListener::from(socket);
        let address = listener.local_addr().unwrap();
        let mut filler = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(100)) {
            filler.push(stream);
        }
        Slow { listener, filler }
    }
}

#[test]
fn the_guest_is_answered_only_after_the_outside_was() {
    let slow = Slow::new();
    let (mut guest, handle) = start(Egress::All);
    let connection = guest.connect(by_gateway(slow.listener.local_addr().unwrap()), 4096);
    let quiet = Instant::now() + Duration::from_millis(200);
    guest.until("nothing", |guest| {
        assert_eq!(guest.state(connection), State::SynSent);
        (Instant::now() > quiet).then_some(())
    });
    assert_eq!(handle.counters().tcp_opened.get(), 0);
    for _ in 0..=slow.filler.len() {
        thread::spawn({
            let listener = slow.listener.try_clone().unwrap();
            move || drop(listener.accept())
        });
    }
    guest.established(connection);
}

#[test]
fn a_dial_that_takes_too_long_ends_in_silence() {
    let slow = Slow::new();
    let mut settings = crate::guest::settings();
    settings.limits.dial = Duration::from_millis(50);
    let (mut guest, handle) = start_with(Egress::All, settings);
    let connection = guest.connect(by_gateway(slow.listener.local_addr().unwrap()), 4096);
    guest.until("the limit", |guest| {
        assert_eq!(guest.state(connection), State::SynSent);
        (handle.counters().tcp_failed.get() > 0).then_some(())
    });
}

#[test]
fn each_side_may_finish_first_and_still_listen() {
    let (mut guest, handle) = start(Egress::All);
    // The guest first.
    let (address, accepted) = one();
    let connection = guest.open(by_gateway(address));
    let mut stream = accepted.recv_timeout(PATIENCE).unwrap();
    guest.send(connection, b"last words");
    guest.tcp(connection).close();
    let reader = thread::spawn(move || {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        thread::sleep(Duration::from_millis(20));
        stream.write_all(b"and an answer").unwrap();
        text
    });
    assert_eq!(guest.receive_to_end(connection), b"and an answer");
    assert_eq!(reader.join().unwrap(), "last words");
    // The host first.
    let (address, accepted) = one();
    let connection = guest.open(by_gateway(address));
    let mut stream = accepted.recv_timeout(PATIENCE).unwrap();
    stream.write_all(b"that is all").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.receive_to_end(connection), b"that is all");
    guest.send(connection, b"I still talk");
    guest.tcp(connection).close();
    let reader = thread::spawn(move || {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    guest.until("the end", |guest| (!guest.tcp(connection).is_active()).then_some(()));
    assert_eq!(reader.join().unwrap(), "I still talk");
    eventually("the connections' end", || handle.counters().tcp_open.get() == 0);
}

#[test]
fn a_reset_goes_through_both_ways() {
    let (mut guest, handle) = start(Egress::All);
    let (address, accepted) = one();
    let connection = guest.open(by_gateway(address));
    let mut stream = accepted.recv_timeout(PATIENCE).unwrap();
    guest.tcp(connection).abort();
    let reader = thread::spawn(move || stream.read(&mut [0; 16]).unwrap_err().kind());
    guest.until("a reset to be sent", |guest| (handle.counters().tcp_open.get() == 0).then(|| guest.now()));
    assert_eq!(reader.join().unwrap(), std::io::ErrorKind::ConnectionReset);

    let (address, accepted) = one();
    let connection = guest.open(by_gateway(address));
    let stream = accepted.recv_timeout(PATIENCE).unwrap();
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
    guest.until("a reset", |guest| (guest.state(connection) == State::Closed).then_some(()));
    // Also while the stack does not read, because the host has finished.
    let (address, accepted) = one();
    let connection = guest.open(by_gateway(address));
    let stream = accepted.recv_timeout(PATIENCE).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    guest.until("an end", |guest| (guest.state(connection) == State::CloseWait).then_some(()));
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
    guest.until("a reset", |guest| (guest.state(connection) == State::Closed).then_some(()));
    eventually("the connections' end", || handle.counters().tcp_open.get() == 0);
}

/// Sends as much as goes until nothing has gone for a while.
fn fill(guest: &mut Guest, connection: smoltcp::iface::SocketHandle) -> usize {
    let (mut sent, mut last) = (0, Instant::now());
    guest.until("a standstill", |guest| {
        let socket = guest.tcp(connection);
        if socket.can_send() {
            sent += socket.send_slice(&[7; 65536]).unwrap();
            last = Instant::now();
        }
        (last.elapsed() > Duration::from_millis(300)).then_some(())
    });
    sent
}

#[test]
fn a_slow_reader_slows_the_sender() {
    let (mut guest, _handle) = start(Egress::All);
    let (address, accepted) = one();
    let connection = guest.open(by_gateway(address));
    let mut stream = accepted.recv_timeout(PATIENCE).unwrap();
    let sent = fill(&mut guest, connection);
    // The host's kernel buffers by itself: what it may have for both sockets, and ours, and the guest's.
    assert!(sent < (24 << 20), "{sent}");
    let reader = thread::spawn(move || {
        let (mut total, mut buffer) = (0, vec![0; 1 << 16]);
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            assert!(buffer[..count].iter().all(|byte| *byte == 7));
            total += count;
        }
        total
    });
    guest.tcp(connection).close();
    guest.until("all to be read", |_| reader.is_finished().then_some(()));
    assert_eq!(reader.join().unwrap(), sent);

    // The other way: the guest does not read.
    let (address, accepted) = one();
    let connection = guest.open(by_gateway(address));
    let mut stream = accepted.recv_timeout(PATIENCE).unwrap();
    stream.set_nonblocking(true).unwrap();
    let (mut sent, mut last) = (0, Instant::now());
    guest.until("a standstill", |_| {
        while let Ok(count) = stream.write(&[9; 65536]) {
            sent += count;
            last = Instant::now();
        }
        (last.elapsed() > Duration::from_millis(300)).then_some(())
    });
    assert!(sent < (24 << 20) + TO_GUEST_BYTES, "{sent}");
    drop(stream);
    let received = guest.receive_to_end(connection);
    assert_eq!(received.len(), sent);
    assert!(received.iter().all(|byte| *byte == 9));
}

#[test]
fn two_thousand_connections_at_once() {
    const COUNT: usize = 2000;
    let listener = TcpListener::bind(loopback()).unwrap();
    let address = by_gateway(listener.local_addr().unwrap());
    let server = thread::spawn(move || {
        let mut streams: Vec<_> = (0..COUNT).map(|_| listener.accept().unwrap().0).collect();
        for stream in &mut streams {
            let mut byte = [0; 4];
            stream.read_exact(&mut byte).unwrap();
            stream.write_all(&byte).unwrap();
        }
        streams
    });
    let (mut guest, handle) = start(Egress::All);
    let mut connections = Vec::new();
    // As many at a time as a backlog holds.
    for _ in 0..COUNT / 100 {
        let batch: Vec<_> = (0..100).map(|_| guest.connect(address, 64)).collect();
        guest.until("connections", |guest| {
            batch.iter().all(|one| guest.state(*one) == State::Established).then_some(())
        });
        connections.extend(batch);
    }
    assert_eq!(handle.counters().tcp_open.get(), COUNT as u64);
    for (number, connection) in connections.iter().enumerate() {
        guest.tcp(*connection).send_slice(&u32::try_from(number).unwrap().to_be_bytes()).unwrap();
    }
    guest.until("answers", |guest| {
        connections.iter().all(|one| guest.tcp(*one).recv_queue() == 4).then_some(())
    });
    for (number, connection) in connections.iter().enumerate() {
        let mut answer = [0; 4];
        guest.tcp(*connection).recv_slice(&mut answer).unwrap();
        assert_eq!(u32::from_be_bytes(answer), u32::try_from(number).unwrap());
    }
    drop(server.join().unwrap());
    guest.until("ends", |guest| {
        for connection in &connections {
            guest.tcp(*connection).close();
        }
        (handle.counters().tcp_open.get() == 0).then_some(())
    });
}

#[test]
fn beyond_the_limit_connections_are_reset() {
    let mut settings = crate::guest::settings();
    settings.limits.tcp_connections = 3;
    let (mut guest, handle) = start_with(Egress::All, settings);
    let address = by_gateway(echo());
    let open: Vec<_> = (0..3).map(|_| guest.open(address)).collect();
    let one_more = guest.connect(address, 4096);
    guest.until("a reset", |guest| (guest.state(one_more) == State::Closed).then_some(()));
    assert_eq!(handle.counters().over_limit.get(), 1);
    guest.tcp(open[0]).abort();
    guest.until("room", |_| (handle.counters().tcp_open.get() == 2).then_some(()));
    guest.open(address);
}

/// Bytes that depend on their place, so that nothing may be lost, doubled or exchanged.
fn pattern(at: usize, buffer: &mut [u8]) {
    for (offset, byte) in buffer.iter_mut().enumerate() {
        let place = at + offset;
        *byte = (place ^ (place >> 8) ^ (place >> 16)) as u8;
    }
}

fn bulk(total: usize) -> (Duration, Duration) {
    let (address, accepted) = one();
    let (mut guest, handle) = start(Egress::All);
    let connection = guest.connect(by_gateway(address), 512 << 10);
    guest.established(connection);
    let mut stream = accepted.recv_timeout(PATIENCE).unwrap();
    // One period of the pattern for cheap comparison: it repeats after 16 MiB, and 64 KiB blocks differ by one byte.
    let mut block = vec![0; 1 << 16];
    pattern(0, &mut block);
    let expected = move |at: usize, bytes: &[u8]| {
        bytes.iter().enumerate().all(|(offset, byte)| {
            let place = at + offset;
            *byte == block[place & 0xffff] ^ (place >> 16) as u8
        })
    };
    let (send, check) = (expected.clone(), expected);
    let begin = Instant::now();
    let reader = thread::spawn(move || {
        let (mut at, mut buffer) = (0, vec![0; 1 << 18]);
        while at < total {
            let count = stream.read(&mut buffer).unwrap();
            assert!(count > 0 && check(at, &buffer[..count]));
            at += count;
        }
        stream
    });
    let (mut at, mut chunk) = (0, vec![0; 1 << 18]);
    pattern(0, &mut chunk);
    guest.until("all to be sent", |guest| {
        let socket = guest.tcp(connection);
        while socket.can_send() && at < total {
            let offset = at % chunk.len();
            if offset == 0 {
                pattern(at, &mut chunk);
            }
            let end = chunk.len().min(offset + total - at);
            at += socket.send_slice(&chunk[offset..end]).unwrap();
        }
        (at == total && reader.is_finished()).then_some(())
    });
    let up = begin.elapsed();
    let mut stream = reader.join().unwrap();
    let begin = Instant::now();
    let writer = thread::spawn(move || {
        let mut chunk = vec![0; 1 << 18];
        for at in (0..total).step_by(chunk.len()) {
            pattern(at, &mut chunk);
            stream.write_all(&chunk).unwrap();
        }
    });
    let mut at = 0;
    guest.until("all to arrive", |guest| {
        let socket = guest.tcp(connection);
        while socket.can_recv() {
            let count =
                socket.recv(|bytes| (bytes.len(), if send(at, bytes) { bytes.len() } else { 0 })).unwrap();
            assert!(count > 0, "wrong bytes after {at}");
            at += count;
        }
        (at == total).then_some(())
    });
    writer.join().unwrap();
    // The link loses nothing, so nothing was thrown away either.
    assert_eq!(handle.counters().frames_dropped.get(), 0);
    (up, begin.elapsed())
}

#[test]
fn much_arrives_whole_both_ways() {
    const TOTAL: usize = 256 << 20;
    let (up, down) = bulk(TOTAL);
    let rate = |time: Duration| TOTAL as f64 / time.as_secs_f64() / f64::from(1 << 20);
    println!("from the guest {:.0} MiB/s, to the guest {:.0} MiB/s", rate(up), rate(down));
}

#[test]
fn a_segment_of_no_connection_is_reset() {
    let (mut guest, _handle) = start(Egress::All);
    let connection = guest.open(by_gateway(echo()));
    let (other, _other_handle) = start(Egress::All);
    // Another stack, which has never heard of this connection.
    guest.wire = other.wire;
    guest.tcp(connection).send_slice(b"hello?").unwrap();
    guest.until("a reset", |guest| (guest.state(connection) == State::Closed).then_some(()));
}

#[test]
fn the_gateway_itself_listens_nowhere_else() {
    let (mut guest, handle) = start(Egress::Public);
    let connection = guest.connect(SocketAddr::new(IpAddr::V4(GATEWAY_IPV4), 22), 4096);
    guest.until("a refusal", |guest| (guest.state(connection) == State::Closed).then_some(()));
    assert_eq!(handle.counters().denied.get(), 1);
}
