//! One session inside a worker: a command (`exec`), or files in or out (`cp`, and a project's).
//!
//! A client asks the daemon with `POST /v1/workers/{name}/session`, `Connection: Upgrade` and `Upgrade:
//! iii-session/1`. After `101 Switching Protocols` the connection carries [`crate::frame`]s, end to end
//! between client and agent: the daemon copies bytes and looks at the frames' headers only. On the guest's side each
//! session has a vsock connection to the agent's port [`SESSION_PORT`] to itself.
//!
//! ```text
//!   client                          agent
//!   OPEN ─────────────────────────▶        first frame, once
//!        ◀───────────────────────── STARTED  or END (it could not start)
//!   STDIN, STDIN_END ─────────────▶        within the agent's window
//!   SIGNAL, RESIZE, KILL ─────────▶        at any time after OPEN
//!   CREDIT ───────────────────────▶        bytes of STDOUT and STDERR taken
//!   CLOSE_STDOUT, CLOSE_STDERR ───▶        nobody reads that any more
//!        ◀───────────────────────── STDOUT, STDERR   within the client's window
//!        ◀───────────────────────── CREDIT   bytes of STDIN taken
//!        ◀───────────────────────── STDIN_CLOSED     nobody reads that any more
//!        ◀───────────────────────── END      last frame; then the client closes, or else the agent
//! ```
//!
//! **Windows.** Each direction begins with [`WINDOW_BYTES`] of credit. A side may have that many bytes of data
//! payload on the way that the other has not yet answered with [`KIND_CREDIT`]; a sender that goes over it
//! is in error and its session is ended. So whoever is in between can always read, and what it holds for a
//! slow reader has a limit. Up to half a window may be owed, so nobody may wait for credit while there is room. Control
//! frames are not counted.
//!
//! **Ends.** The carrier is never closed in one direction only: the end of standard input is the frame
//! [`KIND_STDIN_END`]. A client whose connection is lost has left: the agent sends SIGHUP to the session's
//! processes, then SIGKILL after [`HANGUP_GRACE_MS`]; one that breaks this contract is treated likewise. After
//! END the client closes first, so that nothing it still sends can cost it the END on the way; whoever is its next
//! station, the daemon or the agent, waits for that for [`END_LINGER_MS`]. A connection that ends without END is a
//! lost worker or a lost daemon, never an exit.
//!
//! **Again.** To make a vsock connection and to close it is a good part of a short command. Behind END the agent says
//! [`KIND_AGAIN`]: from then on it ignores what comes, up to another OPEN, which begins a session that knows nothing of
//! the one before. The daemon passes AGAIN on to nobody, keeps the connection when the client has left with a whole
//! frame, and gives it to the next client. Without AGAIN (nothing was started, or it runs on without a client) the agent
//! closes. A connection that is kept has no time limit; the daemon has few of them.

use serde::{Deserialize, Serialize};

/// The vsock port of the agent that takes sessions; on the host's side a Unix socket.
pub const SESSION_PORT: u32 = 1025;
/// Environment variable of the agent that names a Unix socket to listen on instead of vsock. Set only by the
/// process launcher of test builds.
pub const SESSION_SOCKET_ENV: &str = "III_AGENT_SESSIONS";
/// The `Upgrade` token of the daemon's route.
pub const UPGRADE: &str = "iii-session/1";
/// The version in [`Open`].
pub const VERSION: u32 = 1;
/// Credit that each direction starts with, in bytes of data payload.
pub const WINDOW_BYTES: usize = 1024 * 1024;
/// The largest payload of one data frame, in bytes: each wakes all stations on its way, and the window is two of them, so that
/// both ends work at the same time.
pub const MAX_DATA_BYTES: usize = 512 * 1024;
/// The most sessions one worker has at a time; one more ends at once with [`EndCause::CouldNotStart`].
pub const MAX_SESSIONS: usize = 256;
/// The longest record in the list of [`Task::Update`], in bytes, its zero byte included.
pub const MAX_CHANGE_BYTES: usize = 8192;
/// Milliseconds from SIGHUP to SIGKILL when the client is gone.
pub const HANGUP_GRACE_MS: u64 = 2_000;

