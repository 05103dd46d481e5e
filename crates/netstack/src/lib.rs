#![forbid(unsafe_code)]
#![warn(missing_docs, missing_debug_implementations)]
//! The network of one guest, in user space and without privileges: the guest's Ethernet frames on one side, ordinary
//! sockets of the host on the other.
//!
//! ```text
//!  guest ── virtio-net ── VMM ══ link ══ stack ─┬─ ARP, NDP, DHCP, echo: the gateway answers
//!                        (one message           ├─ DNS: asked of the host's resolvers, as it is
//!                         is one frame)         ├─ TCP: policy, then a connection of the host
//!                                               ├─ UDP, echo: policy, then a socket per flow
//!  host's client ── published port ─────────────┘
//! ```
//! [`Stack::bind`] binds the published ports, [`Bound::start`] gives the stack its end of the link and a thread of its
//! own, and the [`Handle`] tells what was refused ([`Event`]), counts ([`Counters`]), and ends everything when dropped.
//!
//! # How it is built
//! One thread runs everything, so nothing is locked. A frame goes `stack` → `tcp`, `udp`, `icmp` or `neighbor` → a
//! connection or flow, found by its ports. Each TCP connection is a smoltcp interface of its own with one socket, so the
//! number of idle ones costs a busy one nothing. What a guest may reach is decided by [`judge`], a pure function, once
//! for each connection or flow: one that is open stays open when its name's time is over. Nothing wakes up by itself:
//! timers exist only while something waits for them.
//!
//! Nothing grows without bound. Bytes of a connection lie in the two buffers of its socket and nowhere else (512 KiB
//! to the guest and 128 KiB from it while few have them, 16 KiB later). Each table has its limit in
//! [`Limits`], each queue a constant.
//!
//! # What the VMM does with its end
//! From libkrun 1.19 (`devices/src/virtio/net`), which matters to who starts it:
//!
//! - One message is one Ethernet frame, without frame check sequence and **without a virtio-net header**: libkrun takes
//!   it off what the guest sends (12 bytes, `virtio_net_hdr_v1`) and puts one of zeros before what the guest receives.
//!   A descriptor that is passed (instead of a path) gets no `VFKT` greeting.
//! - What a header would have said is lost, so `HOST_TSO*` and `HOST_UFO` must not be offered: a frame that is larger
//!   than the MTU says nothing of how to cut it. `CSUM` may be: checksums of TCP and UDP are not verified here, as the
//!   link is memory, and a guest that leaves them out saves the work. To the guest all checksums are complete.
//! - **A guest receives no frame larger than 1514 bytes unless `GUEST_TSO4` or `GUEST_TSO6` (with `GUEST_CSUM`) is
//!   offered**, because libkrun has no `VIRTIO_NET_F_MTU`: Linux makes its receive buffers large only then, whatever MTU
//!   its interface is given. The stack sends frames of up to [`MTU`](iii_protocol::network::MTU) + 14 bytes.
//! - Its buffer has 65562 bytes with the header of 12; longer frames would be cut. Ours have at most 65534.
//! - It sets its end to non-blocking, and sets no buffer sizes on a passed descriptor: [`pair`] does.
//! - When our end is full, it keeps the guest's frame and tries again when the socket is writable (edge-triggered); the
//!   guest's own queue fills meanwhile. When the guest has no receive buffers, it keeps one frame, reads no more, and our
//!   end becomes full. So the link loses nothing, either way, and the stack relies on that for speed, not for
//!   correctness.
//! - When our end is gone, it says so on its standard error and the guest's network is dead; the guest goes on. When
//!   *its* end is gone, a pair of `SOCK_DGRAM` tells us only at the next frame we send (`ECONNREFUSED`); that is why
//!   [`pair`] makes a `SOCK_SEQPACKET`, which libkrun cannot tell apart: it only sends, receives and polls. The shim
//!   must not keep the VMM's end open itself.
//!
//! # What it does not do
//! IP fragments and IPv6 extension headers are dropped: with this MTU no honest guest needs them. Multicast and
//! broadcast do not leave. A published port leads to the guest's IPv4 address.

mod checksum;
mod dhcp;
mod dns;
mod dns_stream;
mod handle;
mod holder;
mod icmp;
mod link;
mod neighbor;
mod pins;
mod policy;
mod ports;
mod report;
mod resolver;
mod settings;
mod special;
mod stack;
mod tcp;
mod udp;
mod wire;

pub use handle::{Bound, Counter, Counters, Handle, Stack};
pub use holder::Holder;
pub use link::{MAX_QUEUED_BYTES, MAX_QUEUED_FRAMES, pair};
pub use pins::{Full, MAX_NAMES_OF_ADDRESS, MAX_PINS, MAX_REBOUND, MAX_REFUSALS, MAX_TTL, PIN_GRACE, Pins};
pub use policy::{Knowledge, Reason, Verdict, is_ruled, judge, may_ask, name_matches};
pub use ports::{BindError, MAX_PEERS};
pub use report::{
    Attempt, Event, REFUSALS_PER_SECOND, REMEMBERED_REFUSALS, SAME_REFUSAL_EVERY, SUMMARY_AFTER,
};
pub use settings::{HostAddresses, Limits, RESOLV_CONF, Resolvers, Settings};
pub use special::special;
pub use tcp::{BUFFERS_BYTES, FROM_GUEST_BYTES, SMALL_BUFFER_BYTES, TO_GUEST_BYTES};
