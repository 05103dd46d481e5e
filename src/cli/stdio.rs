//! Standard streams in threads of their own: a read or write that never returns holds up nothing else, least of
//! all the exit.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use iii_protocol::session::MAX_DATA_BYTES;
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{fstat, makedev};
use rustix::buffer::spare_capacity;
use rustix::pipe::fcntl_setpipe_size;
use tokio::sync::oneshot;

use super::copy::Passed;
use crate::session::{Input, Output};

/// What a pipe holds that nobody has made larger (pipe(7)).
const USUAL_PIPE_BYTES: usize = 64 * 1024;

/// How the copying of one stream ended.
#[derive(Debug)]
pub enum Copied {
    /// All of it.
    Whole,
    /// Our reader has gone (`| head`): no failure.
    ReaderGone,
    /// It stopped part of the way.
    Failed(io::Error),
}

/// Whether this is a pipe.
pub fn is_pipe(file: impl AsFd) -> bool {
    fstat(file).is_ok_and(|it| it.st_mode & libc::S_IFMT == libc::S_IFIFO)
}

/// Whether this is `/dev/null`.
pub fn is_null(file: impl AsFd) -> bool {
    // Its device number, by Linux's list of devices.
    fstat(file).is_ok_and(|it| it.st_mode & libc::S_IFMT == libc::S_IFCHR && it.st_rdev == makedev(1, 3))
}

/// Sends all of `stdin` to the session and then says that this was all; `passed` counts. The thread is never waited
/// for: it may sit in a read for ever. An error comes if there is one; without one, nothing.
pub fn feed(stdin: File, mut input: Input, passed: Passed) -> io::Result<oneshot::Receiver<io::Error>> {
    let (failed, error) = oneshot::channel();
    let run = move || {
        let mut may_grow = is_pipe(&stdin);
        loop {
            // Sent from where it lies, so there is one for each read.
            let mut buffer = Vec::with_capacity(MAX_DATA_BYTES);
            match retrying(&stdin, PollFlags::POLLIN, |stdin| {
                Ok(rustix::io::read(stdin, spare_capacity(&mut buffer))?)
            }) {
                Ok(0) => break,
                // A terminal that has hung up.
                Err(e) if e.raw_os_error() == Some(Errno::EIO as i32) => break,
                Ok(read) => {
                    // As much as a pipe holds: whoever feeds it is then woken once per frame, and so is everybody
                    // between here and the guest. A user may have only so many large pipes.
                    if may_grow && read >= USUAL_PIPE_BYTES {
                        may_grow = false;
                        let _ = fcntl_setpipe_size(&stdin, MAX_DATA_BYTES);
                    }
                    if input.blocking_send(buffer.into()).is_err() {
                        return;
                    }
                    passed.fetch_add(read as u64, Ordering::Relaxed);
                }
                Err(e) => {
                    // No `finish`: half of an input is not to be taken for all of it.
                    let _ = failed.send(e);
                    return;
                }
            }
        }
        let _ = input.blocking_finish();
    };
    std::thread::Builder::new().name("stdin".to_owned()).spawn(run)?;
    Ok(error)
}

/// Writes all that the session sends to `target`, each piece at once; `passed` counts. A slow target slows the
/// session down. A thread is made once there is anything to write; dropping the future leaves it to itself.
pub async fn drain(mut output: Output, target: File, name: &'static str, passed: Passed) -> Copied {
    let Some(first) = output.next().await else { return Copied::Whole };
    let (done, copied) = oneshot::channel();
    let run = move || {
        let mut next = Some(first);
        let result = loop {
            let Some(bytes) = next else { break Copied::Whole };
            match write_all(&target, &bytes) {
                Ok(()) => {
                    passed.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    next = output.blocking_next();
                }
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => break Copied::ReaderGone,
                Err(e) => break Copied::Failed(e),
            }
        };
        // Before the word is given: dropping it tells the guest that nobody reads any more.
        drop(output);
        let _ = done.send(result);
    };
    match std::thread::Builder::new().name(name.to_owned()).spawn(run) {
        // A thread that ended without a word has panicked.
        Ok(_) => copied.await.unwrap_or_else(|_| Copied::Failed(io::Error::other("a thread of iii ended"))),
        Err(e) => Copied::Failed(e),
    }
}

fn write_all(target: &File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match retrying(target, PollFlags::POLLOUT, |mut target| target.write(bytes))? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => bytes = &bytes[written..],
        }
    }
    Ok(())
}

/// Whoever started us may have made the streams non-blocking, which all processes that have them open share.
fn retrying(
    file: &File,
    event: PollFlags,
    mut act: impl FnMut(&File) -> io::Result<usize>,
) -> io::Result<usize> {
    loop {
        match act(file) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                match poll(&mut [PollFd::new(file.as_fd(), event)], PollTimeout::NONE) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}
