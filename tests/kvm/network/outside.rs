//! What a worker reaches outside of its host, and what reaches it from there. `world` has who is there.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use iii_protocol::api::Phase;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::world::{
    HOST_LAN, METADATA, PATIENCE, Resolver, SILENT, Server, UNREACHABLE, UNREACHABLE6, WORLD_LAN, dial,
    listen, public, public6, udp,
};
use super::{attacker, exec};
use crate::scenarios::Bed;

/// Connections that one guest has open at the same time.
const CONNECTIONS: usize = 2000;
/// Bytes that go each way.
const TRANSFER_BYTES: u64 = 1 << 30;
/// Bytes that are made and looked at in one piece.
const BLOCK_BYTES: usize = 64 << 10;
/// More than all buffers between a guest and a peer that does not read: its sockets, the stack's, the host's.
const STUCK_BYTES: usize = 16 << 20;

/// Milliseconds after which the guest's program gives a silent peer up.
const SILENCE: &str = "III_ATTEMPT_MS=3000";
/// Likewise where one answer may be the last of [`CONNECTIONS`], at 10 ms each in an emulated host that is alone.
const MANY_SILENCE: &str = "III_ATTEMPT_MS=120000";

/// A bed with a running worker `w` of image `attack`, under a policy.
fn running(more: &[&str]) -> (Bed, crate::scenarios::Daemon) {
    let bed = Bed::new();
    let reference = attacker(&bed);
    bed.configure(&[bed.entry("w", &reference, more)]);
    let daemon = bed.daemon();
    bed.wait_phase("w", Phase::Running);
    (bed, daemon)
}

/// One line of the guest's program about one attempt.
fn reach(bed: &Bed, transport: &str, to: SocketAddr) -> String {
    let (address, port) = (to.ip().to_string(), to.port().to_string());
    let said = exec(bed, &["-e", SILENCE], &["/probe", "reach", transport, &address, &port]);
    let line = said.trim_end().strip_prefix(&format!("{transport} {address} {port} "));
    line.unwrap_or_else(|| panic!("{transport} {to}: {said}")).to_owned()
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 1000];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

#[test]
fn public_addresses_are_reached_by_tcp_udp_and_ipv6() {
    let (bed, _daemon) = running(&[]);
    for at in [public(10), public6(10)] {
        let tcp = Server::says(listen(at, 80), "tcp is here\n");
        let datagrams = Server::says_udp(udp(at, 80), "udp is here\n");
        assert_eq!(reach(&bed, "tcp", tcp.address), "answered tcp is here");
        assert_eq!(reach(&bed, "udp", datagrams.address), "answered udp is here");
        assert_eq!((tcp.came(), datagrams.came()), (1, 1), "{at}");
        exec(&bed, &[], &["ping", "-c", "1", "-W", "10", &at.to_string()]);
    }
    assert_eq!(bed.status("w").unwrap().refused.count, 0);
}

