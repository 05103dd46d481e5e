//! The client's side of a copy: which side is which, and a tar stream between a session and this host.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf as _, Bytes};

use super::exit::Failure;
use crate::session::{Input, Output};

/// One side of a copy, as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Side {
    /// `-`: a tar stream on stdin or stdout.
    Stream,
    /// A path of this host.
    Local(PathBuf),
    /// `WORKER:PATH`.
    Worker {
        /// The worker's name.
        name: String,
        /// The path there.
        path: String,
    },
}

/// Takes one argument apart. A path that begins with `/` or `.` is local whatever else is in it.
pub fn side(argument: &OsStr) -> Result<Side, Failure> {
    let bytes = argument.as_bytes();
    let local = || Ok(Side::Local(PathBuf::from(argument)));
    match bytes.iter().position(|&b| b == b':') {
        _ if bytes == b"-" => Ok(Side::Stream),
        _ if bytes.is_empty() => Err(Failure::usage("an empty path names nothing")),
        None | Some(0) => local(),
        Some(at) if matches!(bytes[0], b'/' | b'.') || bytes[..at].contains(&b'/') => local(),
        Some(at) => {
            let text = |part: &[u8]| std::str::from_utf8(part).map(str::to_owned);
            let (Ok(name), Ok(path)) = (text(&bytes[..at]), text(&bytes[at + 1..])) else {
                let message = format!("{} is not UTF-8, as paths in a worker must be", argument.display());
                return Err(Failure::usage(message).hint("copy the folder that it is in"));
            };
            if path.is_empty() {
                return Err(Failure::usage(format!("`{name}:` names no path in the worker")));
            }
            Ok(Side::Worker { name, path })
        }
    }
}

/// Bytes that have passed, for whoever shows them.
pub type Passed = Arc<AtomicU64>;

/// A session's standard input as a writer; blocks, so it belongs into a thread.
#[derive(Debug)]
pub struct Sink {
    /// Where it goes.
    pub input: Input,
    /// Counts what was written.
    pub passed: Passed,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.input.write(bytes)?;
        self.passed.fetch_add(written as u64, Ordering::Relaxed);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.input.flush()
    }
}

/// A session's standard output as a reader; blocks, so it belongs into a thread.
#[derive(Debug)]
pub struct Spring {
    /// Where it comes from.
    pub output: Output,
    /// Counts what was read.
    pub passed: Passed,
    /// What came and was not taken yet.
    pub rest: Bytes,
}

impl Read for Spring {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.output.blocking_next() {
                Some(bytes) => self.rest = bytes,
                None => return Ok(0),
            }
        }
        let n = self.rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&self.rest[..n]);
        self.rest.advance(n);
        self.passed.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// The local source of a copy: one that has no name of its own (`..`) is written out, the root means its
/// content.
pub fn local_source(path: &Path) -> Result<PathBuf, Failure> {
    let spelling = iii_archive::name::Spelling::of(path.as_os_str().as_bytes());
    if spelling.contents || spelling.name().is_some() {
        return Ok(path.to_owned());
    }
    let real = path.canonicalize().map_err(|e| Failure::failed(format!("{}: {e}", path.display())))?;
    Ok(if real.file_name().is_none() { PathBuf::from("/.") } else { real })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_makes_a_worker_unless_the_path_is_explicit() {
        let worker = |name: &str, path: &str| Side::Worker { name: name.into(), path: path.into() };
        for (argument, expected) in [
            ("-", Side::Stream),
            ("web:/etc", worker("web", "/etc")),
            ("web:a:b", worker("web", "a:b")),
            ("./a:b", Side::Local("./a:b".into())),
            ("/a:b", Side::Local("/a:b".into())),
            ("a/b:c", Side::Local("a/b:c".into())),
            ("plain", Side::Local("plain".into())),
            (":x", Side::Local(":x".into())),
        ] {
            assert_eq!(side(OsStr::new(argument)), Ok(expected), "{argument}");
        }
        assert_eq!(side(OsStr::new("web:")).unwrap_err().code(), 2);
        assert_eq!(side(OsStr::from_bytes(b"web:\xff")).unwrap_err().code(), 2);
        assert_eq!(
            side(OsStr::from_bytes(b"./\xff:")),
            Ok(Side::Local(OsStr::from_bytes(b"./\xff:").into()))
        );
    }
}
