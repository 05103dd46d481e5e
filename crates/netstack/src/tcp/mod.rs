//! TCP: which connection a segment belongs to, and how connections begin.
//!
//! ```text
//!  guest's SYN ─▶ policy ─▶ Dialing (the SYN is kept) ─▶ host connected ─▶ the SYN is answered ─▶ Open
//!                    │            │
//!                   RST      refused: RST; unreachable: ICMP; no answer: silence, as on a wire
//!
//!  connection to a published port ─▶ Open (SYN to the guest from the gateway) ─▶ guest refuses: reset
//! ```

mod conn;
mod machine;
mod outside;

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use iii_protocol::network::{GATEWAY_IPV4, GUEST_IPV4};
use smoltcp::wire::TcpPacket;
use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::AbortHandle;

use self::conn::{Conn, Next};
use self::machine::{Buffers, Machine};
use self::outside::Outside;
use crate::dns_stream::DnsStream;
use crate::policy::{Reason, Verdict};
use crate::report::Attempt;
use crate::settings::Limits;
use crate::stack::Shared;
use crate::wire::{Packet, Unreachable, send_reset, send_unreachable};

/// Bytes of a SYN that are kept while the host dials: headers with all their options. What a SYN carries beyond them
/// (RFC 7413) the guest sends again.
const MAX_SYN_BYTES: usize = 60 + 60;
/// What waits for the guest in a connection, while there are few. Several of the largest frames: each wake-up of a guest
/// is dear, and so is each of its acknowledgements.
pub const TO_GUEST_BYTES: usize = 512 << 10;
/// What waits for the outside in a connection, while there are few.
pub const FROM_GUEST_BYTES: usize = 128 << 10;
/// Either, once [`BUFFERS_BYTES`] are given away. An allocator may touch all of it, so this is what an idle connection
/// costs when there are many.
pub const SMALL_BUFFER_BYTES: usize = 16 << 10;
/// What large buffers may take together; later connections get small ones.
pub const BUFFERS_BYTES: usize = 64 << 20;
/// Ports of the gateway that connections and datagrams to published ports come from.
pub(crate) const EPHEMERAL: std::ops::RangeInclusive<u16> = 49152..=65535;

/// The guest's port, and what it talks to as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FlowKey {
    pub(crate) guest: u16,
    pub(crate) outside: SocketAddr,
}

enum Entry {
    /// The host is being asked. The kept SYN is the newest.
    Dialing {
        syn: Vec<u8>,
        task: Option<AbortHandle>,
    },
    Open(Rc<Conn>),
}

/// All connections.
#[derive(Default)]
pub(crate) struct Table {
    flows: RefCell<HashMap<FlowKey, Entry>>,
    large_bytes: std::cell::Cell<usize>,
    next_port: std::cell::Cell<u16>,
}

impl Table {
    fn is_full(&self, limits: &Limits) -> bool {
        self.flows.borrow().len() >= limits.tcp_connections
    }

    /// Sizes of the buffers of one more connection.
    fn lend(&self) -> Buffers {
        let left = BUFFERS_BYTES - self.large_bytes.get();
        if left < Buffers::LARGE.total() {
            return Buffers::SMALL;
        }
        self.large_bytes.set(self.large_bytes.get() + Buffers::LARGE.total());
        Buffers::LARGE
    }

    fn give_back(&self, buffers: Buffers) {
        if buffers == Buffers::LARGE {
            self.large_bytes.set(self.large_bytes.get() - buffers.total());
        }
    }

    /// Forgets this connection, and no other that has its ports by now.
    fn remove(&self, key: &FlowKey, conn: &Rc<Conn>) {
        let mut flows = self.flows.borrow_mut();
        if matches!(flows.get(key), Some(Entry::Open(open)) if Rc::ptr_eq(open, conn)) {
            flows.remove(key);
        }
    }

