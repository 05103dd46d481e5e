//! Ports of the guest that the host answers on. All are bound before the guest begins, so that a port somebody else has
//! is an error of the start and not a silence later.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdTcpListener, UdpSocket as StdUdpSocket};
use std::rc::Rc;
use std::time::Duration;

use iii_protocol::network::{GATEWAY_IPV4, GUEST_IPV4, PublishedPort, Transport};
use socket2::SockRef;
use tokio::net::{TcpListener, UdpSocket};
use tokio::time::Instant;

use crate::holder::{Holder, find_holder};
use crate::stack::Shared;
use crate::tcp::{EPHEMERAL, FlowKey, open_to_guest};
use crate::udp::MAX_PAYLOAD;
use crate::wire::send_udp;

/// How long accepting rests when the process has no more descriptors, unless one becomes free before.
const ACCEPT_REST: Duration = Duration::from_millis(500);
/// Datagrams of one port that are passed on before others get their turn.
const DATAGRAMS_AT_ONCE: usize = 32;
/// Peers of all published UDP ports.
pub const MAX_PEERS: usize = 4096;

/// A published port could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {} {}{}: {source}", port.transport, port.host, holder.as_ref().map(Holder::told).unwrap_or_default())]
#[non_exhaustive]
pub struct BindError {
    /// Which.
    pub port: PublishedPort,
    /// Who has it, if that could be found out.
    pub holder: Option<Holder>,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

/// Published ports, bound.
#[derive(Debug, Default)]
pub(crate) struct BoundPorts {
    tcp: Vec<(PublishedPort, StdTcpListener)>,
    udp: Vec<(PublishedPort, StdUdpSocket)>,
}

impl BoundPorts {
    /// Binds all of them, or none.
    pub(crate) fn bind(ports: &[PublishedPort]) -> Result<BoundPorts, BindError> {
        let mut bound = BoundPorts::default();
        for port in ports {
            let failed = |source: io::Error| {
                let in_use = source.kind() == io::ErrorKind::AddrInUse;
                let holder = if in_use { find_holder(port.transport, port.host) } else { None };
                BindError { port: *port, holder, source }
            };
            match port.transport {
                Transport::Tcp => bound.tcp.push((*port, listen(port.host).map_err(failed)?)),
                Transport::Udp => bound.udp.push((*port, receive_at(port.host).map_err(failed)?)),
            }
        }
        Ok(bound)
    }

    /// Where they are bound, in the order of TCP and then UDP; port 0 has become a real one.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        let tcp = self.tcp.iter().filter_map(|(_, socket)| socket.local_addr().ok());
        tcp.chain(self.udp.iter().filter_map(|(_, socket)| socket.local_addr().ok())).collect()
    }

    /// Begins to serve them. Fails only where the runtime does.
    pub(crate) fn serve(self, shared: &Rc<Shared>) -> io::Result<()> {
        for (port, listener) in self.tcp {
            let listener = TcpListener::from_std(listener)?;
            tokio::task::spawn_local(accept(Rc::clone(shared), listener, port.guest));
        }
        for (index, (port, socket)) in self.udp.into_iter().enumerate() {
            let socket = Rc::new(UdpSocket::from_std(socket)?);
            tokio::task::spawn_local(receive(Rc::clone(shared), socket, index, port.guest));
        }
        Ok(())
    }
}

fn listen(address: SocketAddr) -> io::Result<StdTcpListener> {
    let listener = StdTcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn receive_at(address: SocketAddr) -> io::Result<StdUdpSocket> {
    let socket = StdUdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

async fn accept(shared: Rc<Shared>, listener: TcpListener, guest: u16) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => open_to_guest(&shared, stream, guest),
            // The one that left while it waited.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to a published port");
                let _ = tokio::time::timeout(ACCEPT_REST, shared.descriptor_free.notified()).await;
            }
        }
        tokio::task::yield_now().await;
    }
}

/// Who talks to published UDP ports, each by a port of the gateway of its own.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    by_flow: HashMap<FlowKey, Peer>,
    by_peer: HashMap<(usize, SocketAddr), FlowKey>,
    next_port: u16,
}