#[test]
fn a_peer_that_refuses_is_not_there_or_says_nothing_is_told_apart() {
    let (bed, _daemon) = running(&[]);
    let nobody = 81;
    for at in [public(11), public6(11)] {
        assert_eq!(reach(&bed, "tcp", SocketAddr::new(at, nobody)), "failed ECONNREFUSED");
        assert_eq!(reach(&bed, "udp", SocketAddr::new(at, nobody)), "failed ECONNREFUSED");
    }
    for at in [UNREACHABLE, UNREACHABLE6] {
        let said = reach(&bed, "tcp", SocketAddr::new(at, 80));
        assert!(["failed EHOSTUNREACH", "failed ENETUNREACH"].contains(&said.as_str()), "{at}: {said}");
    }
    // Lost, and not refused; who waits for it holds up nobody else.
    let mut waiting = exec_command(&bed, &["/probe", "reach", "tcp", &SILENT.to_string(), "80"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let server = Server::says(listen(public(11), 80), "here\n");
    assert_eq!(reach(&bed, "tcp", server.address), "answered here");
    let mut said = String::new();
    waiting.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.ends_with(" failed ETIMEDOUT\n"), "{said}");
    waiting.wait().unwrap();
    // None of this was the policy's.
    assert_eq!(bed.status("w").unwrap().refused.count, 0);
}

/// `exec`, yet to be started.
fn exec_command(bed: &Bed, command: &[&str]) -> Command {
    bed.command(&[&["worker", "exec", "-e", SILENCE, "w"], command].concat())
}

#[test]
fn a_peer_that_does_not_read_holds_up_only_its_own_connection() {
    let (bed, _daemon) = running(&[]);
    let listener = listen(public(12), 80);
    let address = listener.local_addr().unwrap();
    let to = [address.ip().to_string(), address.port().to_string(), STUCK_BYTES.to_string()];
    let mut sender = exec_command(&bed, &["/probe", "send", &to[0], &to[1], &to[2]]).spawn().unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let other = Server::says(listen(public(13), 80), "not held up\n");
    assert_eq!(reach(&bed, "tcp", other.address), "answered not held up");
    assert!(sender.try_wait().unwrap().is_none(), "more than all buffers was sent to nobody");
    // Then it reads after all, and nothing is missing.
    let (mut heard, mut block) = (0, vec![0; BLOCK_BYTES]);
    loop {
        match stream.read(&mut block).unwrap() {
            0 => break,
            count => heard += count,
        }
    }
    assert_eq!(heard, STUCK_BYTES);
    drop(stream);
    assert!(sender.wait().unwrap().success());
}

#[test]
fn two_thousand_connections_are_open_at_once_and_none_is_taken_for_another() {
    let (bed, _daemon) = running(&[]);
    // The test's own end of them, one thread each: with the default stack size that is virtual memory only.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    assert!(hard > 2 * CONNECTIONS as u64, "the host allows {hard} open files");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let server = Server::tcp(listen(public(14), 80), echo);
    let (address, port) = (server.address.ip().to_string(), server.address.port().to_string());
    let count = CONNECTIONS.to_string();
    let many = || exec(&bed, &["-e", MANY_SILENCE], &["/probe", "many", &address, &port, &count]);
    let said = many();
    assert_eq!(said, format!("many {CONNECTIONS} ok\n"));
    assert_eq!(server.came(), CONNECTIONS);
    // They ended with the program; the next one finds nothing of them.
    assert_eq!(many(), said);
}

/// Content in which no two blocks are alike, one block at a time.
struct Content {
    block: Vec<u8>,
    number: u64,
}

impl Content {
    fn new() -> Content {
        Content { block: crate::support::registry::noise(BLOCK_BYTES, 1), number: 0 }
    }

    fn next(&mut self) -> &[u8] {
        self.block[..8].copy_from_slice(&self.number.to_le_bytes());
        self.number += 1;
        &self.block
    }
}

#[test]
fn a_transfer_of_a_gigabyte_each_way_arrives_whole() {
    let blocks = TRANSFER_BYTES / BLOCK_BYTES as u64;
    let (bed, _daemon) = running(&["resources: { memory: 512, cpus: 1 }"]);
    let download = Server::tcp(listen(public(15), 80), move |mut stream| {
        let mut content = Content::new();
        for _ in 0..blocks {
            if stream.write_all(content.next()).is_err() {
                break;
            }
        }
    });
    let (heard, uploads) = mpsc::channel();
    // What comes back has gone both ways.
    let upload = Server::tcp(listen(public6(15), 80), move |mut stream| {
        let (mut content, mut block) = (Content::new(), vec![0; BLOCK_BYTES]);
        let whole =
            (0..blocks).take_while(|_| stream.read_exact(&mut block).is_ok() && block == content.next());
        let _ = heard.send((whole.count() as u64, stream.read(&mut block).unwrap()));
    });
    // One way by IPv4, the other by IPv6, both at once.
    let peers = [download.address.ip(), upload.address.ip()].map(|address| address.to_string());
    let said = exec(&bed, &[], &["/probe", "relay", &peers[0], "80", &peers[1], "80"]);
    assert_eq!(uploads.recv_timeout(PATIENCE).unwrap(), (blocks, 0), "blocks, and bytes after the last one");
    assert_eq!(said, format!("relay {TRANSFER_BYTES}\n"));
}

#[test]
fn names_are_resolved_by_the_hosts_resolver_and_not_at_all_without_egress() {
    let bed = Bed::new();
    let reference = attacker(&bed);
    bed.configure(&[
        bed.entry("w", &reference, &[]),
        bed.entry("none", &reference, &["network: { egress: none }"]),
    ]);
    let resolver = Resolver::start(|name| match name {
        "both.example.com" => vec![public(16), public6(16)],
        _ => Vec::new(),
    });
    // Which of the two a client prefers is its own business.
    let servers =
        [public(16), public6(16)].map(|at| Server::says(listen(at, 80), "HTTP/1.0 200 OK\r\n\r\nby name\n"));
    let _daemon = bed.daemon();
    for name in ["w", "none"] {
        bed.wait_phase(name, Phase::Running);
    }
    let said = exec(&bed, &[], &["nslookup", "both.example.com"]);
    for address in [public(16), public6(16)] {
        assert!(said.contains(&address.to_string()), "{address}: {said}");
    }
    let page = exec(&bed, &[], &["wget", "-q", "-O", "-", "http://both.example.com/"]);
    assert_eq!((page.as_str(), servers[0].came() + servers[1].came()), ("by name\n", 1));
    let asked = resolver.asked().len();
    let run = bed.iii(&["worker", "exec", "none", "nslookup", "both.example.com", "198.19.249.1"]);
    assert!(run.code != Some(0) && !run.text().contains(&public(16).to_string()), "{run:?}");
    assert_eq!(resolver.asked().len(), asked, "{:?}", resolver.asked());
}

#[test]
fn a_name_that_is_rebound_to_a_private_address_opens_nothing() {
    const NAME: &str = "rebound.example.com";
    let (bed, _daemon) = running(&[&format!("network: {{ egress: {{ allow: ['{NAME}'] }} }}")]);
    let answer: Arc<Mutex<IpAddr>> = Arc::new(Mutex::new(public(17)));
    let now = answer.clone();
    let _resolver =
        Resolver::start(move |name| if name == NAME { vec![*now.lock().unwrap()] } else { Vec::new() });
    let good = Server::says(listen(public(17), 80), "the one that is meant\n");
    let other = Server::says(listen(public(18), 80), "trapped\n");
    let lan = Server::says(listen(WORLD_LAN, 80), "trapped\n");
    let metadata = Server::says(listen(METADATA, 80), "trapped\n");
    let loopback = Server::says(TcpListener::bind("127.0.0.1:0").unwrap(), "trapped\n");

    assert_eq!(reach(&bed, "tcp", good.address), "failed ECONNREFUSED", "before anybody asked for the name");
    exec(&bed, &[], &["nslookup", "-type=a", NAME]);
    assert_eq!(reach(&bed, "tcp", good.address), "answered the one that is meant");
    assert_eq!(reach(&bed, "tcp", other.address), "failed ECONNREFUSED", "another public one");

    let gateway = SocketAddr::new(iii_protocol::network::GATEWAY_IPV4.into(), loopback.address.port());
    for (rebound, to) in [
        (WORLD_LAN, lan.address),
        (METADATA, metadata.address),
        (gateway.ip(), gateway),
        (IpAddr::from([127, 0, 0, 1]), gateway),
    ] {
        *answer.lock().unwrap() = rebound;
        // Answered or refused, both are well: what counts is where it leads.
        bed.iii(&["worker", "exec", "w", "nslookup", "-type=a", NAME]);
        assert_eq!(reach(&bed, "tcp", to), "failed ECONNREFUSED", "{rebound}");
    }
    assert_eq!((other.came(), lan.came(), metadata.came(), loopback.came()), (0, 0, 0, 0));
}

/// A port of an address of the host that nobody had a moment ago.
fn free(at: IpAddr) -> u16 {
    TcpListener::bind((at, 0)).unwrap().local_addr().unwrap().port()
}

#[test]
fn published_ports_answer_the_host_and_its_lan_each_where_it_was_published() {
    let local = IpAddr::from([127, 0, 0, 1]);
    let six: IpAddr = "::1".parse().unwrap();
    let (private, lan, by_six, datagrams) = (free(local), free(HOST_LAN), free(six), free(local));
    let ports =
        format!("ports: ['{private}:80', '{HOST_LAN}:{lan}:80', '[::1]:{by_six}:80', '{datagrams}:81/udp']");
    // Ports work with every policy.
    let (bed, _daemon) = running(&[&ports, "network: { egress: none }"]);
    let mut tcp = exec_command(&bed, &["nc", "-ll", "-p", "80", "-e", "cat"]).spawn().unwrap();
    let mut udp = exec_command(&bed, &["/probe", "echo", "81"]).stdout(Stdio::piped()).spawn().unwrap();
    udp.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();

    let answers = |mut stream: TcpStream| {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut heard = [0; 6];
        stream.write_all(b"hello\n").is_ok() && stream.read_exact(&mut heard).is_ok() && &heard == b"hello\n"
    };
    // The guest's server is up some time after it was started.
    bed.until("it answers the host", || TcpStream::connect((local, private)).is_ok_and(answers));
    assert!(answers(TcpStream::connect((six, by_six)).unwrap()), "by IPv6");
    assert!(answers(dial(SocketAddr::new(HOST_LAN, lan))), "from the LAN");
    for (at, port) in [(HOST_LAN, private), (HOST_LAN, by_six)] {
        let refused = std::panic::catch_unwind(|| dial(SocketAddr::new(at, port)));
        assert!(refused.is_err(), "port {port} was published on loopback alone");
    }
    let socket = UdpSocket::bind((local, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    socket.connect((local, datagrams)).unwrap();
    // Datagrams may be lost, and are then sent again.
    bed.until("a datagram comes back", || {
        let mut heard = [0; 10];
        socket.send(b"datagram").is_ok() && socket.recv(&mut heard).is_ok_and(|n| &heard[..n] == b"datagram")
    });
    for child in [&mut tcp, &mut udp] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn a_shim_that_is_killed_takes_its_machine_and_its_network_along() {
    let local = IpAddr::from([127, 0, 0, 1]);
    let port = free(local);
    let ports = format!("ports: ['{port}:80']");
    let (bed, daemon) = running(&[&ports, "restart: never"]);
    let listener = listen(public(19), 80);
    let mut client =
        exec_command(&bed, &["nc", &public(19).to_string(), "80"]).stdin(Stdio::piped()).spawn().unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(b"still open\n").unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(TcpListener::bind((local, port)).is_err(), "the port is the shim's");

    let status = bed.status("w").unwrap();
    kill(Pid::from_raw(i32::try_from(status.shim_pid.unwrap()).unwrap()), Signal::SIGKILL).unwrap();
    let ended = bed.wait("w", "ended", |status| !status.exits.is_empty());
    assert_ne!(ended.phase, Phase::Running);
    // The peer learns of it: an end or a reset, and no silence.
    let heard = stream.read(&mut [0; 100]);
    match &heard {
        Ok(count) => assert_eq!(*count, 0),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
    bed.until("the port is free", || TcpListener::bind((local, port)).is_ok());
    bed.until("no machine is left", || {
        bed.processes_named("__vmm").is_empty() && bed.processes_named("__shim").is_empty()
    });
    client.wait().unwrap();

    // The same worker works as before.
    bed.ok(&["worker", "start", "w"]);
    bed.wait_phase("w", Phase::Running);
    let server = Server::says(listen(public(20), 80), "again\n");
    assert_eq!(reach(&bed, "tcp", server.address), "answered again");
    daemon.stop();
    bed.assert_nothing_left();
}
