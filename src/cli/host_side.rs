//! This host's part of a copy: an archive is made, unpacked or passed through in a thread of its own.

use std::io::{self, BufWriter};
use std::path::PathBuf;
use std::pin::Pin;

use bytes::Bytes;
use iii_archive::read::{Malformed, ReadError};
use iii_archive::unpack::{Fault, Problem};
use iii_archive::{Destination, Layout, PackError, PackSource, Rules};
use iii_protocol::session::MAX_DATA_BYTES;
use tokio::sync::oneshot;

use super::copy::{Passed, Sink, Spring};
use super::exit::Failure;
use super::stdio::{self, Copied};
use super::terminal::Streams;
use crate::session::{Input, Output};

/// What this host does.
#[derive(Debug)]
pub enum Host {
    /// The archive goes to standard output as it comes.
    ToStdout,
    /// The archive comes from standard input.
    FromStdin,
    /// A file or folder is packed.
    Pack {
        /// Which one.
        from: PathBuf,
        /// Follow a link that is the path itself.
        follow: bool,
    },
    /// What comes is unpacked.
    Unpack {
        /// Where it goes.
        to: PathBuf,
        /// How its names are laid out there.
        layout: Layout,
        /// Owners and groups as the archive has them; otherwise all belongs to the user.
        owners: bool,
    },
}

/// How the host's part went.
#[derive(Debug)]
pub enum Done {
    /// All of it.
    Whole,
    /// It ended early because the other side did; that one says why.
    Cut(Failure),
    /// It failed by itself.
    Failed(Failure),
}

/// The host's part at work: how it went, and what it left out. The thread behind it may sit in a read or write of
/// the standard streams for ever, so that it is never waited for by anybody else.
pub type Work = Pin<Box<dyn Future<Output = (Done, Vec<String>)>>>;

/// Begins; an error when there can be no thread.
pub fn begin(host: Host, input: Input, output: Output, passed: Passed) -> io::Result<Work> {
    Ok(match host {
        Host::ToStdout => {
            let copied = stdio::drain(output, Streams::of_process()?.stdout, "stdout", passed);
            Box::pin(async move { (written(copied.await), Vec::new()) })
        }
        Host::FromStdin => {
            let failed = stdio::feed(Streams::of_process()?.stdin, input, passed)?;
            let ended =
                async move { failed.await.map_or(Done::Whole, |e| Done::Failed(here(e.to_string()))) };
            Box::pin(async move { (ended.await, Vec::new()) })
        }
        Host::Pack { from, follow } => in_thread(move |warn| {
            let source = PackSource { path: &from, follow };
            pack(source, Sink { input, passed }, warn)
        })?,
        Host::Unpack { to, layout, owners } => in_thread(move |warn| {
            let to = Destination { path: &to, layout, follow: false };
            unpack(Spring { output, passed, rest: Bytes::new() }, &to, owners, warn)
        })?,
    })
}

fn in_thread(work: impl FnOnce(&mut dyn FnMut(String)) -> Done + Send + 'static) -> io::Result<Work> {
    let (sender, done) = oneshot::channel();
    let run = move || {
        let mut warnings = Vec::new();
        let done = work(&mut |warning| warnings.push(warning));
        let _ = sender.send((done, warnings));
    };
    std::thread::Builder::new().name("copy".to_owned()).spawn(run)?;
    let panicked = || (Done::Failed(here("a thread of iii ended".to_owned())), Vec::new());
    Ok(Box::pin(async move { done.await.unwrap_or_else(|_| panicked()) }))
}

/// What went wrong on this side.
fn here(error: String) -> Failure {
    Failure::failed(format!("on this host: {error}"))
}

fn written(copied: Copied) -> Done {
    match copied {
        Copied::Whole => Done::Whole,
        Copied::ReaderGone => Done::Failed(Failure::ReaderGone),
        Copied::Failed(error) => Done::Failed(error.into()),
    }
}

fn pack(source: PackSource<'_>, sink: Sink, warn: &mut dyn FnMut(String)) -> Done {
    let mut to = BufWriter::with_capacity(MAX_DATA_BYTES, sink);
    let packed = match iii_archive::pack(source, &mut to, warn) {
        Ok(_) => to.into_inner().map_err(io::IntoInnerError::into_error),
        Err(PackError::Write(error)) => Err(error),
        Err(error) => return Done::Failed(here(error.to_string())),
    };
    match packed {
        Ok(sink) => {
            // Nobody reads it any more if this fails: the end tells why.
            let _ = sink.input.blocking_finish();
            Done::Whole
        }
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            Done::Cut(here("the worker takes no more of it".to_owned()))
        }
        Err(error) => Done::Failed(here(error.to_string())),
    }
}

fn unpack(from: Spring, to: &Destination<'_>, owners: bool, warn: &mut dyn FnMut(String)) -> Done {
    // The archive is the guest's word: its devices and rights of others are not for this host.
    let rules = Rules { owners, set_ids: owners, devices: false };
    let Err(error) = iii_archive::unpack(from, to, rules, warn) else { return Done::Whole };
    let failure = here(error.to_string());
    match &error.fault {
        fault if is_cut(fault) => Done::Cut(failure),
        Fault::Destination { problem: Problem::IsLink, .. } => {
            Done::Failed(failure.hint("write it with a `/` at its end if its folder is meant"))
        }
        _ => Done::Failed(failure),
    }
}

/// Whether the archive ended too early, for which the guest has the reason.
fn is_cut(fault: &Fault) -> bool {
    let (Fault::Archive(problem) | Fault::Entry { problem, .. } | Fault::Destination { problem, .. }) = fault;
    matches!(problem, Problem::Empty | Problem::Read(ReadError::Malformed(Malformed::Truncated)))
}