/// Milliseconds that a client has to close the connection after END, before the daemon or the agent does.
pub const END_LINGER_MS: u64 = 2_000;

/// Client to agent: [`Open`], the first frame of a session and only that.
pub const KIND_OPEN: u8 = 1;
/// Client to agent: bytes for standard input, raw. Only in a session that takes it, and not after its end.
pub const KIND_STDIN: u8 = 2;
/// Client to agent: no more of them. To a terminal that is its end-of-input character. No payload.
pub const KIND_STDIN_END: u8 = 3;
/// Client to agent: [`Signal`] to the session's foreground process group.
pub const KIND_SIGNAL: u8 = 4;
/// Client to agent: the terminal's new [`TerminalSize`].
pub const KIND_RESIZE: u8 = 5;
/// Client to agent: SIGKILL to every process of the session. No payload.
pub const KIND_KILL: u8 = 6;
/// Both ways: data bytes that were taken and make room for as many, `u32` big endian.
pub const KIND_CREDIT: u8 = 7;
/// Client to agent: nobody reads standard output any more. The agent closes its end, so that the command's
/// next write ends it with SIGPIPE as in any pipeline. What is on the way is thrown away. A terminal hangs up
/// instead, as for a lost client, but END still comes. No payload.
pub const KIND_CLOSE_STDOUT: u8 = 8;
/// Client to agent: likewise for standard error. No payload.
pub const KIND_CLOSE_STDERR: u8 = 9;
/// Agent to client: [`Started`].
pub const KIND_STARTED: u8 = 32;
/// Agent to client: standard output, or the terminal's output, raw.
pub const KIND_STDOUT: u8 = 33;
/// Agent to client: standard error, raw.
pub const KIND_STDERR: u8 = 34;
/// Agent to client: nobody reads standard input any more; STDIN is thrown away, so stop. No payload.
pub const KIND_STDIN_CLOSED: u8 = 36;
/// Agent to client: [`End`], the last frame.
pub const KIND_END: u8 = 35;
/// Agent to daemon, right behind END, empty: once the client has left, this connection takes another OPEN.
pub const KIND_AGAIN: u8 = 37;

/// What the session is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Open {
    /// [`VERSION`] of the client.
    pub version: u32,
    /// What to do.
    pub task: Task,
}

/// What a session does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Task {
    /// Runs a command.
    Exec(Exec),
    /// Sends a file or folder as a tar archive on standard output (PAX where it has to be).
    Pack {
        /// Where it is in the guest. A last component that is a link is followed when a `/` or `/.` comes
        /// behind it, or with `follow`. With `/.` the archive's top is `./`, else the last component. A relative
        /// one begins at the root.
        path: String,
        /// Follow a link that is the path itself.
        #[serde(default)]
        follow: bool,
    },
    /// Takes a tar archive from standard input.
    Unpack {
        /// Where it goes in the guest.
        path: String,
        /// How the archive's names are laid out below it.
        layout: Layout,
        /// Owners and groups as the archive has them; otherwise all belongs to root.
        #[serde(default)]
        owners: bool,
    },
    /// Brings a folder up to date and flushes it to the disk. Standard input is a list of changes and then a
    /// tar archive, laid out as with [`Layout::Inside`], or nothing when there is nothing to unpack. END with
    /// code 0 comes when all of it is on the disk.
    ///
    /// The list is made of records, each ended by a zero byte and at most [`MAX_CHANGE_BYTES`] long, and they
    /// are carried out in order:
    ///
    /// - `F PATH` removes a file or link;
    /// - `E PATH` removes a folder if it is empty; one that is not stays;
    /// - `T PATH` removes a folder with all in it, or whatever else has its name;
    /// - `M MODE MTIME_NS PATH` sets permissions, in octal, of a file or folder, and of a file the time of its
    ///   last change, in nanoseconds since 1970.
    ///
    /// A PATH is bytes, relative to the folder, without empty, `.` or `..` steps. What is not there is gone
    /// already, and so is a file where a folder is now, or a folder where a file is: the guest has put something
    /// of its own there, which stays. A link is never followed: what would be behind one on the way to a PATH is
    /// gone too; as the PATH itself it is removed, and `M` leaves it.
    Update {
        /// The folder in the guest; made, with mode 0755, when it is missing.
        path: String,
        /// Length of the list in bytes.
        changes: u32,
    },
}

