//! What all parts of one stack share, and the way of a frame through them.

use std::cell::{Cell, RefCell};
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use iii_protocol::network::{
    Egress, GATEWAY_IPV4, GATEWAY_IPV6, GATEWAY_MAC, GUEST_IPV4, GUEST_IPV6, GUEST_MAC,
};
use smoltcp::wire::{EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol};
use tokio::sync::{Notify, mpsc};

use crate::handle::Counters;
use crate::link::{Link, Lost, MAX_FRAME};
use crate::pins::Pins;
use crate::policy::{Knowledge, Reason, Verdict, judge};
use crate::report::{Attempt, Event, Reporter};
use crate::resolver::{DNS_PORT, Resolver};
use crate::settings::{HostAddresses, Limits, Settings};
use crate::wire::Packet;
use crate::{icmp, neighbor, tcp, udp};

/// Frames of the guest that are handled before others get their turn.
const FRAMES_AT_ONCE: usize = 64;
/// How long the host's addresses are taken for what they were. To ask takes longer than the rest of a connection's start.
const INTERFACES_AGE: Duration = Duration::from_secs(1);

/// What all parts share. One thread has it, so nothing is locked, and no borrow is held across an await.
pub(crate) struct Shared {
    pub(crate) link: Link,
    pub(crate) egress: Egress,
    pub(crate) limits: Limits,
    pub(crate) counters: Arc<Counters>,
    pub(crate) pins: RefCell<Pins>,
    pub(crate) resolver: Resolver,
    pub(crate) tcp: tcp::Table,
    pub(crate) udp: udp::Table,
    /// A descriptor was closed: who could not accept may try again.
    pub(crate) descriptor_free: Notify,
    /// Where datagrams are received, by one at a time; its room is one of any size, its content the last one.
    pub(crate) datagram: RefCell<Vec<u8>>,
    host_addresses: HostAddresses,
    /// What [`interfaces`] said last, and when.
    interfaces: RefCell<Option<(tokio::time::Instant, Rc<[IpAddr]>)>>,
    reporter: RefCell<Reporter>,
    summary: Notify,
    events: mpsc::Sender<Event>,
    start: tokio::time::Instant,
    seeds: (RandomState, Cell<u64>),
}

impl Shared {
    pub(crate) fn new(
        link: Link,
        egress: Egress,
        settings: Settings,
        counters: Arc<Counters>,
        events: mpsc::Sender<Event>,
    ) -> Rc<Shared> {
        Rc::new(Shared {
            link,
            egress,
            limits: settings.limits,
            counters,
            pins: RefCell::default(),
            resolver: Resolver::new(settings.resolvers),
            tcp: tcp::Table::default(),
            udp: udp::Table::default(),
            descriptor_free: Notify::new(),
            datagram: RefCell::new(Vec::with_capacity(usize::from(u16::MAX))),
            host_addresses: settings.host_addresses,
            interfaces: RefCell::default(),
            reporter: RefCell::default(),
            summary: Notify::new(),
            events,
            start: tokio::time::Instant::now(),
            seeds: (RandomState::new(), Cell::new(0)),
        })
    }

    /// Now, as smoltcp counts.
    pub(crate) fn now(&self) -> smoltcp::time::Instant {
        let micros = i64::try_from(self.start.elapsed().as_micros()).unwrap_or(i64::MAX);
        smoltcp::time::Instant::from_micros(micros)
    }

    /// A time of smoltcp's, as tokio counts.
    pub(crate) fn tokio_time(&self, at: smoltcp::time::Instant) -> tokio::time::Instant {
        let micros = u64::try_from(at.total_micros()).unwrap_or(0);
        self.start + std::time::Duration::from_micros(micros)
    }

    /// A number nobody can guess.
    pub(crate) fn seed(&self) -> u64 {
        let (state, next) = &self.seeds;
        next.set(next.get() + 1);
        state.hash_one(next.get())
    }

    /// Whether this is the gateway's DNS.
    pub(crate) fn is_dns(&self, to: SocketAddr) -> bool {
        to.port() == DNS_PORT && is_gateway(to.ip())
    }

    /// May the guest reach this?
    pub(crate) fn judge(&self, to: IpAddr, port: Option<u16>) -> Verdict {
        // Neither of these asks for them.
        let is_asked = !(matches!(self.egress, Egress::None | Egress::All) || is_gateway(to));
        let own = if is_asked { self.own_addresses() } else { Rc::default() };
        let pins = self.pins.borrow();
        let knowledge = Knowledge { pins: &pins, own: &own, now: std::time::Instant::now() };
        judge(&self.egress, knowledge, to, port)
    }

    /// Whether it was already decided that this destination may be the host itself.
    pub(crate) fn may_reach_host(&self, to: IpAddr) -> bool {
        matches!(self.egress, Egress::All) || is_gateway(to) || self.own_addresses().contains(&to)
    }

