//! One TCP connection with the guest, as smoltcp runs it: an interface of its own with one socket.
//!
//! One interface for all would look at every socket for every packet. Here the flow table finds the connection, so that
//! thousands of idle ones cost a busy one nothing.

use std::net::SocketAddr;

use iii_protocol::network::MTU;
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint};

use super::{FROM_GUEST_BYTES, SMALL_BUFFER_BYTES, TO_GUEST_BYTES};
use crate::checksum;
use crate::link::Link;

/// How long the guest may take to complete a handshake.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(30);

/// The guest's half of a connection.
pub(crate) struct Machine {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    is_established: bool,
    /// Both sides have said their FIN, and the guest has acknowledged ours.
    is_orderly: bool,
}

/// Bytes of the two buffers of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Buffers {
    from_guest: usize,
    to_guest: usize,
}

impl Buffers {
    pub(crate) const LARGE: Buffers = Buffers { from_guest: FROM_GUEST_BYTES, to_guest: TO_GUEST_BYTES };
    pub(crate) const SMALL: Buffers =
        Buffers { from_guest: SMALL_BUFFER_BYTES, to_guest: SMALL_BUFFER_BYTES };

    pub(crate) const fn total(self) -> usize {
        self.from_guest + self.to_guest
    }
}

/// What a poll left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// All there was.
    All,
    /// The link is full.
    LinkFull,
}

/// How a connection with the guest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Both sides said their FIN.
    Orderly,
    /// It was reset, or never came to be.
    Reset,
}

impl Machine {
    /// Waits for the guest's SYN to `outside`, which is to be fed next. `None` for addresses that no socket can have.
    pub(crate) fn listen(outside: SocketAddr, buffers: Buffers, seed: u64, now: Instant) -> Option<Machine> {
        let mut machine = Machine::new(outside, buffers, seed, now)?;
        machine.socket().listen(endpoint(outside)).ok()?;
        Some(machine)
    }

    /// Connects to the guest.
    pub(crate) fn connect(
        outside: SocketAddr,
        guest: SocketAddr,
        buffers: Buffers,
        seed: u64,
        now: Instant,
    ) -> Option<Machine> {
        let mut machine = Machine::new(outside, buffers, seed, now)?;
        let socket = machine.sockets.get_mut::<Socket<'_>>(machine.handle);
        socket.connect(machine.interface.context(), endpoint(guest), endpoint(outside)).ok()?;
        Some(machine)
    }

    fn new(outside: SocketAddr, buffers: Buffers, seed: u64, now: Instant) -> Option<Machine> {
        let address = IpAddress::from(outside.ip());
        if !address.is_unicast() || outside.port() == 0 {
            return None;
        }
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut Capabilities, now);
        interface.update_ip_addrs(|own| {
            let prefix = if outside.is_ipv4() { 32 } else { 128 };
            // One address is all there is, and there is room for one.
            let _ = own.push(IpCidr::new(address, prefix));
        });
        let ring = |bytes| SocketBuffer::new(vec![0; bytes]);
        let mut socket = Socket::new(ring(buffers.from_guest), ring(buffers.to_guest));
        // The kernels at both ends have their own ideas of when to wait, and acknowledgements are few with this MTU.
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.set_timeout(Some(HANDSHAKE));
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Some(Machine { interface, sockets, handle, is_established: false, is_orderly: false })
    }

    pub(crate) fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// Takes a packet of the guest.
    pub(crate) fn ingress(&mut self, packet: &[u8], link: &Link, now: Instant) {
        let before = self.socket().state();
        let mut port = Port { packet: Some(packet), link };
        self.interface.poll_ingress_single(now, &mut port, &mut self.sockets);
        let after = self.socket().state();
        // An RST in `LastAck` looks the same, and means the same by then.
        self.is_orderly |= after == State::TimeWait || (before == State::LastAck && after == State::Closed);
        if !self.is_established && matches!(after, State::Established | State::CloseWait) {
            self.is_established = true;
            // From here on a guest may be silent for as long as it likes.
            self.socket().set_timeout(None);
        }
    }

    /// Sends what there is to send.
    pub(crate) fn egress(&mut self, link: &Link, now: Instant) -> Sent {
        let mut port = Port { packet: None, link };
        loop {
            if !link.is_clear() {
                let is_due = self.deadline(now).is_some_and(|at| at <= now);
                return if is_due { Sent::LinkFull } else { Sent::All };
            }
            if self.interface.poll_egress(now, &mut port, &mut self.sockets) == PollResult::None {
                return Sent::All;
            }
        }
    }

    /// When to poll next though nothing happens.
    pub(crate) fn deadline(&mut self, now: Instant) -> Option<Instant> {
        self.interface.poll_at(now, &self.sockets)
    }

    /// Whether the handshake is over.
    pub(crate) fn is_established(&self) -> bool {
        self.is_established
    }

    /// Whether the guest has said that it will send no more.
    pub(crate) fn has_guest_finished(&mut self) -> bool {
        matches!(self.socket().state(), State::CloseWait | State::LastAck | State::Closing | State::TimeWait)
            || self.is_orderly
    }

    /// Whether nothing more will happen.
    pub(crate) fn end(&mut self) -> Option<End> {
        if self.is_orderly {
            // Should our last acknowledgement be lost, an RST answers the guest's repetition.
            return Some(End::Orderly);
        }
        match self.socket().state() {
            // An RST to our SYN+ACK makes smoltcp listen again.
            State::Closed | State::Listen => Some(End::Reset),
            _ => None,
        }
    }
}

fn endpoint(address: SocketAddr) -> IpEndpoint {
    IpEndpoint { addr: address.ip().into(), port: address.port() }
}

/// The device as one connection sees it while it is polled.
struct Port<'a> {
    packet: Option<&'a [u8]>,
    link: &'a Link,
}

struct Received<'a>(&'a [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

struct ToSend<'a>(&'a Link);

impl TxToken for ToSend<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        self.0.send_packet(length, |packet| {
            let result = f(packet);
            checksum::fill_tcp(packet);
            result
        })
    }
}

impl Device for Port<'_> {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = ToSend<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, ToSend<'_>)> {
        self.packet.take().map(|packet| (Received(packet), ToSend(self.link)))
    }

    fn transmit(&mut self, _: Instant) -> Option<ToSend<'_>> {
        self.link.is_clear().then_some(ToSend(self.link))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities()
    }
}

/// The device while an interface is made, which only asks what it can do.
struct Capabilities;

impl Device for Capabilities {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = ToSend<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, ToSend<'_>)> {
        None
    }

    fn transmit(&mut self, _: Instant) -> Option<ToSend<'_>> {
        None
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities()
    }
}

fn capabilities() -> DeviceCapabilities {
    let mut checksums = ChecksumCapabilities::default();
    // The link is memory. libkrun drops the header that says "checksum not computed yet", so a guest that was offered
    // to leave it out sends none, and there is nothing to verify. Ours are filled in as they are sent.
    checksums.tcp = Checksum::None;
    let mut capabilities = DeviceCapabilities::default();
    capabilities.medium = Medium::Ip;
    capabilities.max_transmission_unit = MTU as usize;
    capabilities.checksum = checksums;
    capabilities
}
