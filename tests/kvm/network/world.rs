//! The hosts outside: sockets of the network namespace that `scripts/lib/test-world` made, and simple servers on them.
//!
//! The servers are threads of the test, which therefore knows all that came to them.

use std::io::{IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

// As scripts/lib/test-world has them.
/// The host's address on the LAN.
pub(super) const HOST_LAN: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1));
/// Another machine on the LAN.
pub(super) const WORLD_LAN: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2));
/// That machine by IPv6.
pub(super) const WORLD_LAN6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 2));
/// A public address that is the host's own.
pub(super) const HOST_PUBLIC: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 175, 48, 254));
/// Where clouds tell secrets.
pub(super) const METADATA: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254));
/// Likewise by IPv6.
pub(super) const METADATA6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254));
/// What is sent there is lost.
pub(super) const SILENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 175, 48, 130));
/// The host has no way there.
pub(super) const UNREACHABLE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 175, 48, 200));
/// Likewise by IPv6.
pub(super) const UNREACHABLE6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2620, 0x4f, 0x8000, 0x9000, 0, 0, 0, 1));
/// Where the host looks names up.
const RESOLVER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 175, 48, 53));

/// Longest refusal that is shown.
const ANSWER_BYTES: usize = 500;
/// What of a request is read: all of it, because a connection that ends with something unread is reset.
const REQUEST_BYTES: usize = 1000;
/// Seconds that an answer of the test's resolver is good.
const TTL: u32 = 60;
/// Parts of a DNS message: header; and behind the question's name its type and class.
const DNS_HEADER: usize = 12;
/// A and AAAA.
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;

/// A public address of the world, by its last number.
pub(super) fn public(number: u8) -> IpAddr {
    assert!(number < 128, "the world has only these");
    Ipv4Addr::new(192, 175, 48, number).into()
}

/// Likewise by IPv6.
pub(super) fn public6(number: u16) -> IpAddr {
    Ipv6Addr::new(0x2620, 0x4f, 0x8000, 0, 0, 0, 0, number).into()
}

/// Asks for a socket of the namespace.
fn socket(what: &str, at: SocketAddr) -> OwnedFd {
    let door = std::env::var_os("III_TEST_WORLD")
        .expect("III_TEST_WORLD names no test world: use `make test`, or `with-kvm --world`");
    let mut stream = UnixStream::connect(&door)
        .unwrap_or_else(|error| panic!("no test world at {}: {error}", door.display()));
    // In one piece: it is read with one call over there.
    stream.write_all(format!("{what} {} {}\n", at.ip(), at.port()).as_bytes()).unwrap();
    let mut text = [0; ANSWER_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut text)];
    let heard = recvmsg(&stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let given = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    given.unwrap_or_else(|| panic!("`{what} {at}`: {}", String::from_utf8_lossy(&text[..heard.bytes])))
}

/// A listener outside; port 0 becomes one that is free.
pub(super) fn listen(at: IpAddr, port: u16) -> TcpListener {
    socket("listen tcp", SocketAddr::new(at, port)).into()
}

/// A socket for datagrams outside.
pub(super) fn udp(at: IpAddr, port: u16) -> UdpSocket {
    socket("listen udp", SocketAddr::new(at, port)).into()
}

/// A connection from outside.
pub(super) fn dial(to: SocketAddr) -> TcpStream {
    socket("dial tcp", to).into()
}

/// A server that counts who comes.
pub(super) struct Server {
    /// Where it is.
    pub(super) address: SocketAddr,
    /// Connections or datagrams that came.
    came: Arc<AtomicUsize>,
}

impl Server {
    /// How many came.
    pub(super) fn came(&self) -> usize {
        self.came.load(Ordering::SeqCst)
    }

    /// Each connection gets a thread with `answer`.
    pub(super) fn tcp(
        listener: TcpListener,
        answer: impl Fn(TcpStream) + Send + Sync + Clone + 'static,
    ) -> Server {
        let address = listener.local_addr().unwrap();
        let came = Arc::new(AtomicUsize::new(0));
        let count = came.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::SeqCst);
                let answer = answer.clone();
                std::thread::spawn(move || answer(stream));
            }
        });
        Server { address, came }
    }

    /// Says `text` to everybody who says something.
    pub(super) fn says(listener: TcpListener, text: &'static str) -> Server {
        Server::tcp(listener, move |mut stream| {
            // A client that leaves at once needs no answer.
            let _ = stream.read(&mut [0; REQUEST_BYTES]);
            let _ = stream.write_all(text.as_bytes());
        })
    }

    /// Likewise, by datagrams.
    pub(super) fn says_udp(socket: UdpSocket, text: &'static str) -> Server {
        let address = socket.local_addr().unwrap();
        let came = Arc::new(AtomicUsize::new(0));
        let count = came.clone();
        std::thread::spawn(move || {
            while let Ok((_, from)) = socket.recv_from(&mut [0; REQUEST_BYTES]) {
                count.fetch_add(1, Ordering::SeqCst);
                let _ = socket.send_to(text.as_bytes(), from);
            }
        });
        Server { address, came }
    }
}

/// The resolver of the host, for as long as the test runs.
pub(super) struct Resolver {
    asked: Arc<Mutex<Vec<String>>>,
}

impl Resolver {
    /// Answers every question for a name with those of `addresses` that are of its type.
    pub(super) fn start(addresses: impl Fn(&str) -> Vec<IpAddr> + Send + 'static) -> Resolver {
        let socket = udp(RESOLVER, 53);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let names = asked.clone();
        std::thread::spawn(move || {
            let mut question = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut question) {
                let Some((name, kind, end)) = asked_for(&question[..length]) else { continue };
                let found = addresses(&name);
                names.lock().unwrap().push(name);
                let _ = socket.send_to(&answer(&question[..end], kind, &found), from);
            }
        });
        Resolver { asked }
    }

    /// The names that were asked for.
    pub(super) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

/// Name and type of a question, and where it ends.
fn asked_for(message: &[u8]) -> Option<(String, u16, usize)> {
    let (mut at, mut labels) = (DNS_HEADER, Vec::new());
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(message.get(at..at + length)?).to_lowercase());
        at += length;
    }
    let kind = message.get(at..at + 4)?;
    Some((labels.join("."), u16::from_be_bytes([kind[0], kind[1]]), at + 4))
}

fn answer(question: &[u8], kind: u16, addresses: &[IpAddr]) -> Vec<u8> {
    let bodies: Vec<Vec<u8>> = addresses
        .iter()
        .filter_map(|address| match address {
            IpAddr::V4(four) if kind == TYPE_A => Some(four.octets().to_vec()),
            IpAddr::V6(six) if kind == TYPE_AAAA => Some(six.octets().to_vec()),
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        })
        .collect();
    let count = u8::try_from(bodies.len()).unwrap();
    let mut message = question.to_vec();
    // An answer, recursion wanted and had, no error; one question, so many answers and nothing else.
    message[2..DNS_HEADER].copy_from_slice(&[0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0]);
    for body in bodies {
        // The name is the question's.
        message.extend_from_slice(&[0xc0, u8::try_from(DNS_HEADER).unwrap()]);
        message.extend_from_slice(&kind.to_be_bytes());
        message.extend_from_slice(&[0, 1]);
        message.extend_from_slice(&TTL.to_be_bytes());
        message.extend_from_slice(&u16::try_from(body.len()).unwrap().to_be_bytes());
        message.extend_from_slice(&body);
    }
    message
}

/// How long a server of a test waits for the guest's next byte.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
