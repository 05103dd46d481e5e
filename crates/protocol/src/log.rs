//! One line of a worker's log: on disk, on the daemon's link and on `logs` streams alike.
//!
//! A record holds at most one line of output, its newline included; a record without one is a part
//! (a longer line goes on in the next record of the same stream, or the stream ended there). Joining
//! the `bytes` of a stream's records gives back exactly what the workload wrote.
//!
//! As JSON: `{"seq":1,"ts":"2026-01-02T03:04:05.000000006Z","gen":3,"stream":"stdout","text":"hi\n"}`;
//! bytes that are not UTF-8 are in `base64` instead of `text`.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The most bytes one record holds; longer lines are split into parts.
pub const MAX_RECORD_BYTES: usize = 16 * 1024;

/// Which of the workload's outputs, or who else wrote the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
    /// Not the workload: what its network refused, as the shim tells it.
    Event,
    /// What the project's `setup` script wrote on either of its outputs.
    Setup,
    /// Likewise, its `install` script.
    Install,
}

/// Which records a reader wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Wanted {
    /// All there are.
    #[default]
    All,
    /// What the workload and its project's scripts wrote.
    Output,
    /// What none of them wrote.
    Events,
}

impl Wanted {
    /// Whether records of this stream are wanted.
    pub fn takes(self, stream: Stream) -> bool {
        match self {
            Wanted::All => true,
            Wanted::Output => stream != Stream::Event,
            Wanted::Events => stream == Stream::Event,
        }
    }
}

/// One line, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// Position in the worker's log; grows by one with each record, across restarts too.
    pub seq: u64,
    /// When the line's first byte was read, by the guest's clock.
    pub ts: Timestamp,
    /// The worker's start counter.
    pub generation: u64,
    /// Where it was written.
    pub stream: Stream,
    /// The exact bytes.
    pub bytes: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    seq: u64,
    ts: Timestamp,
    r#gen: u64,
    stream: Stream,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    text: Option<std::borrow::Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    base64: Option<String>,
}

/// Why a line of a log file is not a record.
#[derive(Debug, thiserror::Error)]
pub enum LogLineError {
    /// Not the JSON it should be.
    #[error("not a log record: {0}")]
    Json(#[from] serde_json::Error),
    /// The `base64` field is not base64.
    #[error("a log record with bad base64: {0}")]
    Base64(#[from] base64::DecodeError),
    /// Neither `text` nor `base64`, or both.
    #[error("a log record needs exactly one of `text` and `base64`")]
    Body,
}

impl LogRecord {
    /// The record as one JSON line, newline included.
    pub fn to_line(&self) -> Vec<u8> {
        let (text, base64) = match std::str::from_utf8(&self.bytes) {
            Ok(text) => (Some(text.into()), None),
            Err(_) => (None, Some(STANDARD.encode(&self.bytes))),
        };
        let line =
            Line { seq: self.seq, ts: self.ts, r#gen: self.generation, stream: self.stream, text, base64 };
        let mut out = serde_json::to_vec(&line).expect("log records always serialise");
        out.push(b'\n');
        out
    }

    /// Reads one JSON line, with or without its newline.
    pub fn from_line(line: &[u8]) -> Result<LogRecord, LogLineError> {
        let line: Line<'_> = serde_json::from_slice(line)?;
        let bytes = match (line.text, line.base64) {
            (Some(text), None) => text.into_owned().into_bytes(),
            (None, Some(base64)) => STANDARD.decode(base64)?,
            _ => return Err(LogLineError::Body),
        };
        Ok(LogRecord { seq: line.seq, ts: line.ts, generation: line.r#gen, stream: line.stream, bytes })
    }
}
