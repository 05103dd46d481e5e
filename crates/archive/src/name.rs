//! Names as archives spell them: bytes, from anybody.

use std::fmt;

/// The name of an entry: bytes, not always text.
///
/// Shown lossily, control characters escaped, so that a name cannot write to the reader's terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryPath(pub Vec<u8>);

impl fmt::Display for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in String::from_utf8_lossy(&self.0).chars() {
            if c.is_control() { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
        }
        Ok(())
    }
}
