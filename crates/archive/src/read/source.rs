//! What an archive is read from, and why it cannot be.

use std::io::{self, BufRead};

use crate::name::EntryPath;

/// What is wrong with an archive's own form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The stream is no tar stream, or a damaged one.
    #[error("not a valid tar stream: {0}")]
    BadArchive(&'static str),
    /// The stream ends in the middle of an entry.
    #[error("the tar stream ends too early")]
    Truncated,
    /// A PAX record cannot be understood.
    #[error("its PAX record `{0}` is malformed")]
    BadPax(EntryPath),
    /// A sparse map contradicts itself or the entry's size.
    #[error("its sparse map is malformed: {0}")]
    BadSparseMap(&'static str),
    /// An entry of a type that is not known.
    #[error("entries of type `{}` are not supported", .0.escape_ascii())]
    UnsupportedType(u8),
    /// An owner that is no 32-bit id.
    #[error("its owner or group {0} is not a valid id")]
    BadOwner(u64),
    /// A device number beyond 12 bits of major and 20 of minor.
    #[error("its device number {major}:{minor} is out of range")]
    BadDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

/// The extension headers of one entry are longer than the reader is willing to keep in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its headers are longer than {at_most} bytes")]
pub struct HeadersTooLong {
    /// How long they may be.
    pub at_most: u64,
}

/// Bytes that are taken as they come.
pub trait Source {
    /// Why there are no more; also what [`Archive`](super::Archive) fails with.
    type Error: From<Malformed> + From<HeadersTooLong>;
    /// What is there next, without taking it; empty at the end.
    fn fill(&mut self) -> Result<&[u8], Self::Error>;
    /// Takes `n` bytes of what `fill` gave.
    fn consume(&mut self, n: usize);
}

/// Why a plain reader gives no further entry.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The reader failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The archive's form.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The archive's cost.
    #[error(transparent)]
    TooLong(#[from] HeadersTooLong),
}

/// Any buffered reader as a [`Source`].
#[derive(Debug)]
pub struct Plain<R>(pub R);

impl<R: BufRead> Source for Plain<R> {
    type Error = ReadError;

    fn fill(&mut self) -> Result<&[u8], ReadError> {
        loop {
            // A second call gives the same bytes; only so the borrow of a failed one ends.
            match self.0.fill_buf() {
                Ok(_) => return Ok(self.0.fill_buf()?),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn consume(&mut self, n: usize) {
        self.0.consume(n);
    }
}
