//! Files and folders in and out of the worker as tar archives.
//!
//! Both functions run in a thread of their session, and both streams wait for the client within its window.
//! The first write, or the first read, tells the client that the copy has begun: what fails before it is a
//! copy that could not start, what fails behind it one that stopped part of the way.

use std::io::{Read, Write};

use iii_protocol::session::Layout;

/// Why a copy did not happen, or stopped on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CopyError {
    /// Why, lower case, with the path.
    pub(crate) message: String,
    /// What to do next.
    pub(crate) hint: Option<String>,
}

fn unknown() -> CopyError {
    CopyError { message: "not known by this version".to_owned(), hint: None }
}

/// Writes `path` to `out` as an archive; a link that is the path itself is followed with `follow`. A write
/// fails with `BrokenPipe` when the client has left. `out` is buffered and flushed by the caller.
pub(crate) fn pack(_path: &str, _follow: bool, _out: &mut dyn Write) -> Result<(), CopyError> {
    Err(unknown())
}

/// Reads an archive from `input` and lays it out at `path`. A read is 0 when the client has said that all was
/// sent, and fails with `ConnectionAborted` when it has left.
pub(crate) fn unpack(_path: &str, _layout: &Layout, _input: &mut dyn Read) -> Result<(), CopyError> {
    Err(unknown())
}
