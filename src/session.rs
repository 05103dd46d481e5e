//! The client's side of one session ([`iii_protocol::session`]): windows, frames and the end.
//!
//! [`start`] takes a connection to the agent and gives a [`Session`] in parts, each of which may go its own way, to
//! a task or to a thread (what a thread calls is named `blocking_`):
//!
//! ```text
//!   Input    ──▶ STDIN, STDIN_END      bytes go out as the agent's window allows; sending waits for that
//!   Output   ◀── STDOUT (and STDERR)   bytes are credited when the next ones are asked for
//!   Control  ──▶ SIGNAL, RESIZE, KILL
//!   started  ◀── STARTED
//!   ending   ◀── END, or why there was none; comes before the outputs are read to their end
//! ```
//!
//! A task of its own moves the frames and always reads, so that one part which nobody serves holds up no other
//! for longer than the window both outputs share. Dropping [`Ending`] closes the connection, whatever other
//! parts are still there: the agent then ends what belongs to the session.

mod mover;
mod outgoing;
mod passage;
pub mod wire;

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use iii_protocol::frame::{Frame, FrameError};
use iii_protocol::session::{
    End, KIND_KILL, KIND_OPEN, KIND_RESIZE, KIND_SIGNAL, Open, ReceiveWindow, SendWindow, Signal, Started,
    Task, TerminalSize, VERSION,
};
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc, oneshot};

use mover::Mover;
use outgoing::Outgoing;
use passage::{Exit, Passage};
use wire::Wire;

/// How many pieces of input may wait for the window; each is what the caller made it.
pub const INPUT_QUEUE: usize = 2;
/// How many control frames may wait to be sent.
pub const CONTROL_QUEUE: usize = 32;

/// Why a session ended without END.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// The connection ended: the worker or the daemon is gone.
    #[error("the connection was lost")]
    Disconnected,
    /// The agent does not keep to the protocol.
    #[error("the guest's agent sent what it should not: {0}")]
    Broken(String),
}

/// One session; see the [module's head](self).
#[derive(Debug)]
pub struct Session {
    /// To the command's standard input, or the archive to unpack.
    pub input: Input,
    /// Standard output, or the packed archive.
    pub stdout: Output,
    /// Standard error.
    pub stderr: Output,
    /// Signals and the like.
    pub control: Control,
    /// Comes when the command runs; an error when the session ended before that.
    pub started: oneshot::Receiver<Started>,
    /// How it ended.
    pub ending: Ending,
}

/// The writing end of standard input. Dropped without [`Input::blocking_finish`] the input just stays open.
#[derive(Debug)]
pub struct Input {
    fed: mpsc::Sender<Fed>,
}

#[derive(Debug)]
enum Fed {
    Bytes(Bytes),
    End,
}

/// Nobody reads the input any more: the command closed it, or the session is over. Not a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody reads the input any more")]
pub struct InputClosed;

impl Input {
    /// Sends bytes; waits while the window is closed. For a thread outside of any runtime, as all of this.
    pub fn blocking_send(&mut self, bytes: Bytes) -> Result<(), InputClosed> {
        self.fed.blocking_send(Fed::Bytes(bytes)).map_err(|_| InputClosed)
    }

    /// The end of the input, behind all that was sent.
    pub async fn finish(self) -> Result<(), InputClosed> {
        self.fed.send(Fed::End).await.map_err(|_| InputClosed)
    }

    /// Likewise, from a thread.
    pub fn blocking_finish(self) -> Result<(), InputClosed> {
        self.fed.blocking_send(Fed::End).map_err(|_| InputClosed)
    }
}

/// As [`Input::blocking_send`]; whoever writes is told by `BrokenPipe` that nobody reads any more.
impl io::Write for Input {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.blocking_send(Bytes::copy_from_slice(bytes)).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The reading end of one output stream. Dropping it before its end tells the agent that nobody reads it any
/// more, so that the writer gets SIGPIPE.
#[derive(Debug)]
pub struct Output {
    // Has no limit of its own: the window is one.
    bytes: mpsc::UnboundedReceiver<Bytes>,
    taken: Arc<Taken>,
    exit: Arc<Exit>,
    last: usize,
}

impl Output {
    /// Says that all bytes go into this pipe, in the end: those that come while none is being dealt with may be passed on
    /// there without being asked for. For standard output, once.
    pub fn goes_to(&self, pipe: File) {
        let _ = self.exit.pipe.set(pipe);
    }

    /// The next bytes, as they came; `None` at the end. Asking says that those before were dealt with.
    pub async fn next(&mut self) -> Option<Bytes> {
        self.dealt_with();
        let bytes = self.bytes.recv().await?;
        self.last = bytes.len();
        Some(bytes)
    }