    /// A port of the gateway that no flow to this port of the guest has.
    fn free_port(&self, guest: u16, gateway: IpAddr) -> Option<u16> {
        let flows = self.flows.borrow();
        let mut port = self.next_port.get().max(*EPHEMERAL.start());
        for _ in EPHEMERAL {
            let candidate = port;
            port = if port == *EPHEMERAL.end() { *EPHEMERAL.start() } else { port + 1 };
            if !flows.contains_key(&FlowKey { guest, outside: SocketAddr::new(gateway, candidate) }) {
                self.next_port.set(port);
                return Some(candidate);
            }
        }
        None
    }
}

/// A segment of the guest.
pub(crate) fn ingress(shared: &Rc<Shared>, packet: &Packet<'_>) {
    let Ok(tcp) = TcpPacket::new_checked(packet.payload) else {
        return shared.counters.malformed.add(1);
    };
    if tcp.src_port() == 0 || tcp.dst_port() == 0 {
        return shared.counters.malformed.add(1);
    }
    let key = FlowKey { guest: tcp.src_port(), outside: SocketAddr::new(packet.destination, tcp.dst_port()) };
    let is_syn = tcp.syn() && !tcp.ack() && !tcp.rst() && !tcp.fin();
    let open = match shared.tcp.flows.borrow_mut().get_mut(&key) {
        Some(Entry::Open(conn)) => Some(Rc::clone(conn)),
        Some(Entry::Dialing { syn, .. }) if is_syn => {
            *syn = keep_syn(packet, &tcp);
            return;
        }
        Some(Entry::Dialing { task, .. }) if tcp.rst() => {
            if let Some(task) = task {
                task.abort();
            }
            None
        }
        Some(Entry::Dialing { .. }) => return,
        None if is_syn => None,
        None => return send_reset(&shared.link, packet),
    };
    match open {
        Some(conn) => {
            if conn.ingress(packet.whole, shared) == Next::Over {
                // At once: the guest may use the port again before the task has seen it.
                shared.tcp.remove(&key, &conn);
            }
        }
        None if is_syn => begin(shared, packet, key, keep_syn(packet, &tcp)),
        None => {
            shared.tcp.flows.borrow_mut().remove(&key);
        }
    }
}

/// The packet without what follows the TCP header.
fn keep_syn(packet: &Packet<'_>, tcp: &TcpPacket<&[u8]>) -> Vec<u8> {
    let headers = packet.whole.len() - packet.payload.len() + usize::from(tcp.header_len());
    let mut syn = packet.whole[..headers.min(packet.whole.len()).min(MAX_SYN_BYTES)].to_vec();
    crate::wire::set_length(&mut syn);
    syn
}

/// The guest wants a new connection.
fn begin(shared: &Rc<Shared>, packet: &Packet<'_>, key: FlowKey, syn: Vec<u8>) {
    if shared.tcp.is_full(&shared.limits) {
        shared.counters.over_limit.add(1);
        return send_reset(&shared.link, packet);
    }
    if shared.is_dns(key.outside) {
        let stream = DnsStream::new(Rc::clone(shared));
        return open_from_guest(shared, key, &syn, Outside::Dns(stream));
    }
    let host = match shared.judge(key.outside.ip(), Some(key.outside.port())) {
        Verdict::Allowed { host } => host,
        Verdict::Denied { reason } => {
            shared.denied(Attempt::Tcp(key.outside), reason);
            return send_reset(&shared.link, packet);
        }
    };
    shared.tcp.flows.borrow_mut().insert(key, Entry::Dialing { syn, task: None });
    let to = SocketAddr::new(host, key.outside.port());
    let handle = tokio::task::spawn_local(dial(Rc::clone(shared), key, to)).abort_handle();
    if let Some(Entry::Dialing { task, .. }) = shared.tcp.flows.borrow_mut().get_mut(&key) {
        *task = Some(handle);
    }
}

