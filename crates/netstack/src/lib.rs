#![forbid(unsafe_code)]
#![warn(missing_docs, missing_debug_implementations)]
//! The network of one guest, in user space.

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
pub use tcp::{BUFFER_BYTES, BUFFERS_BYTES, SMALL_BUFFER_BYTES};
