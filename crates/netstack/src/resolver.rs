//! Passes the guest's questions to the host's resolvers, as they are, and their answers back, as they are.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout_at};

use crate::dns::{Asked, Code, Question, is_answer, is_failure, read_answer, read_question, refusal};
use crate::pins::Full;
use crate::policy::{Reason, is_ruled, may_ask};
use crate::report::Attempt;
use crate::settings::Resolvers;
use crate::special::special;
use crate::stack::Shared;
use crate::udp::take_error;

/// The port of every resolver.
pub(crate) const DNS_PORT: u16 = 53;
/// Servers of a file that are asked; resolv.conf(5) has three.
const MAX_SERVERS: usize = 8;
/// Bytes of the largest resolv.conf that is read.
const MAX_FILE_BYTES: u64 = 64 << 10;
/// Longest answer by UDP.
const MAX_ANSWER: usize = 65535;

/// What carries a question, and so its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carrier {
    Udp,
    Tcp,
}

/// The host's resolvers.
#[derive(Debug)]
pub(crate) struct Resolver {
    source: Resolvers,
    known: RefCell<Option<(Stamp, Vec<SocketAddr>)>>,
    waiting: std::cell::Cell<usize>,
}

/// What changes when a file does.
type Stamp = (Option<SystemTime>, u64, u64);

impl Resolver {
    pub(crate) fn new(source: Resolvers) -> Resolver {
        Resolver { source, known: RefCell::default(), waiting: std::cell::Cell::new(0) }
    }

    fn servers(&self) -> Vec<SocketAddr> {
        let path = match &self.source {
            Resolvers::Fixed(servers) => return servers.clone(),
            Resolvers::File(path) => path,
        };
        let stamp = std::fs::metadata(path).ok().map(|meta| {
            use std::os::unix::fs::MetadataExt as _;
            (meta.modified().ok(), meta.len(), meta.ino())
        });
        let Some(stamp) = stamp else {
            // Some editors and managers replace the file in two steps.
            return self.known.borrow().as_ref().map(|(_, servers)| servers.clone()).unwrap_or_default();
        };
        if let Some((known, servers)) = &*self.known.borrow()
            && *known == stamp
        {
            return servers.clone();
        }
        let servers = read_servers(path);
        *self.known.borrow_mut() = Some((stamp, servers.clone()));
        servers
    }
}

fn read_servers(path: &std::path::Path) -> Vec<SocketAddr> {
    use std::io::Read as _;
    let mut text = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_FILE_BYTES).read_to_end(&mut text));
    if let Err(error) = read {
        tracing::warn!(path = %path.display(), %error, "cannot read which resolvers the host has");
        return Vec::new();
    }
    match resolv_conf::Config::parse(&text) {
        Ok(config) => config.nameservers.iter().filter_map(server).take(MAX_SERVERS).collect(),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot read which resolvers the host has");
            Vec::new()
        }
    }
}

fn server(ip: &resolv_conf::ScopedIp) -> Option<SocketAddr> {
    match ip {
        resolv_conf::ScopedIp::V4(four) => Some(SocketAddr::new(IpAddr::V4(*four), DNS_PORT)),
        resolv_conf::ScopedIp::V6(six, scope) => {
            let scope = match scope {
                Some(name) => {
                    name.parse().ok().or_else(|| nix::net::if_::if_nametoindex(name.as_str()).ok())?
                }
                None => 0,
            };
            Some(SocketAddr::V6(SocketAddrV6::new(*six, DNS_PORT, 0, scope)))
        }
    }
}

/// One question among those that wait.
struct Place(Rc<Shared>);