    /// Likewise, from a thread outside of any runtime.
    pub fn blocking_next(&mut self) -> Option<Bytes> {
        self.dealt_with();
        let bytes = self.bytes.blocking_recv()?;
        self.last = bytes.len();
        Some(bytes)
    }

    fn dealt_with(&mut self) {
        let bytes = std::mem::take(&mut self.last);
        self.exit.behind.fetch_sub(bytes, Ordering::Release);
        self.taken.add(bytes);
    }
}

impl Drop for Output {
    /// What nobody will look at is dealt with too: the other stream needs the room.
    fn drop(&mut self) {
        self.bytes.close();
        let mut left = self.last;
        while let Ok(bytes) = self.bytes.try_recv() {
            left += bytes.len();
        }
        self.taken.add(left);
    }
}

/// Bytes that readers have dealt with and that are not yet credited.
#[derive(Debug, Default)]
struct Taken {
    bytes: AtomicUsize,
    more: Notify,
}

impl Taken {
    fn add(&self, bytes: usize) {
        if bytes > 0 {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
            self.more.notify_one();
        }
    }
}

/// Sends control frames. What is said to a session that is over is forgotten.
#[derive(Debug, Clone)]
pub struct Control {
    frames: mpsc::Sender<Frame>,
}

impl Control {
    /// A signal for the foreground process group, by its Linux number.
    pub async fn signal(&self, signal: i32) {
        self.send(Frame::json(KIND_SIGNAL, &Signal { signal })).await;
    }

    /// The terminal's new size.
    pub async fn resize(&self, size: TerminalSize) {
        self.send(Frame::json(KIND_RESIZE, &size)).await;
    }

    /// SIGKILL to every process of the session.
    pub async fn kill(&self) {
        self.send(Frame { kind: KIND_KILL, payload: Vec::new() }).await;
    }

