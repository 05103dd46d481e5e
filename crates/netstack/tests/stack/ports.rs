//! Ports of the guest that the host answers on.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use iii_netstack::{Stack, pair};
use iii_protocol::network::{Egress, GATEWAY_IPV4, Network, PublishedPort, Transport};
use smoltcp::socket::tcp::State;

use crate::guest::{PATIENCE, eventually, loopback, settings, start_published};

fn published(host: SocketAddr, guest: u16, transport: Transport) -> PublishedPort {
    PublishedPort { host, guest, transport }
}

#[test]
fn a_connection_to_a_published_port_reaches_the_guest_from_the_gateway() {
    let ports = vec![published(loopback(), 8080, Transport::Tcp)];
    let (mut guest, handle, addresses) = start_published(Egress::None, settings(), ports);
    let server = guest.listen(8080, 65536);
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect(addresses[0]).unwrap();
        stream.write_all(b"hello guest").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    });
    assert_eq!(guest.receive(server, 11), b"hello guest");
    assert_eq!(std::net::IpAddr::from(guest.tcp(server).remote_endpoint().unwrap().addr), GATEWAY_IPV4);
    guest.send(server, b"hello host");
    guest.tcp(server).close();
    guest.until("the client's end", |_| client.is_finished().then_some(()));
    assert_eq!(client.join().unwrap(), "hello host");
    guest.until("an end", |_| (handle.counters().tcp_open.get() == 0).then_some(()));
}

#[test]
fn a_port_nobody_serves_in_the_guest_is_reset() {
    let ports = vec![published(loopback(), 8080, Transport::Tcp)];
    let (mut guest, handle, addresses) = start_published(Egress::None, settings(), ports);
    let client = thread::spawn(move || TcpStream::connect(addresses[0]).unwrap().read(&mut [0; 1]));
    guest.until("the client's end", |_| client.is_finished().then_some(()));
    assert_eq!(client.join().unwrap().unwrap_err().kind(), ErrorKind::ConnectionReset);
    eventually("an end", || handle.counters().tcp_open.get() == 0);
}

#[test]
fn datagrams_of_several_peers_are_kept_apart() {
    let ports = vec![published(loopback(), 5353, Transport::Udp)];
    let (mut guest, _handle, addresses) = start_published(Egress::None, settings(), ports);
    let socket = guest.udp(5353);
    let peers: Vec<_> = (0..3).map(|_| UdpSocket::bind(loopback()).unwrap()).collect();
    let mut sources = Vec::new();
    for (number, peer) in peers.iter().enumerate() {
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        peer.send_to(&[u8::try_from(number).unwrap()], addresses[0]).unwrap();
        let (bytes, from) = guest.receive_from(socket);
        assert_eq!(from.ip(), GATEWAY_IPV4);
        assert_eq!(usize::from(bytes[0]), number);
        sources.push(from);
    }
    for (number, from) in sources.iter().enumerate().rev() {
        guest.send_to(socket, *from, &[u8::try_from(number).unwrap(), 1]);
    }
    for (number, peer) in peers.iter().enumerate() {
        let receive = thread::spawn({
            let peer = peer.try_clone().unwrap();
            move || {
                let mut buffer = [0; 16];
                let (count, _) = peer.recv_from(&mut buffer).unwrap();
                buffer[..count].to_vec()
            }
        });
        guest.until("an answer", |_| receive.is_finished().then_some(()));
        assert_eq!(receive.join().unwrap(), [u8::try_from(number).unwrap(), 1]);
    }
}

#[test]
fn a_port_that_somebody_has_is_an_error_that_names_them() {
    for transport in [Transport::Tcp, Transport::Udp] {
        let (_tcp, _udp);
        let address = match transport {
            Transport::Tcp => {
                _tcp = TcpListener::bind(loopback()).unwrap();
                _tcp.local_addr().unwrap()
            }
            Transport::Udp => {
                _udp = UdpSocket::bind(loopback()).unwrap();
                _udp.local_addr().unwrap()
            }
        };
        let free = published(loopback(), 1, Transport::Tcp);
        let network = Network { egress: Egress::None, ports: vec![free, published(address, 80, transport)] };
        let error = Stack::bind(&network, settings()).unwrap_err();
        assert_eq!(error.holder.as_ref().unwrap().pid, std::process::id());
        let text = error.to_string();
        let begin = format!("cannot listen on {transport} {address}, which ");
        assert!(text.starts_with(&begin) && text.contains(&std::process::id().to_string()), "{text}");
    }
}

#[test]
fn the_end_of_the_stack_closes_what_it_had() {
    let ports = vec![published(loopback(), 8080, Transport::Tcp)];
    let (mut guest, handle, addresses) = start_published(Egress::All, settings(), ports);
    let server = guest.listen(8080, 4096);
    let mut stream = TcpStream::connect(addresses[0]).unwrap();
    guest.until("a connection", |guest| (guest.state(server) == State::Established).then_some(()));
    drop(handle);
    let end = stream.read(&mut [0; 1]);
    assert!(matches!(end, Ok(0)) || end.is_err());
    assert_eq!(TcpStream::connect(addresses[0]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn the_end_of_the_guest_ends_the_stack() {
    let network = Network { egress: Egress::All, ports: vec![published(loopback(), 8080, Transport::Tcp)] };
    // Either kind of pair; with datagrams only who sends learns that nobody is there.
    for is_datagram in [false, true] {
        let (stack, guest) = if is_datagram {
            let (stack, guest) = std::os::unix::net::UnixDatagram::pair().unwrap();
            (stack.into(), guest.into())
        } else {
            pair().unwrap()
        };
        let bound = Stack::bind(&network, settings()).unwrap();
        let address = bound.addresses()[0];
        let handle = bound.start(stack).unwrap();
        drop(guest);
        if is_datagram {
            drop(TcpStream::connect(address));
        }
        eventually("the end of the stack", || handle.is_finished());
    }
}
