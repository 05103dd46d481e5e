//! Words for whoever reads the machine's console.

use std::fmt;
use std::io::{self, Write as _};

/// Writes one line to standard error: the console of a guest. Unlike `eprintln!` it does not panic when
/// nobody takes the line, for a panic of the first process would end the guest.
pub(crate) fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "iii-agent: {line}");
}