#[derive(Debug)]
struct Peer {
    socket: Rc<UdpSocket>,
    /// Which published port, counted.
    index: usize,
    address: SocketAddr,
    last_used: Instant,
}

impl Peers {
    /// Passes a datagram of the guest to the peer it answers. `false` when it answers none.
    pub(crate) fn pass_on(&mut self, key: &FlowKey, payload: &[u8]) -> bool {
        let Some(peer) = self.by_flow.get_mut(key) else { return false };
        peer.last_used = Instant::now();
        // A full socket drops, as a wire does. An error is the peer's affair.
        let _ = SockRef::from(&*peer.socket).send_to(payload, &peer.address.into());
        true
    }

    /// The flow of a datagram of `address`, a new one if need be.
    fn of(
        &mut self,
        socket: &Rc<UdpSocket>,
        index: usize,
        address: SocketAddr,
        guest: u16,
    ) -> Option<FlowKey> {
        if let Some(key) = self.by_peer.get(&(index, address)).copied() {
            if let Some(peer) = self.by_flow.get_mut(&key) {
                peer.last_used = Instant::now();
            }
            return Some(key);
        }
        if self.by_flow.len() >= MAX_PEERS {
            let oldest = self.by_flow.iter().min_by_key(|(_, peer)| peer.last_used).map(|(key, _)| *key)?;
            self.forget(&oldest);
        }
        let count = EPHEMERAL.end() - EPHEMERAL.start();
        for _ in 0..=count {
            let port = EPHEMERAL.start() + self.next_port;
            self.next_port = if self.next_port == count { 0 } else { self.next_port + 1 };
            let key = FlowKey { guest, outside: SocketAddr::new(IpAddr::V4(GATEWAY_IPV4), port) };
            if let Entry::Vacant(room) = self.by_flow.entry(key) {
                room.insert(Peer { socket: Rc::clone(socket), index, address, last_used: Instant::now() });
                self.by_peer.insert((index, address), key);
                return Some(key);
            }
        }
        None
    }

    fn forget(&mut self, key: &FlowKey) {
        if let Some(peer) = self.by_flow.remove(key) {
            self.by_peer.remove(&(peer.index, peer.address));
        }
    }

    /// Forgets who was silent for too long; says when to do so next.
    fn forget_idle(&mut self, index: usize, idle: Duration) -> Option<Instant> {
        let now = Instant::now();
        let old = self.by_flow.iter().filter(|(_, peer)| peer.index == index && peer.last_used + idle <= now);
        for key in old.map(|(key, _)| *key).collect::<Vec<_>>() {
            self.forget(&key);
        }
        self.by_flow.values().filter(|peer| peer.index == index).map(|peer| peer.last_used + idle).min()
    }
}

async fn receive(shared: Rc<Shared>, socket: Rc<UdpSocket>, index: usize, guest: u16) {
    let mut forget_at: Option<Instant> = None;
    loop {
        shared.link.clear().await;
        let idle = async {
            match forget_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ready = socket.readable() => if ready.is_err() { return },
            () = idle => {
                forget_at = shared.udp.peers.borrow_mut().forget_idle(index, shared.limits.udp_idle);
                continue;
            }
        }
        forget_at = forget_at.or_else(|| Some(Instant::now() + shared.limits.udp_idle));
        take(&shared, &socket, index, guest);
        tokio::task::yield_now().await;
    }
}

/// Passes on what peers have sent.
fn take(shared: &Shared, socket: &Rc<UdpSocket>, index: usize, guest: u16) {
    let mut buffer = shared.datagram.borrow_mut();
    for _ in 0..DATAGRAMS_AT_ONCE {
        buffer.clear();
        match socket.try_recv_buf_from(&mut *buffer) {
            Ok((length, address)) if length <= MAX_PAYLOAD => {
                let key = shared.udp.peers.borrow_mut().of(socket, index, address, guest);
                if let Some(key) = key {
                    let from = (key.outside.ip(), key.outside.port());
                    send_udp(&shared.link, from, (IpAddr::V4(GUEST_IPV4), guest), &buffer[..length]);
                }
            }
            Ok(_) => shared.counters.frames_dropped.add(1),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            // What a peer's kernel said about an earlier datagram.
            Err(_) => {}
        }
        if !shared.link.is_clear() {
            return;
        }
    }
}
