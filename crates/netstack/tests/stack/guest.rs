//! A guest: a TCP/IP stack of its own at the other end of the link, driven by the test's own thread.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant as StdInstant};

use iii_netstack::{Event, Handle, HostAddresses, Limits, Resolvers, Settings, Stack, pair};
use iii_protocol::network::{
    Egress, GATEWAY_IPV4, GATEWAY_IPV6, GUEST_IPV4, GUEST_IPV6, GUEST_MAC, IPV4_PREFIX, IPV6_PREFIX, MTU,
    Network, PublishedPort,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr};

/// How long a test waits for what it expects.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Guest {
    pub(crate) interface: Interface,
    pub(crate) sockets: SocketSet<'static>,
    pub(crate) wire: Wire,
    start: StdInstant,
    next_port: u16,
}

pub(crate) struct Wire {
    pub(crate) socket: UnixDatagram,
    /// Frames received since the last look, for tests that look at frames.
    pub(crate) seen: Option<Vec<Vec<u8>>>,
}

pub(crate) fn settings() -> Settings {
    Settings {
        resolvers: Resolvers::Fixed(Vec::new()),
        host_addresses: HostAddresses::Interfaces,
        limits: Limits::default(),
    }
}

pub(crate) fn start(egress: Egress) -> (Guest, Handle) {
    start_with(egress, settings())
}

pub(crate) fn start_with(egress: Egress, settings: Settings) -> (Guest, Handle) {
    let (guest, handle, _) = start_published(egress, settings, Vec::new());
    (guest, handle)
}

pub(crate) fn start_published(
    egress: Egress,
    settings: Settings,
    ports: Vec<PublishedPort>,
) -> (Guest, Handle, Vec<SocketAddr>) {
    let bound = Stack::bind(&Network { egress, ports }, settings).unwrap();
    let addresses = bound.addresses();
    let (stack, guest) = pair().unwrap();
    (Guest::new(guest), bound.start(stack).unwrap(), addresses)
}

impl Guest {
    pub(crate) fn new(end: OwnedFd) -> Guest {
        let socket = UnixDatagram::from(end);
        socket.set_nonblocking(true).unwrap();
        let mut wire = Wire { socket, seen: None };
        let mut config = Config::new(EthernetAddress(GUEST_MAC).into());
        config.random_seed = 7;
        let mut interface = Interface::new(config, &mut wire, Instant::ZERO);
        interface.update_ip_addrs(|own| {
            own.push(IpCidr::new(GUEST_IPV4.into(), IPV4_PREFIX)).unwrap();
            own.push(IpCidr::new(GUEST_IPV6.into(), IPV6_PREFIX)).unwrap();
        });
        interface.routes_mut().add_default_ipv4_route(GATEWAY_IPV4).unwrap();
        interface.routes_mut().add_default_ipv6_route(GATEWAY_IPV6).unwrap();
        Guest { interface, sockets: SocketSet::new(vec![]), wire, start: StdInstant::now(), next_port: 20000 }
    }

    pub(crate) fn now(&self) -> Instant {
        Instant::from_micros(i64::try_from(self.start.elapsed().as_micros()).unwrap())
    }

    /// Polls until `done` says so.
    pub(crate) fn until<T>(&mut self, what: &str, mut done: impl FnMut(&mut Guest) -> Option<T>) -> T {
        let deadline = StdInstant::now() + PATIENCE;
        loop {
            let now = self.now();
            self.interface.poll(now, &mut self.wire, &mut self.sockets);
            if let Some(result) = done(self) {
                return result;
            }
            // What `done` put into sockets goes out at once.
            let now = self.now();
            self.interface.poll(now, &mut self.wire, &mut self.sockets);
            assert!(StdInstant::now() < deadline, "waited too long for {what}");
            let now = self.now();
            let delay = self
                .interface
                .poll_delay(now, &self.sockets)
                .map_or(50, |delay| delay.total_millis().min(50));
            let mut events = PollFlags::POLLIN;
            if delay == 0 {
                events |= PollFlags::POLLOUT;
            }
            let mut fds = [PollFd::new(self.wire.socket.as_fd(), events)];
            poll(&mut fds, PollTimeout::from(u16::try_from(delay.max(1)).unwrap())).unwrap();
        }
    }

    /// Begins a connection.
    pub(crate) fn connect(&mut self, to: SocketAddr, buffer: usize) -> SocketHandle {
        let ring = || tcp::SocketBuffer::new(vec![0; buffer]);
        let mut socket = tcp::Socket::new(ring(), ring());
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        let own: IpAddr = if to.is_ipv4() { GUEST_IPV4.into() } else { GUEST_IPV6.into() };
        let port = self.next_port;
        self.next_port += 1;
        socket.connect(self.interface.context(), (to.ip(), to.port()), (own, port)).unwrap();
        self.sockets.add(socket)
    }

    pub(crate) fn listen(&mut self, port: u16, buffer: usize) -> SocketHandle {
        let ring = || tcp::SocketBuffer::new(vec![0; buffer]);
        let mut socket = tcp::Socket::new(ring(), ring());
        socket.listen(port).unwrap();
        self.sockets.add(socket)
    }

    pub(crate) fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub(crate) fn state(&mut self, handle: SocketHandle) -> tcp::State {
        self.tcp(handle).state()
    }

    /// Connects and waits for the answer.
    pub(crate) fn open(&mut self, to: SocketAddr) -> SocketHandle {
        let handle = self.connect(to, 65536);
        self.established(handle);
        handle
    }

    pub(crate) fn established(&mut self, handle: SocketHandle) {
        self.until("a connection", |guest| {
            let state = guest.state(handle);
            assert!(
                matches!(state, tcp::State::SynSent | tcp::State::Established | tcp::State::CloseWait),
                "{state}"
            );
            (state != tcp::State::SynSent).then_some(())
        });
    }

