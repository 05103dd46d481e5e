//! The link to the guest: one datagram is one Ethernet frame.
//!
//! Nothing is lost on it: who finds it full waits. Frames that cannot wait (answers to a frame of the guest) go to a
//! short queue, and while that is not empty, nothing is read from the guest. So a guest that does not take its frames
//! gets no more answers, and nothing grows.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram as StdUnixDatagram;
use std::rc::Rc;
use std::sync::Arc;

use iii_protocol::network::{GATEWAY_MAC, GUEST_MAC, MTU};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{EthernetAddress, EthernetFrame, EthernetProtocol, IpRepr};
use tokio::net::UnixDatagram;
use tokio::sync::Notify;

use crate::handle::Counters;

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET_HEADER: usize = 14;
/// Bytes of the largest frame.
pub(crate) const MAX_FRAME: usize = MTU as usize + ETHERNET_HEADER;
/// Frames that wait for the guest to make room; one more is dropped.
pub const MAX_QUEUED_FRAMES: usize = 128;
/// Bytes of those frames.
pub const MAX_QUEUED_BYTES: usize = 1 << 20;
/// Tasks that are woken at once when there is room again. The link takes about this many large frames.
const WAKE_AT_ONCE: usize = 8;
/// Buffer that is asked for at both ends of [`pair`]. The kernel gives less where `net.core.wmem_max` is less.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// Makes the two ends of a link: the stack's, and the one that the VMM gives to `krun_add_net_unixgram`.
///
/// The sockets keep the borders of messages as datagram sockets do, and beyond that tell each end when the other one
/// has gone (`SOCK_SEQPACKET`), which a pair of `SOCK_DGRAM` does only to who sends. Both close on exec.
///
/// # Errors
/// What `socketpair` says.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (stack, guest) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    for end in [&stack, &guest] {
        // What a sender may have on its way. Less is slower and as good.
        let _ = setsockopt(end, sockopt::SndBuf, &SOCKET_BUFFER_BYTES);
    }
    Ok((stack, guest))
}

/// A task that may be woken: by the link when there is room, or by anybody else.
#[derive(Debug, Default)]
pub(crate) struct Waiter {
    notify: Notify,
    /// It stands in the link's queue, in which nobody stands twice.
    is_queued: Cell<bool>,
}

impl Waiter {
    pub(crate) fn wake(&self) {
        self.notify.notify_one();
    }

    pub(crate) async fn woken(&self) {
        self.notify.notified().await;
    }
}

/// The guest's end is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lost;

/// The stack's end.
#[derive(Debug)]
pub(crate) struct Link {
    socket: UnixDatagram,
    /// Whether an empty message is the end. On a datagram socket it is only an empty frame.
    has_end: bool,
    queue: RefCell<VecDeque<Vec<u8>>>,
    queued_bytes: Cell<usize>,
    is_full: Cell<bool>,
    lost: Cell<bool>,
    /// Wakes [`run`](Self::run).
    work: Notify,
    waiting: RefCell<VecDeque<Rc<Waiter>>>,
    /// Where frames are put together; as large as the largest so far, so that an idle stack does not hold one.
    scratch: RefCell<Vec<u8>>,
    counters: Arc<Counters>,
}

impl Link {
    pub(crate) fn new(guest: OwnedFd, counters: Arc<Counters>) -> io::Result<Link> {
        let kind = socket2::SockRef::from(&guest).r#type()?;
        let socket = StdUnixDatagram::from(guest);
        socket.set_nonblocking(true)?;
        Ok(Link {
            socket: UnixDatagram::from_std(socket)?,
            has_end: kind != socket2::Type::DGRAM,
            queue: RefCell::default(),
            queued_bytes: Cell::new(0),
            is_full: Cell::new(false),
            lost: Cell::new(false),
            work: Notify::new(),
            waiting: RefCell::default(),
            scratch: RefCell::default(),
            counters,
        })
    }

    /// Whether a frame would be on its way at once.
    pub(crate) fn is_clear(&self) -> bool {
        !self.is_full.get()
    }

    /// Whether frames of the guest may be answered.
    pub(crate) fn may_answer(&self) -> bool {
        self.queue.borrow().len() < MAX_QUEUED_FRAMES / 2 && self.queued_bytes.get() < MAX_QUEUED_BYTES / 2
    }

    /// Asks for one wake-up when there is room.
    pub(crate) fn wake_when_clear(&self, who: &Rc<Waiter>) {
        if !who.is_queued.replace(true) {
            self.waiting.borrow_mut().push_back(Rc::clone(who));
            self.work.notify_one();
        }
    }

    /// Returns when there is room.
    pub(crate) async fn clear(&self) {
        while self.is_full.get() && !self.lost.get() {
            let room = Rc::new(Waiter::default());
            self.wake_when_clear(&room);
            room.woken().await;
        }
    }

    /// Sends an IP packet; `emit` writes what follows its header. The packet is queued if the link is full, and dropped
    /// if that is full too or the packet too large.
    pub(crate) fn send_ip(&self, ip: &IpRepr, emit: impl FnOnce(&mut [u8])) {
        self.send_packet(ip.buffer_len(), |packet| {
            let (header, payload) = packet.split_at_mut(ip.header_len());
            // The header's length fields are of the representation, so the header alone is enough room.
            ip.emit(header, &ChecksumCapabilities::default());
            emit(payload);
        });
    }