async fn dial(shared: Rc<Shared>, key: FlowKey, to: SocketAddr) {
    let connected = tokio::time::timeout(shared.limits.dial, connect(to)).await;
    let Some(Entry::Dialing { syn, .. }) = shared.tcp.flows.borrow_mut().remove(&key) else { return };
    match connected {
        Ok(Ok(stream)) if leads_home(&stream) && !shared.may_reach_host(key.outside.ip()) => {
            shared.denied(Attempt::Tcp(key.outside), Reason::Host);
            SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO)).ok();
            refuse(&shared, &syn);
        }
        Ok(Ok(stream)) => {
            shared.counters.tcp_opened.add(1);
            open_from_guest(&shared, key, &syn, Outside::Host(stream));
        }
        Ok(Err(error)) => {
            shared.counters.tcp_failed.add(1);
            match Unreachable::of(&error) {
                // What the host's kernel was told is what the guest's is told.
                Some(why @ (Unreachable::Host | Unreachable::Network)) => {
                    send_unreachable(&shared.link, &syn, why)
                }
                _ if error.kind() == io::ErrorKind::TimedOut => {}
                _ => refuse(&shared, &syn),
            }
        }
        // By now the guest has given up.
        Err(_) => shared.counters.tcp_failed.add(1),
    }
}

fn refuse(shared: &Shared, syn: &[u8]) {
    if let Some(packet) = Packet::read(syn) {
        send_reset(&shared.link, &packet);
    }
}

async fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    tune(&SockRef::from(&socket));
    socket.connect(to).await
}

/// The guest's kernel has decided what is sent when. A peer that vanished is noticed in the end.
fn tune(socket: &SockRef<'_>) {
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_keepalive(true);
}

/// Whether a connection that should leave the host has not.
fn leads_home(stream: &TcpStream) -> bool {
    match (stream.local_addr(), stream.peer_addr()) {
        (Ok(local), Ok(peer)) => local.ip() == peer.ip(),
        _ => false,
    }
}

fn open_from_guest(shared: &Rc<Shared>, key: FlowKey, syn: &[u8], outside: Outside) {
    let buffers = shared.tcp.lend();
    let Some(machine) = Machine::listen(key.outside, buffers, shared.seed(), shared.now()) else {
        shared.tcp.give_back(buffers);
        return refuse(shared, syn);
    };
    let conn = open(shared, key, machine, outside, buffers);
    conn.ingress(syn, shared);
}

/// A connection to a published port. `false` when there is no room for it.
pub(crate) fn open_to_guest(shared: &Rc<Shared>, stream: TcpStream, guest_port: u16) {
    let gateway = IpAddr::V4(GATEWAY_IPV4);
    let room =
        if shared.tcp.is_full(&shared.limits) { None } else { shared.tcp.free_port(guest_port, gateway) };
    let outside = Outside::Host(stream);
    let Some(port) = room else {
        shared.counters.over_limit.add(1);
        return outside.reset_on_close();
    };
    if let Outside::Host(stream) = &outside {
        tune(&SockRef::from(stream));
    }
    let key = FlowKey { guest: guest_port, outside: SocketAddr::new(gateway, port) };
    let guest = SocketAddr::new(IpAddr::V4(GUEST_IPV4), guest_port);
    let buffers = shared.tcp.lend();
    match Machine::connect(key.outside, guest, buffers, shared.seed(), shared.now()) {
        Some(machine) => {
            shared.counters.tcp_accepted.add(1);
            open(shared, key, machine, outside, buffers);
        }
        None => {
            shared.tcp.give_back(buffers);
            outside.reset_on_close();
        }
    }
}

fn open(shared: &Rc<Shared>, key: FlowKey, machine: Machine, outside: Outside, buffers: Buffers) -> Rc<Conn> {
    let conn = Conn::new(machine, outside);
    shared.tcp.flows.borrow_mut().insert(key, Entry::Open(Rc::clone(&conn)));
    shared.counters.tcp_open.add(1);
    let (task, shared) = (Rc::clone(&conn), Rc::clone(shared));
    tokio::task::spawn_local(async move {
        Rc::clone(&task).run(Rc::clone(&shared)).await;
        shared.tcp.remove(&key, &task);
        shared.tcp.give_back(buffers);
        shared.counters.tcp_open.subtract(1);
        shared.descriptor_free.notify_one();
    });
    conn
}
