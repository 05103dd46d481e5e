//! Workload output: from the agent's chunks to log records on disk and in the ring.

use std::path::Path;
use std::sync::Arc;

use iii_protocol::log::{LogRecord, MAX_RECORD_BYTES, Stream};
use jiff::Timestamp;

use crate::fsutil::PathError;
use crate::logs::LogRing;
use crate::logs::disk::{DEFAULT_FILE_BYTES, DEFAULT_FILES, LogFiles};

/// A line that has begun.
#[derive(Debug)]
struct Begun {
    ts: Timestamp,
    bytes: Vec<u8>,
}

/// Cuts one stream into lines.
#[derive(Debug, Default)]
struct Lines {
    begun: Option<Begun>,
}

impl Lines {
    /// Calls `emit` for each line that `chunk` ends, and for each part of an overlong one.
    fn feed(&mut self, ts: Timestamp, chunk: &[u8], mut emit: impl FnMut(Begun)) {
        for piece in chunk.split_inclusive(|&byte| byte == b'\n') {
            let mut piece = piece;
            while !piece.is_empty() {
                let begun = self.begun.get_or_insert_with(|| Begun { ts, bytes: Vec::new() });
                let room = MAX_RECORD_BYTES - begun.bytes.len();
                let (now, later) = piece.split_at(room.min(piece.len()));
                begun.bytes.extend_from_slice(now);
                piece = later;
                if begun.bytes.ends_with(b"\n") || begun.bytes.len() == MAX_RECORD_BYTES {
                    self.begun.take().into_iter().for_each(&mut emit);
                }
            }
        }
    }
}

/// Where all output of one machine goes.
#[derive(Debug)]
pub(super) struct Output {
    generation: u64,
    /// What has begun of each stream.
    begun: [(Stream, Lines); 4],
    files: LogFiles,
    ring: Arc<LogRing>,
    next_seq: u64,
    /// Records that the disk would not take; they were in the ring only.
    unwritten: u64,
}

impl Output {
    /// Numbers go on from `first_seq` at least, which is what the daemon has seen: the files may have less
    /// (deleted, or a disk that was full), and a number used twice would be taken for a repetition.
    pub(super) fn open(
        dir: &Path,
        generation: u64,
        first_seq: u64,
        ring: Arc<LogRing>,
    ) -> Result<Output, PathError> {
        let files = LogFiles::open(dir, DEFAULT_FILE_BYTES, DEFAULT_FILES)?;
        let next_seq = files.next_seq().max(first_seq);
        Ok(Output {
            generation,
            begun: [Stream::Stdout, Stream::Stderr, Stream::Setup, Stream::Install]
                .map(|stream| (stream, Lines::default())),
            files,
            ring,
            next_seq,
            unwritten: 0,
        })
    }

    pub(super) fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Takes a chunk as the agent read it. In portions: each of a megabyte of empty lines becomes a record
    /// of many times its size.
    pub(super) fn feed(&mut self, stream: Stream, at_ns: u64, chunk: &[u8]) {
        for portion in chunk.chunks(MAX_RECORD_BYTES) {
            self.feed_portion(stream, at_ns, portion);
        }
    }

    fn feed_portion(&mut self, stream: Stream, at_ns: u64, chunk: &[u8]) {
        let ts = Timestamp::from_nanosecond(i128::from(at_ns)).unwrap_or_default();
        let mut lines = Vec::new();
        // An event is never cut out of a stream.
        if let Some((_, begun)) = self.begun.iter_mut().find(|(its, _)| *its == stream) {
            begun.feed(ts, chunk, |line| lines.push((stream, line)));
        }
        self.publish(lines);
    }

    /// Notes what is not the workload's own, by the host's clock.
    pub(super) fn event(&mut self, line: &str) {
        let bytes = format!("{line}\n").into_bytes();
        self.publish(vec![(Stream::Event, Begun { ts: Timestamp::now(), bytes })]);
    }

    /// Whatever wrote is over: what has begun is all there is.
    pub(super) fn finish(&mut self) {
        let mut rest: Vec<_> = self
            .begun
            .iter_mut()
            .filter_map(|(stream, lines)| lines.begun.take().map(|line| (*stream, line)))
            .collect();
        rest.sort_by_key(|(_, line)| line.ts);
        self.publish(rest);
    }

    /// To disk first, so that a follower never knows more than a later reader of the files.
    fn publish(&mut self, lines: Vec<(Stream, Begun)>) {
        if lines.is_empty() {
            return;
        }
        let records: Vec<LogRecord> = lines
            .into_iter()
            .map(|(stream, line)| {
                let seq = self.next_seq;
                self.next_seq += 1;
                LogRecord { seq, ts: line.ts, generation: self.generation, stream, bytes: line.bytes }
            })
            .collect();
        match self.files.append(&records) {
            Ok(()) if self.unwritten > 0 => {
                tracing::warn!(
                    records = self.unwritten,
                    "log files can be written again; these records are not in them"
                );
                self.unwritten = 0;
            }
            Ok(()) => {}
            Err(error) => {
                if self.unwritten == 0 {
                    tracing::warn!(%error, "log records are not kept on disk until this is mended");
                }
                self.unwritten += records.len() as u64;
            }
        }
        for record in records {
            self.ring.push(record);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::disk::{DiskQuery, read};

    fn open(dir: &Path) -> Output {
        Output::open(dir, 1, 0, Arc::new(LogRing::new(1 << 20))).unwrap()
    }

    fn on_disk(dir: &Path) -> Vec<(Stream, Vec<u8>)> {
        read(dir, &DiskQuery::default()).unwrap().map(|r| r.map(|r| (r.stream, r.bytes)).unwrap()).collect()
    }

    #[test]
    fn lines_keep_their_bytes_and_the_order_in_which_they_ended() {
        let dir = tempfile::tempdir().unwrap();
        let mut output = open(dir.path());
        output.feed(Stream::Stdout, 1, b"one\ntw");
        output.feed(Stream::Stderr, 2, b"err \xff\n");
        output.event("egress denied");
        output.feed(Stream::Stdout, 3, b"o\n\nrest");
        output.finish();
        let expected: [(Stream, &[u8]); 6] = [
            (Stream::Stdout, b"one\n"),
            (Stream::Stderr, b"err \xff\n"),
            (Stream::Event, b"egress denied\n"),
            (Stream::Stdout, b"two\n"),
            (Stream::Stdout, b"\n"),
            (Stream::Stdout, b"rest"),
        ];
        let got = on_disk(dir.path());
        assert_eq!(got.iter().map(|(s, b)| (*s, b.as_slice())).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn numbers_are_not_used_again_when_the_files_were_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let ring = Arc::new(LogRing::new(1 << 20));
        let mut output = Output::open(dir.path(), 2, 40, Arc::clone(&ring)).unwrap();
        output.feed(Stream::Stdout, 1, b"a\nb\n");
        assert_eq!(*ring.subscribe().borrow(), 42);
        assert_eq!(Output::open(dir.path(), 3, 0, ring).unwrap().next_seq(), 42);
    }

    #[test]
    fn an_overlong_line_comes_in_parts_that_join_to_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let mut output = open(dir.path());
        let mut line = vec![b'x'; 3 * MAX_RECORD_BYTES + 5];
        line.push(b'\n');
        for chunk in line.chunks(1000) {
            output.feed(Stream::Stdout, 1, chunk);
        }
        let got = on_disk(dir.path());
        assert_eq!(got.len(), 4);
        assert_eq!(got.into_iter().flat_map(|(_, bytes)| bytes).collect::<Vec<_>>(), line);
    }
}
