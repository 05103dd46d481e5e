//! The console: what the guest's kernel and the VMM itself say. Kept apart from the workload's output.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

use super::machine::plain;

/// Name of the console file in the worker's log folder; `console.log.1` is the one before.
pub const CONSOLE_NAME: &str = "console.log";
/// Bytes after which the console file is rotated; two are kept, so a guest cannot fill the disk with it.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// Bytes kept in memory for error messages.
const TAIL_BYTES: usize = 4 * 1024;
/// Lines of the tail that an error shows.
const TAIL_LINES: usize = 12;

/// Reads the console until its last writer is gone.
#[derive(Debug)]
pub(super) struct Console {
    tail: Arc<Mutex<VecDeque<u8>>>,
    reader: JoinHandle<()>,
}

impl Console {
    pub(super) fn start(pipe: pipe::Receiver, log_dir: &Path) -> io::Result<Console> {
        let tail = Arc::new(Mutex::new(VecDeque::with_capacity(TAIL_BYTES)));
        let file = Rotated::open(log_dir.join(CONSOLE_NAME))?;
        let reader = tokio::spawn(copy(pipe, file, Arc::clone(&tail)));
        Ok(Console { tail, reader })
    }

    /// Waits until everything written so far by a dead VMM has been read.
    pub(super) async fn drained(&mut self) {
        // A panic of the reader has been reported already; the tail is what there is.
        let _ = (&mut self.reader).await;
    }

    /// The last lines, for an error message; empty if nothing was said.
    pub(super) fn tail(&self) -> String {
        let bytes: Vec<u8> =
            self.tail.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        let text = plain(&String::from_utf8_lossy(&bytes));
        let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

async fn copy(mut pipe: pipe::Receiver, mut file: Rotated, tail: Arc<Mutex<VecDeque<u8>>>) {
    let mut buffer = Vec::with_capacity(4096);
    loop {
        buffer.clear();
        match pipe.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        {
            let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
            tail.extend(&buffer);
            let excess = tail.len().saturating_sub(TAIL_BYTES);
            tail.drain(..excess);
        }
        // A full disk must not stop the guest's console: the tail in memory goes on.
        let _ = file.write(&buffer);
    }
}

struct Rotated {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Rotated {
    fn open(path: PathBuf) -> io::Result<Rotated> {
        let file = File::options().create(true).append(true).open(&path)?;
        let bytes = file.metadata()?.len();
        Ok(Rotated { path, file, bytes })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.bytes >= MAX_FILE_BYTES {
            let mut old = self.path.clone().into_os_string();
            old.push(".1");
            std::fs::rename(&self.path, old)?;
            *self = Rotated::open(self.path.clone())?;
        }
        self.file.write_all(bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}
