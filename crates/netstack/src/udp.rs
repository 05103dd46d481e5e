//! Datagrams: one connected socket of the host for each pair of a guest's port and a destination, so that the host's
//! kernel tells what became of them. Echo requests are flows too, with their identifier for a port (see [`crate::icmp`]).

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;

use iii_protocol::network::{GUEST_IPV4, GUEST_IPV6, MTU};
use smoltcp::wire::UdpPacket;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use crate::policy::{Reason, Verdict};
use crate::ports::Peers;
use crate::report::Attempt;
use crate::resolver::{Carrier, First, ask, look};
use crate::stack::Shared;
use crate::tcp::FlowKey;
use crate::wire::{Packet, Unreachable, send_icmp, send_udp, send_unreachable, udp_header};

/// Datagrams of one flow that are passed on before others get their turn.
const DATAGRAMS_AT_ONCE: usize = 32;
/// Port of the key of an echo flow: none.
pub(crate) const ECHO: u16 = 0;

/// All flows.
#[derive(Default)]
pub(crate) struct Table {
    flows: RefCell<HashMap<FlowKey, Rc<Flow>>>,
    /// Flows to published ports.
    pub(crate) peers: RefCell<Peers>,
}

struct Flow {
    key: FlowKey,
    socket: UdpSocket,
    last_used: Cell<Instant>,
    task: RefCell<Option<AbortHandle>>,
}

/// A datagram of the guest.
pub(crate) fn ingress(shared: &Rc<Shared>, packet: &Packet<'_>) {
    let Ok(udp) = UdpPacket::new_checked(packet.payload) else { return shared.counters.malformed.add(1) };
    if udp.src_port() == 0 || udp.dst_port() == 0 {
        return shared.counters.malformed.add(1);
    }
    let key = FlowKey { guest: udp.src_port(), outside: SocketAddr::new(packet.destination, udp.dst_port()) };
    if shared.is_dns(key.outside) {
        return answer_dns(shared, key, packet.source, udp.payload());
    }
    if crate::dhcp::is_request(key) {
        return crate::dhcp::ingress(shared, packet);
    }
    if shared.udp.peers.borrow_mut().pass_on(&key, udp.payload()) {
        return;
    }
    let open = shared.udp.flows.borrow().get(&key).map(Rc::clone);
    let flow = match open {
        Some(flow) => flow,
        None => {
            let host = match shared.judge(key.outside.ip(), Some(key.outside.port())) {
                Verdict::Allowed { host } => host,
                Verdict::Denied { reason } => {
                    shared.denied(Attempt::Udp(key.outside), reason);
                    return send_unreachable(&shared.link, packet.whole, Unreachable::Prohibited);
                }
            };
            match connected(SocketAddr::new(host, key.outside.port())) {
                Ok(socket) if leads_home(&socket) && !shared.may_reach_host(key.outside.ip()) => {
                    shared.denied(Attempt::Udp(key.outside), Reason::Host);
                    return send_unreachable(&shared.link, packet.whole, Unreachable::Prohibited);
                }
                Ok(socket) => open_flow(shared, key, socket),
                Err(error) => return refused(shared, packet.whole, &error),
            }
        }
    };
    flow.send(shared, packet.whole, udp.payload());
}

/// Opens a flow, and ends the one that was silent for longest if there are too many.
fn open_flow(shared: &Rc<Shared>, key: FlowKey, socket: UdpSocket) -> Rc<Flow> {
    let flow = Rc::new(Flow { key, socket, last_used: Cell::new(Instant::now()), task: RefCell::default() });
    let mut flows = shared.udp.flows.borrow_mut();
    if flows.len() >= shared.limits.udp_flows {
        shared.counters.over_limit.add(1);
        let oldest = flows.values().min_by_key(|flow| flow.last_used.get()).map(|flow| flow.key);
        if let Some(old) = oldest.and_then(|key| flows.remove(&key))
            && let Some(task) = old.task.borrow().as_ref()
        {
            task.abort();
        }
    }
    flows.insert(key, Rc::clone(&flow));
    shared.counters.udp_opened.add(1);
    let task = tokio::task::spawn_local(run(Rc::clone(shared), Rc::clone(&flow)));
    *flow.task.borrow_mut() = Some(task.abort_handle());
    flow
}

/// An echo request that the policy has let through; `socket` is what the host sends it with.
pub(crate) fn send_echo(
    shared: &Rc<Shared>,
    packet: &Packet<'_>,
    identifier: u16,
    socket: impl FnOnce() -> io::Result<UdpSocket>,
) {
    let key = FlowKey { guest: identifier, outside: SocketAddr::new(packet.destination, ECHO) };
    let open = shared.udp.flows.borrow().get(&key).map(Rc::clone);
    let flow = match open.map_or_else(|| socket().map(|socket| open_flow(shared, key, socket)), Ok) {
        Ok(flow) => flow,
        Err(error) => return refused(shared, packet.whole, &error),
    };
    flow.send(shared, packet.whole, packet.payload);
}