    /// The host's own addresses. One that it has only just got is noticed late, and yet in time: a connection that does
    /// not leave the host is known by its two ends.
    fn own_addresses(&self) -> Rc<[IpAddr]> {
        if let HostAddresses::Fixed(own) = &self.host_addresses {
            return own.as_slice().into();
        }
        let now = tokio::time::Instant::now();
        let mut known = self.interfaces.borrow_mut();
        match &*known {
            Some((asked, own)) if now.duration_since(*asked) < INTERFACES_AGE => Rc::clone(own),
            _ => {
                let own: Rc<[IpAddr]> = interfaces().into();
                *known = Some((now, Rc::clone(&own)));
                own
            }
        }
    }

    /// Counts a refusal, and reports it if its turn has come.
    pub(crate) fn denied(&self, attempt: Attempt, reason: Reason) {
        self.counters.denied.add(1);
        let event = self.reporter.borrow_mut().denied(attempt, reason, std::time::Instant::now());
        match event {
            Some(event) => self.tell(event),
            None => self.summary.notify_one(),
        }
    }

    fn tell(&self, event: Event) {
        if self.events.try_send(event).is_err() {
            self.counters.events_dropped.add(1);
        }
    }

    /// Says how much was left out, when it is time; sleeps for ever when nothing was.
    pub(crate) async fn summarise(&self) {
        loop {
            let at = self.reporter.borrow().summary_at();
            match at {
                None => self.summary.notified().await,
                Some(at) => {
                    tokio::time::sleep_until(at.into()).await;
                    let event = self.reporter.borrow_mut().summary(std::time::Instant::now());
                    if let Some(event) = event {
                        self.tell(event);
                    }
                }
            }
        }
    }
}

/// Whether this is one of the gateway's addresses.
pub(crate) fn is_gateway(ip: IpAddr) -> bool {
    ip == IpAddr::V4(GATEWAY_IPV4) || ip == IpAddr::V6(GATEWAY_IPV6)
}

/// Addresses of the host's interfaces.
fn interfaces() -> Vec<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let four = address.as_sockaddr_in().map(|four| IpAddr::V4(four.ip()));
        four.or_else(|| address.as_sockaddr_in6().map(|six| IpAddr::V6(six.ip())))
    };
    interfaces.filter_map(address).collect()
}

/// Takes frames of the guest until its end is gone.
pub(crate) async fn receive(shared: Rc<Shared>) -> Lost {
    // One byte more shows that a frame is too long. Not filled, so that it takes the memory of the frames there are.
    let mut buffer = Vec::with_capacity(MAX_FRAME + 1);
    loop {
        if !shared.link.may_answer() {
            shared.link.clear().await;
        }
        if shared.link.readable().await.is_err() {
            return Lost;
        }
        for _ in 0..FRAMES_AT_ONCE {
            match shared.link.try_receive(&mut buffer) {
                Ok(true) => {
                    shared.counters.frames_from_guest.add(1);
                    frame(&shared, &buffer);
                }
                Ok(false) => break,
                Err(Lost) => return Lost,
            }
            if !shared.link.may_answer() {
                break;
            }
        }
        tokio::task::yield_now().await;
    }
}

/// One frame of the guest, who may have made anything.
pub(crate) fn frame(shared: &Rc<Shared>, bytes: &[u8]) {
    let malformed = || shared.counters.malformed.add(1);
    if bytes.len() > MAX_FRAME {
        return malformed();
    }
    let Ok(frame) = EthernetFrame::new_checked(bytes) else { return malformed() };
    let to = frame.dst_addr();
    if frame.src_addr() != EthernetAddress(GUEST_MAC) {
        return shared.counters.spoofed.add(1);
    }
    if to.is_unicast() && to != EthernetAddress(GATEWAY_MAC) {
        return malformed();
    }
    match frame.ethertype() {
        EthernetProtocol::Arp => neighbor::answer_arp(&shared.link, frame.payload()),
        ethertype @ (EthernetProtocol::Ipv4 | EthernetProtocol::Ipv6) => {
            let Some(packet) = Packet::read(frame.payload()) else { return malformed() };
            if packet.source.is_ipv4() != (ethertype == EthernetProtocol::Ipv4) {
                return malformed();
            }
            ip(shared, &packet, to.is_unicast());
        }
        _ => {}
    }
}

fn ip(shared: &Rc<Shared>, packet: &Packet<'_>, is_unicast: bool) {
    match packet.source {
        IpAddr::V4(GUEST_IPV4) | IpAddr::V6(GUEST_IPV6) => {}
        // Neighbour discovery may come from the link-local address or from none (RFC 4861), and is answered by the rules
        // of its own.
        IpAddr::V6(six) if six.is_unicast_link_local() && packet.protocol == IpProtocol::Icmpv6 => {
            return neighbor::answer_solicitation(&shared.link, packet);
        }
        IpAddr::V6(six) if six.is_unspecified() => return,
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) if packet.protocol == IpProtocol::Udp => {
            return crate::dhcp::ingress(shared, packet);
        }
        _ => return shared.counters.spoofed.add(1),
    }
    match packet.protocol {
        // A connection is between two.
        IpProtocol::Tcp if is_unicast && !packet.destination.is_multicast() => tcp::ingress(shared, packet),
        IpProtocol::Udp => udp::ingress(shared, packet),
        IpProtocol::Icmp | IpProtocol::Icmpv6 => icmp::ingress(shared, packet),
        _ => {}
    }
}
