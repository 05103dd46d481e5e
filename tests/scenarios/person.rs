//! A person at a terminal: types, and sees what is shown.

use std::io::{Read, Write};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, SlavePty, native_pty_system};

use super::bed::Bed;

/// What a terminal has shown so far.
type Shown = Arc<(Mutex<Vec<u8>>, Condvar)>;

/// A command on a terminal of its own, with somebody who looks at it.
pub(super) struct Person {
    pub(super) master: Box<dyn MasterPty + Send>,
    /// Held open, so that the terminal outlives the command.
    slave: Box<dyn SlavePty + Send>,
    keys: Box<dyn Write + Send>,
    child: Box<dyn Child + Send + Sync>,
    shown: Shown,
    reader: JoinHandle<()>,
    /// Up to where it was looked at.
    looked_at: usize,
    pub(super) modes_before: String,
    patience: Duration,
}

pub(super) fn size(rows: u16, cols: u16) -> PtySize {
    PtySize { rows, cols, pixel_width: 0, pixel_height: 0 }
}

impl Person {
    /// Types a command of `iii`.
    pub(super) fn runs(bed: &Bed, args: &[&str], env: &[(&str, &str)]) -> Person {
        let pair = native_pty_system().openpty(size(33, 101)).unwrap();
        let modes_before = format!("{:?}", pair.master.get_termios().unwrap());
        let mut reader = pair.master.try_clone_reader().unwrap();
        let keys = pair.master.take_writer().unwrap();
        let child = pair.slave.spawn_command(on_terminal(&bed.command(args), env));
        let shown = Shown::default();
        let to = shown.clone();
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // An error is how a terminal tells that nobody has its other end open.
            while let Ok(read @ 1..) = reader.read(&mut buffer) {
                to.0.lock().unwrap().extend_from_slice(&buffer[..read]);
                to.1.notify_all();
            }
        });
        Person {
            master: pair.master,
            slave: pair.slave,
            keys,
            child: child.unwrap(),
            shown,
            reader,
            looked_at: 0,
            modes_before,
            patience: bed.patience(),
        }
    }

    /// Waits until the screen shows this, behind what it showed the last time.
    pub(super) fn sees(&mut self, text: &str) {
        let deadline = Instant::now() + self.patience;
        let mut shown = self.shown.0.lock().unwrap();
        loop {
            let new = &shown[self.looked_at..];
            if let Some(at) = new.windows(text.len()).position(|window| window == text.as_bytes()) {
                self.looked_at += at + text.len();
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "never saw {text:?}: {:?}", String::from_utf8_lossy(&shown));
            shown = self.shown.1.wait_timeout(shown, left).unwrap().0;
        }
    }

    pub(super) fn types(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    pub(super) fn modes(&self) -> String {
        format!("{:?}", self.master.get_termios().unwrap())
    }

    pub(super) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.process_id().unwrap()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// The exit code and all that was shown. The terminal is as it was before.
    pub(super) fn leaves(mut self) -> (u32, String) {
        let code = self.child.wait().unwrap().exit_code();
        assert_eq!(self.modes(), self.modes_before, "the terminal is as it was before");
        // The keys stay until all was seen: they type a last line when they are dropped.
        drop(self.slave);
        self.reader.join().unwrap();
        let shown = self.shown.0.lock().unwrap();
        (code, String::from_utf8_lossy(&shown).into_owned())
    }
}

/// The same command for a terminal.
fn on_terminal(command: &Command, more: &[(&str, &str)]) -> CommandBuilder {
    let mut other = CommandBuilder::new(command.get_program());
    other.args(command.get_args());
    other.cwd(command.get_current_dir().unwrap());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => other.env(key, value),
            None => other.env_remove(key),
        }
    }
    for (key, value) in more {
        other.env(key, value);
    }
    other
}