    async fn send(&self, frame: Frame) {
        let _ = self.frames.send(frame).await;
    }
}

/// The end of a session, once it comes.
#[derive(Debug)]
pub struct Ending {
    end: oneshot::Receiver<Result<End, Lost>>,
}

impl Ending {
    /// Waits for it. May be cancelled and asked again until it has answered; only once after that.
    pub async fn wait(&mut self) -> Result<End, Lost> {
        (&mut self.end).await.unwrap_or(Err(Lost::Disconnected))
    }
}

/// The first frame of a session; an error when the task does not fit into one.
pub fn open_frame(task: Task) -> Result<BytesMut, FrameError> {
    Ok(BytesMut::from(&Frame::json(KIND_OPEN, &Open { version: VERSION, task }).to_bytes()?[..]))
}

/// The session on a connection that is the agent's from here on; `received` is what was read of it already, and
/// `unsent` what is still to be sent of the [first frame](open_frame). Must be called within a runtime, which then moves the
/// frames. Fails where the system watches no more descriptors.
pub fn start(stream: UnixStream, received: BytesMut, unsent: BytesMut) -> io::Result<Session> {
    let wire = Wire::new(stream.into_std()?)?;
    let (fed, input) = mpsc::channel(INPUT_QUEUE);
    let (frames, control) = mpsc::channel(CONTROL_QUEUE);
    let (stdout_sender, stdout) = mpsc::unbounded_channel();
    let (stderr_sender, stderr) = mpsc::unbounded_channel();
    let (started_sender, started) = oneshot::channel();
    let (mut end_sender, end) = oneshot::channel();
    let taken = Arc::<Taken>::default();
    let exits: [Arc<Exit>; 2] = Default::default();
    let mut mover = Mover {
        wire,
        room: None,
        incoming: received,
        outgoing: Outgoing::new(unsent),
        can_write: true,
        input: Some(input),
        pending: Bytes::new(),
        send_window: SendWindow::default(),
        receive_window: ReceiveWindow::default(),
        outputs: [Some(stdout_sender), Some(stderr_sender)],
        started: Some(started_sender),
        exits: exits.clone(),
        passage: Passage::to(exits[0].clone()),
        taken: taken.clone(),
    };
    tokio::spawn(async move {
        let result = tokio::select! {
            result = mover.run(control) => result,
            // The session was dropped.
            () = end_sender.closed() => return,
        };
        let _ = end_sender.send(result);
    });
    let [stdout_exit, stderr_exit] = exits;
    let output = |bytes, exit| Output { bytes, taken: taken.clone(), exit, last: 0 };
    Ok(Session {
        input: Input { fed },
        stdout: output(stdout, stdout_exit),
        stderr: output(stderr, stderr_exit),
        control: Control { frames },
        started,
        ending: Ending { end },
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixStream as StdUnixStream;

    use iii_protocol::frame::read_frame;
    use iii_protocol::session::{
        EndCause, KIND_CLOSE_STDOUT, KIND_CREDIT, KIND_END, KIND_STDERR, KIND_STDOUT, MAX_DATA_BYTES,
        WINDOW_BYTES, parse_credit,
    };

    use super::*;

    #[tokio::test]
    async fn what_was_never_read_makes_room_for_the_other_stream() {
        let (ours, mut agent) = StdUnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut session =
            start(UnixStream::from_std(ours).unwrap(), BytesMut::new(), BytesMut::new()).unwrap();
        let (wrote, written) = oneshot::channel();
        let agent = tokio::task::spawn_blocking(move || {
            let frame = Frame { kind: KIND_STDOUT, payload: vec![b'y'; MAX_DATA_BYTES] };
            let mut window = SendWindow::default();
            while window.room() > 0 {
                window.sent(MAX_DATA_BYTES);
                agent.write_all(&frame.to_bytes().unwrap()).unwrap();
            }
            wrote.send(()).unwrap();
            // Up to half of it may be owed.
            while window.room() <= WINDOW_BYTES / 2 {
                let frame = read_frame(&mut agent).unwrap().unwrap();
                match frame.kind {
                    KIND_CREDIT => window.credited(parse_credit(&frame.payload).unwrap()).unwrap(),
                    kind => assert_eq!(kind, KIND_CLOSE_STDOUT),
                }
            }
        });
        written.await.unwrap();
        assert!(session.stdout.next().await.is_some());
        drop(session.stdout);
        agent.await.unwrap();
    }

    /// Sizes of frames of output, in turn: those that may be passed on, and those that are read.
    const SIZES: [usize; 6] = [MAX_DATA_BYTES - 4096, 100_000, 3, MAX_DATA_BYTES, 40_000, 1];
    const ROUNDS: usize = 60;

    /// Says much on both outputs, within the window, and END. Returns what standard output was.
    fn talk(agent: &mut StdUnixStream) -> Vec<u8> {
        let (mut whole, mut window) = (Vec::new(), SendWindow::default());
        for round in 0..ROUNDS {
            let size = SIZES[round % SIZES.len()];
            let payload: Vec<u8> = (0..size).map(|at| ((whole.len() + at) / 251) as u8).collect();
            whole.extend(&payload);
            let errors = Frame { kind: KIND_STDERR, payload: vec![round as u8; round % 5] };
            for frame in [Frame { kind: KIND_STDOUT, payload }, errors] {
                while window.room() < frame.payload.len() {
                    let credit = read_frame(agent).unwrap().unwrap();
                    window.credited(parse_credit(&credit.payload).unwrap()).unwrap();
                }
                window.sent(frame.payload.len());
                agent.write_all(&frame.to_bytes().unwrap()).unwrap();
            }
        }
        let end = Frame::json(KIND_END, &End { cause: EndCause::Exit { code: 0 } });
        agent.write_all(&end.to_bytes().unwrap()).unwrap();
        whole
    }

    /// What a reader who takes `slice` bytes at a time gets of [`talk`] through a pipe.
    async fn through_a_pipe(slice: usize) -> (Vec<u8>, Vec<u8>) {
        let (ours, mut agent) = StdUnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let session = start(UnixStream::from_std(ours).unwrap(), BytesMut::new(), BytesMut::new()).unwrap();
        let Session { mut stdout, mut stderr, mut ending, .. } = session;
        let (mut reader, writer) = io::pipe().unwrap();
        stdout.goes_to(File::from(std::os::fd::OwnedFd::from(writer.try_clone().unwrap())));
        let its = tokio::task::spawn_blocking(move || talk(&mut agent));
        let writes = tokio::task::spawn_blocking(move || {
            let mut writer = writer;
            while let Some(bytes) = stdout.blocking_next() {
                writer.write_all(&bytes).unwrap();
            }
        });
        let errors = tokio::task::spawn_blocking(move || {
            let mut count = 0;
            while let Some(bytes) = stderr.blocking_next() {
                count += bytes.len();
            }
            count
        });
        let reads = tokio::task::spawn_blocking(move || {
            let (mut got, mut part) = (Vec::new(), vec![0; slice]);
            loop {
                match io::Read::read(&mut reader, &mut part).unwrap() {
                    0 => return got,
                    count => got.extend(&part[..count]),
                }
                std::thread::yield_now();
            }
        });
        assert!(ending.wait().await.is_ok());
        writes.await.unwrap();
        assert_eq!(errors.await.unwrap(), (0..ROUNDS).map(|round| round % 5).sum::<usize>());
        (its.await.unwrap(), reads.await.unwrap())
    }

    #[tokio::test]
    async fn output_comes_whole_and_in_order_through_a_pipe_however_it_is_read() {
        for slice in [1 << 20, 5000] {
            let (said, got) = through_a_pipe(slice).await;
            assert!(said == got, "{} of {} bytes, {slice} at a time", got.len(), said.len());
        }
    }
}
