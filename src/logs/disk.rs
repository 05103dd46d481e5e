//! Log files: written by the shim, read by everybody.

use jiff::Timestamp;

/// Which records of the log files are wanted; the default is all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskQuery {
    /// From this number on.
    pub from_seq: Option<u64>,
    /// Up to, without, this number.
    pub until_seq: Option<u64>,
    /// Only the last N of those.
    pub tail: Option<u64>,
    /// Only records at or after this time.
    pub since: Option<Timestamp>,
    /// Only the generation before the last one.
    pub previous: bool,
}