    pub(crate) fn send(&mut self, handle: SocketHandle, bytes: &[u8]) {
        let mut sent = 0;
        self.until("room to send", |guest| {
            let socket = guest.tcp(handle);
            if socket.can_send() {
                sent += socket.send_slice(&bytes[sent..]).unwrap();
            }
            (sent == bytes.len()).then_some(())
        });
    }

    pub(crate) fn receive(&mut self, handle: SocketHandle, length: usize) -> Vec<u8> {
        let mut received = Vec::new();
        self.until("bytes", |guest| {
            let socket = guest.tcp(handle);
            while socket.can_recv() && received.len() < length {
                let mut buffer = vec![0; length - received.len()];
                let count = socket.recv_slice(&mut buffer).unwrap();
                received.extend_from_slice(&buffer[..count]);
            }
            (received.len() == length).then_some(())
        });
        received
    }

    /// Everything up to the end.
    pub(crate) fn receive_to_end(&mut self, handle: SocketHandle) -> Vec<u8> {
        let mut received = Vec::new();
        self.until("the end of a stream", |guest| {
            let socket = guest.tcp(handle);
            while socket.can_recv() {
                socket.recv(|bytes| (bytes.len(), received.extend_from_slice(bytes))).unwrap();
            }
            (!socket.may_recv()).then_some(())
        });
        received
    }

    pub(crate) fn udp(&mut self, port: u16) -> SocketHandle {
        let ring = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; 256 << 10]);
        let mut socket = udp::Socket::new(ring(), ring());
        socket.bind(port).unwrap();
        self.sockets.add(socket)
    }

    pub(crate) fn send_to(&mut self, handle: SocketHandle, to: SocketAddr, bytes: &[u8]) {
        let endpoint = smoltcp::wire::IpEndpoint { addr: to.ip().into(), port: to.port() };
        self.sockets.get_mut::<udp::Socket<'_>>(handle).send_slice(bytes, endpoint).unwrap();
    }

    pub(crate) fn receive_from(&mut self, handle: SocketHandle) -> (Vec<u8>, SocketAddr) {
        self.until("a datagram", |guest| {
            let socket = guest.sockets.get_mut::<udp::Socket<'_>>(handle);
            let (bytes, meta) = socket.recv().ok()?;
            let from = SocketAddr::new(meta.endpoint.addr.into(), meta.endpoint.port);
            Some((bytes.to_vec(), from))
        })
    }

    /// Sends a frame as it is.
    pub(crate) fn raw(&mut self, frame: &[u8]) {
        loop {
            match self.wire.socket.send(frame) {
                Ok(_) => return,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    let mut fds = [PollFd::new(self.wire.socket.as_fd(), PollFlags::POLLOUT)];
                    poll(&mut fds, PollTimeout::from(1000_u16)).unwrap();
                    // The stack does not read while nobody takes its answers.
                    let mut buffer = vec![0; 70000];
                    while self.wire.socket.recv(&mut buffer).is_ok() {}
                }
                // An empty message, say.
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Waits for a frame that `wanted` recognises.
    pub(crate) fn frame<T>(&mut self, what: &str, mut wanted: impl FnMut(&[u8]) -> Option<T>) -> T {
        self.wire.seen.get_or_insert_default();
        self.until(what, |guest| guest.wire.seen.as_mut().unwrap().drain(..).find_map(|frame| wanted(&frame)))
    }

    /// The type and code of the next ICMP error, and the packet it is about.
    pub(crate) fn icmp_error(&mut self) -> (u8, u8, Vec<u8>) {
        self.frame("an ICMP error", |frame| {
            let packet = frame.get(14..)?;
            match packet[0] >> 4 {
                4 if packet[9] == 1 && packet[20] == 3 => {
                    Some((packet[20], packet[21], packet[28..].to_vec()))
                }
                6 if packet[6] == 58 && packet[40] == 1 => {
                    Some((packet[40], packet[41], packet[48..].to_vec()))
                }
                _ => None,
            }
        })
    }
}

/// Waits for an event.
pub(crate) fn event(handle: &mut Handle) -> Event {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(PATIENCE, handle.event())
            .await
            .expect("an event in time")
            .expect("a running stack")
    })
}

/// Waits until something outside the guest is so.
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = StdInstant::now() + PATIENCE;
    while !done() {
        assert!(StdInstant::now() < deadline, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The host's loopback, as a guest calls it.
pub(crate) fn by_gateway(address: SocketAddr) -> SocketAddr {
    let gateway = if address.is_ipv4() { IpAddr::V4(GATEWAY_IPV4) } else { IpAddr::V6(GATEWAY_IPV6) };
    SocketAddr::new(gateway, address.port())
}

pub(crate) fn loopback() -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)
}

pub(crate) struct Rx(Vec<u8>);
pub(crate) struct Tx<'a>(&'a UnixDatagram);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut frame = vec![0; length];
        let result = f(&mut frame);
        // A full link loses the frame, and TCP sends it again.
        let _ = self.0.send(&frame);
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Rx, Tx<'_>)> {
        let mut buffer = vec![0; 70000];
        let length = self.socket.recv(&mut buffer).ok().filter(|length| *length > 0)?;
        buffer.truncate(length);
        if let Some(seen) = &mut self.seen {
            seen.push(buffer.clone());
        }
        Some((Rx(buffer), Tx(&self.socket)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Tx<'_>> {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
        let room = poll(&mut fds, PollTimeout::ZERO).unwrap_or(0);
        (room > 0).then_some(Tx(&self.socket))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MTU as usize + 14;
        capabilities
    }
}
