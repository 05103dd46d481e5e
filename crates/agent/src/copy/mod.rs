//! Files and folders in and out of the worker as tar archives.
//!
//! All functions run in a thread of their session, and both streams wait for the client within its window.
//! The first write, or the first read, tells the client that the copy has begun: what fails before it is a
//! copy that could not start, what fails behind it one that stopped part of the way.

mod update;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use iii_archive::{Destination, PackSource, Rules, UnpackError};
use iii_protocol::session::Layout;

pub(crate) use update::update;

/// How many warnings of one copy are told; of further ones only the count.
const MAX_WARNINGS: usize = 20;

/// Why a copy did not happen, or stopped on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CopyError {
    /// Why, lower case, with the path.
    pub(crate) message: String,
    /// What to do next.
    pub(crate) hint: Option<String>,
}

/// What a copy left out, for the client's standard error.
#[derive(Debug, Default)]
pub(crate) struct Warnings {
    told: Vec<String>,
    more: usize,
}

impl Warnings {
    fn add(&mut self, warning: String) {
        if self.told.len() < MAX_WARNINGS { self.told.push(warning) } else { self.more += 1 }
    }

    /// One line each.
    pub(crate) fn lines(&self) -> String {
        let mut lines: String = self.told.iter().map(|warning| format!("{warning}\n")).collect();
        if self.more > 0 {
            lines.push_str(&format!("and {} more of this kind\n", self.more));
        }
        lines
    }
}

/// Writes `path` to `out` as an archive; a link that is the path itself is followed with `follow`. A write
/// fails with `BrokenPipe` when the client has left. `out` is buffered and flushed by the caller.
pub(crate) fn pack(
    path: &str,
    follow: bool,
    out: &mut dyn Write,
    warnings: &mut Warnings,
) -> Result<(), CopyError> {
    let path = from_root(path);
    let source = PackSource { path: &path, follow };
    let packed = iii_archive::pack(source, out, &mut |warning| warnings.add(warning));
    packed.map(|_| ()).map_err(|error| CopyError { message: error.to_string(), hint: None })
}

/// Reads an archive from `input` and lays it out at `path`. A read is 0 when the client has said that all was
/// sent, and fails with `ConnectionAborted` when it has left.
pub(crate) fn unpack(
    path: &str,
    layout: &Layout,
    owners: bool,
    input: &mut dyn Read,
    warnings: &mut Warnings,
) -> Result<(), CopyError> {
    let path = from_root(path);
    let layout = match *layout {
        Layout::Inside => iii_archive::Layout::Inside,
        Layout::As { contents } => iii_archive::Layout::As { name: None, contents },
    };
    // Links at the destination are the guest's own, and lead nowhere else than into the guest.
    let to = Destination { path: &path, layout, follow: true };
    let rules = Rules { owners, set_ids: true, devices: true };
    let unpacked = iii_archive::unpack(input, &to, rules, &mut |warning| warnings.add(warning));
    unpacked.map(|_| ()).map_err(|error: UnpackError| CopyError { message: error.to_string(), hint: None })
}

/// Copies have no working directory: a relative path begins at the root.
fn from_root(path: &str) -> PathBuf {
    Path::new("/").join(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out_and_warnings_have_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("a"), "body").unwrap();
        let (mut archive, mut warnings) = (Vec::new(), Warnings::default());
        pack(&path("a"), false, &mut archive, &mut warnings).unwrap();
        let layout = Layout::As { contents: false };
        unpack(&path("b"), &layout, false, &mut &archive[..], &mut warnings).unwrap();
        assert_eq!(std::fs::read_to_string(path("b")).unwrap(), "body");
        assert_eq!(warnings.lines(), "");
        for n in 0..MAX_WARNINGS + 3 {
            warnings.add(format!("w{n}"));
        }
        assert!(warnings.lines().ends_with("w19\nand 3 more of this kind\n"));
        let error = pack(&path("none"), false, &mut Vec::new(), &mut warnings).unwrap_err();
        assert!(error.message.contains(&path("none")) && error.message.contains("No such file"));
    }
}