/// Where [`Task::Unpack`] puts what the archive holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "layout", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Layout {
    /// `path` is an existing folder, and the archive's names go below it as they are.
    Inside,
    /// The archive has one thing at its top, which is its first entry. If `path` is a folder, it goes inside
    /// under the name it has in the archive; otherwise it becomes `path`, whose parent must exist.
    As {
        /// The content of the folder at the top is meant: it goes right into `path` if that is a folder.
        contents: bool,
    },
}

/// A command to run beside the workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// Program and arguments, never empty; bytes that are not UTF-8 have no place in it.
    pub argv: Vec<String>,
    /// Added to the workload's own environment, in order; later entries win.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Working directory, which must exist; nothing means `/workspace`.
    #[serde(default)]
    pub cwd: Option<String>,
    /// `USER[:GROUP]`, names or numbers; nothing means the workload's own.
    #[serde(default)]
    pub user: Option<String>,
    /// A pseudo-terminal of this size; nothing means three pipes.
    #[serde(default)]
    pub terminal: Option<Terminal>,
    /// Whether the client will send standard input; without it the command reads an empty one.
    #[serde(default)]
    pub stdin: bool,
    /// Milliseconds from the start until everything of the session is killed.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// Runs on without a client: the agent says STARTED and END ([`EndCause::Detached`]) and closes; output
    /// goes nowhere, and there is neither input nor terminal. It ends with its worker at the latest.
    #[serde(default)]
    pub detach: bool,
}

impl Exec {
    /// This program with these arguments, and nothing else asked for.
    pub fn new(argv: impl IntoIterator<Item = impl Into<String>>) -> Exec {
        Exec {
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            cwd: None,
            user: None,
            terminal: None,
            stdin: false,
            timeout_ms: None,
            detach: false,
        }
    }
}

/// A pseudo-terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terminal {
    /// Its first size.
    pub size: TerminalSize,
    /// The client's `TERM`; nothing means `xterm`.
    #[serde(default)]
    pub term: Option<String>,
}

/// In characters; 0 is "unknown", as for `TIOCSWINSZ`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// A signal for the foreground process group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signal {
    /// Its Linux number, 1 to 64.
    pub signal: i32,
}

/// The command runs (`execve` succeeded), or the copy begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Started {
    /// Counts the sessions of this machine from 1; also the name of its cgroup.
    pub session: u64,
    /// The command's process id in the guest; 0 for a copy or an update.
    pub pid: u32,
}

/// The agent's last word of a session: everything its processes wrote was sent before it, and all of them are
/// gone (but for [`EndCause::Detached`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// How it ended.
    pub cause: EndCause,
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum EndCause {
    /// The command's own exit code, 0 to 255; 0 for a copy that is whole.
    Exit {
        /// The code.
        code: i32,
    },
    /// A signal ended the command.
    Signal {
        /// Its number.
        signal: i32,
    },
    /// `timeout_ms` was over and all was killed.
    TimedOut,
    /// It runs on without this client.
    Detached,
    /// No such program (127 by custom).
    NotFound {
        /// Why, lower case.
        message: String,
        /// What to do next.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hint: Option<String>,
    },
    /// The program is there and cannot be executed, or its working directory cannot be entered (126 by custom).
    CannotExecute {
        /// Why, lower case.
        message: String,
        /// What to do next.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hint: Option<String>,
    },
    /// Nothing was run: user, limits, a wrong request (125 by custom).
    CouldNotStart {
        /// Why, lower case.
        message: String,
        /// What to do next.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hint: Option<String>,
    },
    /// A copy or an update stopped part of the way (1 by custom).
    CopyFailed {
        /// Why, lower case, with the path.
        message: String,
        /// What to do next.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hint: Option<String>,
    },
}