fn connected(to: SocketAddr) -> io::Result<UdpSocket> {
    let any = match to {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = std::net::UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

/// Whether what should leave the host would not.
fn leads_home(socket: &UdpSocket) -> bool {
    matches!((socket.local_addr(), socket.peer_addr()), (Ok(local), Ok(peer)) if local.ip() == peer.ip())
}

fn refused(shared: &Shared, packet: &[u8], error: &io::Error) {
    shared.counters.udp_failed.add(1);
    // No descriptors, no memory: the guest hears that it cannot be, rather than nothing.
    send_unreachable(&shared.link, packet, Unreachable::of(error).unwrap_or(Unreachable::Host));
}

impl Flow {
    fn send(&self, shared: &Shared, packet: &[u8], payload: &[u8]) {
        self.last_used.set(Instant::now());
        // Not tokio's `try_send`, which knows nothing of a socket that is new.
        match SockRef::from(&self.socket).send(payload) {
            Ok(_) => {}
            // As on any full wire.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                if Unreachable::of(&error).is_some() {
                    refused(shared, packet, &error);
                }
            }
        }
    }

    /// Passes on what came back.
    fn take(&self, shared: &Shared) {
        let mut buffer = shared.datagram.borrow_mut();
        for _ in 0..DATAGRAMS_AT_ONCE {
            buffer.clear();
            match self.socket.try_recv_buf(&mut *buffer) {
                Ok(length) if length <= MAX_PAYLOAD => self.reply(shared, &mut buffer[..length]),
                Ok(_) => shared.counters.frames_dropped.add(1),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => self.failed(shared, &error),
            }
            if !shared.link.is_clear() {
                return;
            }
        }
    }

    /// Passes on one datagram that came back.
    fn reply(&self, shared: &Shared, payload: &mut [u8]) {
        self.last_used.set(Instant::now());
        let outside = self.key.outside;
        let guest = guest_of(outside.ip());
        if outside.port() != ECHO {
            return send_udp(&shared.link, (outside.ip(), outside.port()), (guest, self.key.guest), payload);
        }
        // An echo reply, of which the host's kernel has changed the identifier.
        if payload.len() >= 8 && matches!(payload[0], 0 | 129) {
            payload[4..6].copy_from_slice(&self.key.guest.to_be_bytes());
            send_icmp(&shared.link, outside.ip(), guest, payload);
        }
    }

    /// Tells the guest that its datagrams do not arrive.
    fn failed(&self, shared: &Shared, error: &io::Error) {
        let outside = self.key.outside;
        if let Some(why) = Unreachable::of(error)
            && outside.port() != ECHO
        {
            shared.counters.udp_failed.add(1);
            let about = udp_header((guest_of(outside.ip()), self.key.guest), (outside.ip(), outside.port()));
            send_unreachable(&shared.link, &about, why);
        }
    }
}

/// The guest's address of the same family.
pub(crate) fn guest_of(ip: IpAddr) -> IpAddr {
    if ip.is_ipv4() { IpAddr::V4(GUEST_IPV4) } else { IpAddr::V6(GUEST_IPV6) }
}

/// Bytes of the largest datagram the link carries; larger ones are dropped.
pub(crate) const MAX_PAYLOAD: usize = MTU as usize - 40 - 8;

/// The error a socket was woken for, so that it wakes nobody for it again.
pub(crate) fn take_error(socket: &UdpSocket) -> Option<io::Error> {
    let error = socket.take_error().ok().flatten();
    let _ = socket.try_io(Interest::ERROR, || io::Result::<()>::Err(io::ErrorKind::WouldBlock.into()));
    error
}

async fn run(shared: Rc<Shared>, flow: Rc<Flow>) {
    loop {
        shared.link.clear().await;
        let end = flow.last_used.get() + shared.limits.udp_idle;
        tokio::select! {
            // What the network says about a datagram is an error without anything to read.
            ready = flow.socket.ready(Interest::READABLE | Interest::ERROR) => match ready {
                Ok(ready) if ready.is_error() => {
                    if let Some(error) = take_error(&flow.socket) {
                        flow.failed(&shared, &error);
                    }
                }
                Ok(_) => {}
                Err(_) => break,
            },
            () = sleep_until(end) => {
                if flow.last_used.get() + shared.limits.udp_idle <= Instant::now() {
                    break;
                }
                continue;
            }
        }
        flow.take(&shared);
        tokio::task::yield_now().await;
    }
    let mut flows = shared.udp.flows.borrow_mut();
    if flows.get(&flow.key).is_some_and(|open| Rc::ptr_eq(open, &flow)) {
        flows.remove(&flow.key);
    }
    drop(flows);
    shared.descriptor_free.notify_one();
}

fn answer_dns(shared: &Rc<Shared>, key: FlowKey, guest: IpAddr, message: &[u8]) {
    let from = (key.outside.ip(), key.outside.port());
    match look(shared, message) {
        First::Answer(None) => {}
        First::Answer(Some(answer)) => send_udp(&shared.link, from, (guest, key.guest), &answer),
        First::Ask(inquiry) => {
            let shared = Rc::clone(shared);
            tokio::task::spawn_local(async move {
                let answer = ask(&shared, inquiry, Carrier::Udp).await;
                if answer.len() <= MAX_PAYLOAD {
                    send_udp(&shared.link, from, (guest, key.guest), &answer);
                }
            });
        }
    }
}