    /// Sends a frame whose payload is `length` bytes that `emit` writes.
    pub(crate) fn send_frame<R>(
        &self,
        ethertype: EthernetProtocol,
        length: usize,
        emit: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        let mut scratch = self.scratch.borrow_mut();
        let total = ETHERNET_HEADER + length;
        begin(&mut scratch, total);
        EthernetFrame::new_unchecked(&mut scratch[..total]).set_ethertype(ethertype);
        let result = emit(&mut scratch[ETHERNET_HEADER..total]);
        self.transmit(&scratch[..total]);
        result
    }

    /// Sends an IP packet that `emit` writes as a whole; its first byte says which version it is.
    pub(crate) fn send_packet<R>(&self, length: usize, emit: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut scratch = self.scratch.borrow_mut();
        let total = ETHERNET_HEADER + length;
        begin(&mut scratch, total);
        let result = emit(&mut scratch[ETHERNET_HEADER..total]);
        let is_six = scratch.get(ETHERNET_HEADER).is_some_and(|first| first >> 4 == 6);
        let ethertype = if is_six { EthernetProtocol::Ipv6 } else { EthernetProtocol::Ipv4 };
        EthernetFrame::new_unchecked(&mut scratch[..total]).set_ethertype(ethertype);
        self.transmit(&scratch[..total]);
        result
    }

    fn transmit(&self, frame: &[u8]) {
        if self.lost.get() || frame.len() > MAX_FRAME {
            self.counters.frames_dropped.add(1);
            return;
        }
        if self.is_clear() {
            match self.socket.try_send(frame) {
                Ok(_) => return self.counters.frames_to_guest.add(1),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.is_full.set(true),
                Err(error) => return self.failed(&error),
            }
        }
        let mut queue = self.queue.borrow_mut();
        if queue.len() >= MAX_QUEUED_FRAMES || self.queued_bytes.get() + frame.len() > MAX_QUEUED_BYTES {
            self.counters.frames_dropped.add(1);
            return;
        }
        self.queued_bytes.set(self.queued_bytes.get() + frame.len());
        queue.push_back(frame.to_vec());
        self.work.notify_one();
    }

    fn failed(&self, error: &io::Error) {
        self.counters.frames_dropped.add(1);
        if is_loss(error) {
            self.lost.set(true);
            self.work.notify_one();
        }
    }

    /// Receives one frame into the room of `buffer` if there is one, without waiting; whether there was.
    pub(crate) fn try_receive(&self, buffer: &mut Vec<u8>) -> Result<bool, Lost> {
        buffer.clear();
        match self.socket.try_recv_buf(buffer) {
            Ok(0) if self.has_end => Err(Lost),
            Ok(_) => Ok(true),
            Err(error) if is_loss(&error) => Err(Lost),
            Err(_) => Ok(false),
        }
    }

    /// Returns when there may be a frame.
    pub(crate) async fn readable(&self) -> Result<(), Lost> {
        self.socket.readable().await.map_err(|_| Lost)
    }

    /// Sends what is queued, wakes who waits for room, in turn. Returns when the guest's end is gone.
    pub(crate) async fn run(&self) -> Lost {
        loop {
            if self.lost.get() {
                return Lost;
            }
            if self.is_full.get() {
                if self.socket.writable().await.is_err() {
                    return Lost;
                }
                self.flush();
                continue;
            }
            let batch: Vec<_> = {
                let mut waiting = self.waiting.borrow_mut();
                let count = waiting.len().min(WAKE_AT_ONCE);
                waiting.drain(..count).collect()
            };
            if batch.is_empty() {
                self.work.notified().await;
                continue;
            }
            for one in batch {
                one.is_queued.set(false);
                one.wake();
            }
            // They go first; whether there is room for more is seen afterwards.
            tokio::task::yield_now().await;
        }
    }

    fn flush(&self) {
        let mut queue = self.queue.borrow_mut();
        while let Some(frame) = queue.front() {
            match self.socket.try_send(frame) {
                Ok(_) => self.counters.frames_to_guest.add(1),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => self.failed(&error),
            }
            self.queued_bytes.set(self.queued_bytes.get() - frame.len());
            queue.pop_front();
        }
        self.is_full.set(false);
    }
}

/// Writes both hardware addresses.
fn begin(scratch: &mut Vec<u8>, total: usize) {
    if scratch.len() < total {
        // The largest so far; one that is larger than any may be is dropped when it is sent.
        scratch.resize(total, 0);
    }
    let mut frame = EthernetFrame::new_unchecked(&mut scratch[..total]);
    frame.set_src_addr(EthernetAddress(GATEWAY_MAC));
    frame.set_dst_addr(EthernetAddress(GUEST_MAC));
}

/// Whether an error of the socket means that nobody is there any more.
fn is_loss(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::NotConnected
            | io::ErrorKind::BrokenPipe
    )
}