/// Payload of [`KIND_CREDIT`].
pub fn credit_payload(bytes: u32) -> [u8; 4] {
    bytes.to_be_bytes()
}

/// Takes [`credit_payload`] apart; `None` when it is not four bytes.
pub fn parse_credit(payload: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(payload.try_into().ok()?))
}

/// A sender's view of one direction: how many bytes it may still send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendWindow(usize);

/// The receiver took more than was ever sent: it is broken or hostile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("credit for bytes that were never sent")]
pub struct TooMuchCredit;

impl Default for SendWindow {
    fn default() -> SendWindow {
        SendWindow(WINDOW_BYTES)
    }
}

impl SendWindow {
    /// How many bytes may be sent now.
    pub fn room(&self) -> usize {
        self.0
    }

    /// `bytes` were sent; at most [`SendWindow::room`].
    pub fn sent(&mut self, bytes: usize) {
        self.0 = self.0.checked_sub(bytes).expect("the sender looked at the room first");
    }

    /// The receiver took `bytes`.
    pub fn credited(&mut self, bytes: u32) -> Result<(), TooMuchCredit> {
        let room = self.0.saturating_add(bytes as usize);
        if room > WINDOW_BYTES {
            return Err(TooMuchCredit);
        }
        self.0 = room;
        Ok(())
    }
}

/// A receiver's view of one direction: how much the sender may still send, and what is owed to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiveWindow {
    open: usize,
    owed: usize,
}

/// The sender went over its window: it is broken or hostile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more data than the window of {WINDOW_BYTES} bytes allows")]
pub struct WindowExceeded;

impl Default for ReceiveWindow {
    fn default() -> ReceiveWindow {
        ReceiveWindow { open: WINDOW_BYTES, owed: 0 }
    }
}

impl ReceiveWindow {
    /// Credit is told in portions of at least this many bytes, so that it costs little: with each, all stations between
    /// the two ends are woken once. A frame of data makes one, also where it is a page short of [`MAX_DATA_BYTES`], and the
    /// sender has the other half of the window to go on with.
    const PORTION: usize = WINDOW_BYTES / 8 * 3;

    /// `bytes` of data have arrived.
    pub fn received(&mut self, bytes: usize) -> Result<(), WindowExceeded> {
        self.open = self.open.checked_sub(bytes).ok_or(WindowExceeded)?;
        Ok(())
    }

    /// `bytes` of them were passed on. Returns the credit to tell the sender, if it is worth a frame.
    pub fn taken(&mut self, bytes: usize) -> Option<u32> {
        self.owed += bytes;
        if self.owed < ReceiveWindow::PORTION {
            return None;
        }
        let credit = std::mem::take(&mut self.owed);
        self.open += credit;
        Some(u32::try_from(credit).expect("never more than the window"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_closes_and_opens_again() {
        let mut sender = SendWindow::default();
        let mut receiver = ReceiveWindow::default();
        let mut sent = 0;
        for _ in 0..100 {
            let portion = sender.room().min(MAX_DATA_BYTES);
            assert!(portion > 0, "a receiver that takes everything never closes the window");
            sender.sent(portion);
            receiver.received(portion).unwrap();
            sent += portion;
            if let Some(credit) = receiver.taken(portion) {
                sender.credited(credit).unwrap();
            }
        }
        assert!(sent > 10 * WINDOW_BYTES);
    }

    #[test]
    fn a_receiver_that_takes_nothing_stops_the_sender_at_the_window() {
        let mut sender = SendWindow::default();
        let mut receiver = ReceiveWindow::default();
        while sender.room() > 0 {
            let portion = sender.room().min(MAX_DATA_BYTES);
            sender.sent(portion);
            receiver.received(portion).unwrap();
        }
        assert_eq!(receiver.received(1), Err(WindowExceeded));
    }

    #[test]
    fn credit_for_what_was_not_sent_is_an_error() {
        let mut sender = SendWindow::default();
        assert_eq!(sender.credited(1), Err(TooMuchCredit));
        sender.sent(10);
        assert_eq!(sender.credited(11), Err(TooMuchCredit));
        assert_eq!(sender.credited(10), Ok(()));
    }
}
