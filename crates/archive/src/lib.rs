//! tar streams: read, made of files, and unpacked below one folder that they cannot leave.
//!
//! Shared by images ([`mod@read`]) and by copies between host and guest, whose two ends are the command line
//! and the guest's agent: no async runtime, no threads of its own, no `unsafe`.

pub mod name;
pub mod pack;
pub mod place;
pub mod read;
pub mod unpack;
pub mod write;

pub use name::EntryPath;
pub use pack::{PackError, PackSource, Packed, pack};
pub use unpack::{Destination, Layout, Rules, UnpackError, Written, unpack};