impl Place {
    fn take(shared: &Rc<Shared>) -> Option<Place> {
        let waiting = &shared.resolver.waiting;
        if waiting.get() >= shared.limits.dns_queries {
            return None;
        }
        waiting.set(waiting.get() + 1);
        Some(Place(Rc::clone(shared)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let waiting = &self.0.resolver.waiting;
        waiting.set(waiting.get() - 1);
    }
}

/// What is known about a message of the guest without asking anybody.
pub(crate) enum First {
    /// The answer; `None` is silence.
    Answer(Option<Vec<u8>>),
    /// A question for the resolvers.
    Ask(Inquiry),
}

/// A question for the resolvers.
pub(crate) struct Inquiry {
    message: Vec<u8>,
    question: Question,
    _place: Place,
}

/// Looks at a message of the guest.
pub(crate) fn look(shared: &Rc<Shared>, message: &[u8]) -> First {
    let question = match read_question(message) {
        Asked::Question(question) => question,
        Asked::Refused(code) => return First::Answer(Some(refusal(message, None, code))),
        Asked::Nonsense => return First::Answer(None),
    };
    shared.counters.dns_queries.add(1);
    if !may_ask(&shared.egress, &question.name) {
        shared.denied(Attempt::Dns(question.name.clone()), Reason::Policy);
        return First::Answer(Some(refusal(message, Some(&question), Code::Refused)));
    }
    match Place::take(shared) {
        Some(place) => First::Ask(Inquiry { message: message.to_vec(), question, _place: place }),
        None => {
            shared.counters.over_limit.add(1);
            First::Answer(Some(refusal(message, Some(&question), Code::ServFail)))
        }
    }
}

/// Asks the resolvers, in their order, again and again until there is no more time. What it returns is for the guest.
pub(crate) async fn ask(shared: &Rc<Shared>, inquiry: Inquiry, by: Carrier) -> Vec<u8> {
    let Inquiry { message, question, _place } = inquiry;
    let failed = || {
        shared.counters.dns_failed.add(1);
        refusal(&message, Some(&question), Code::ServFail)
    };
    let Some(answer) = first_answer(shared, &message, &question, by).await else {
        return failed();
    };
    match note(shared, &question, &answer) {
        Ok(()) => answer,
        Err(Full) => failed(),
    }
}

async fn first_answer(
    shared: &Rc<Shared>,
    message: &[u8],
    question: &Question,
    by: Carrier,
) -> Option<Vec<u8>> {
    let end = Instant::now() + shared.limits.dns_total;
    let mut poor = None;
    loop {
        let mut is_silent = false;
        // Read again each time: it may be the reason for the silence.
        for server in shared.resolver.servers() {
            let until = end.min(Instant::now() + shared.limits.dns_try);
            let asked = async {
                match by {
                    Carrier::Udp => ask_udp(server, message, question).await,
                    Carrier::Tcp => ask_tcp(server, message, question).await,
                }
            };
            match timeout_at(until, asked).await {
                Ok(Ok(answer)) if is_failure(&answer) => poor = Some(answer),
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(_)) => {}
                Err(_) => is_silent = true,
            }
            if Instant::now() >= end {
                return poor;
            }
        }
        // All have spoken, or refused to: asking again gets the same.
        if !is_silent || poor.is_some() {
            return poor;
        }
    }
}

/// Each question has a socket, and so a random port, of its own, which is what makes answers hard to forge (RFC 5452).
async fn ask_udp(server: SocketAddr, message: &[u8], question: &Question) -> io::Result<Vec<u8>> {
    let any = match server {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(message).await?;
    loop {
        if socket.ready(Interest::READABLE | Interest::ERROR).await?.is_error()
            && let Some(error) = take_error(&socket)
        {
            return Err(error);
        }
        let mut buffer = vec![0; MAX_ANSWER];
        match socket.try_recv(&mut buffer) {
            Ok(length) if is_answer(message, question, &buffer[..length]) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

async fn ask_tcp(server: SocketAddr, message: &[u8], question: &Question) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    stream.write_all(&framed).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    if is_answer(message, question, &answer) { Ok(answer) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Remembers what the guest is about to learn.
fn note(shared: &Shared, question: &Question, answer: &[u8]) -> Result<(), Full> {
    let Some(given) = read_answer(question, answer) else {
        // Where names are ruled, nobody may learn an address that we have not seen.
        return if matches!(shared.egress, iii_protocol::network::Egress::Rules { .. }) {
            Err(Full)
        } else {
            Ok(())
        };
    };
    let mut pins = shared.pins.borrow_mut();
    let now = std::time::Instant::now();
    for one in given {
        for name in &one.names {
            if is_ruled(&shared.egress, name).1 {
                pins.refuse(one.address, name, one.ttl, now)?;
            }
        }
        if special(one.address).is_some() {
            pins.rebind(one.address, one.ttl, now);
        } else if is_ruled(&shared.egress, &question.name).0 {
            pins.permit(one.address, &question.name, one.ttl, now);
        }
    }
    Ok(())
}

/// How long a silent client of the gateway's DNS by TCP is kept (RFC 7766, 6.2.3).
pub(crate) const TCP_IDLE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_those_the_file_names_now() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        let resolver = Resolver::new(Resolvers::File(path.clone()));
        assert_eq!(resolver.servers(), []);
        std::fs::write(&path, "search example\nnameserver 10.0.0.1\nnameserver ::1\n").unwrap();
        let two = ["10.0.0.1:53", "[::1]:53"].map(|server| server.parse::<SocketAddr>().unwrap());
        assert_eq!(resolver.servers(), two);
        // As managers replace it: by another file of the same size.
        std::fs::write(folder.path().join("new"), "search example\nnameserver 10.0.0.2\nnameserver ::1\n")
            .unwrap();
        std::fs::rename(folder.path().join("new"), &path).unwrap();
        assert_eq!(resolver.servers()[0].ip(), IpAddr::from([10, 0, 0, 2]));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(resolver.servers().len(), 2);
        std::fs::write(&path, vec![0xff; 1 << 17]).unwrap();
        assert_eq!(resolver.servers(), []);
    }
}
