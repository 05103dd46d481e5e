//! Guest to engine: the one way out that a machine has whatever its network's policy says.
//!
//! The agent listens on the guest's loopback and gives each connection a vsock connection of its own, to the
//! host's port [`ENGINE_PORT`] (a Unix socket). The shim joins that to a connection to the worker's engine, and to
//! nothing else. Both speak [`crate::frame`]s, the same ones both ways:
//!
//! ```text
//!   DATA ──▶   bytes, within the window
//!   END ───▶   no more of them; the other direction goes on
//!   ◀── CREDIT   bytes of DATA taken
//! ```
//!
//! libkrun writes to the host's sockets in blocking mode, so the shim always reads; the windows are those of
//! [`crate::session`] and bound what waits for a slow end. The carrier is closed in both directions at once: after
//! END both ways that is the end of the connection, and before that a loss, which the guest sees as a reset. An engine
//! that cannot be reached is such a loss.

use serde::{Deserialize, Serialize};

pub use crate::session::{KIND_CREDIT, ReceiveWindow, SendWindow};

/// The vsock port of the host that leads to the engine.
pub const ENGINE_PORT: u32 = 1026;
/// Connections of one machine at a time. In the guest one more waits to be accepted; the shim closes it.
pub const MAX_CONNECTIONS: usize = 128;

/// The largest payload of one data frame, in bytes. Less than a session's: both sides have a buffer of it for each connection.
pub const MAX_DATA_BYTES: usize = 256 * 1024;

/// Both ways: bytes, raw, at most [`MAX_DATA_BYTES`].
pub const KIND_DATA: u8 = 1;
/// Both ways: no more of them. No payload.
pub const KIND_END: u8 = 2;

/// Where a worker's engine listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Engine {
    /// Name or address, without brackets; `localhost` is the host's own.
    pub host: String,
    /// Its port, which is also the port in the guest.
    pub port: u16,
}

impl Default for Engine {
    fn default() -> Engine {
        Engine { host: "localhost".to_owned(), port: 49134 }
    }
}

impl std::fmt::Display for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}
