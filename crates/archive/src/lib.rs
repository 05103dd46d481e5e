//! tar streams: read, made of files, and unpacked below one folder that they cannot leave.
//!
//! Shared by images ([`read`]) and by copies between host and guest, whose two ends are the command line
//! and the guest's agent: no async runtime, no threads of its own, no `unsafe`.

pub mod name;
pub mod read;

pub use name::EntryPath;
