//! What the CLI, the daemon, the shim and the guest agent say to each other.
//!
//! | link | carrier | encoding | module |
//! |---|---|---|---|
//! | CLI to daemon | HTTP/1.1 over a Unix socket | JSON, NDJSON streams | [`api`] |
//! | daemon to shim | Unix socket | [`frame`]s, JSON control and raw log lines | [`shim`] |
//! | shim to agent | vsock (a Unix socket on the host) | [`frame`]s, JSON control and raw output | [`guest`] |
//! | CLI to agent, through the daemon | the same two, a connection each | [`frame`]s, JSON control and raw bytes | [`session`] |
//! | guest to engine, through the shim | vsock, then TCP | [`frame`]s, then raw bytes | [`engine`] |
//! | shim to disk | log files | one JSON object per line | [`log`] |
//!
//! The crate does no I/O of its own beyond `std::io` traits: it is compiled into the static agent too.

pub mod api;
pub mod engine;
pub mod exit;
pub mod frame;
pub mod guest;
pub mod log;
pub mod network;
pub mod session;
pub mod shim;
