//! The newest log records of a worker in memory, for followers; the log files hold the rest.
//!
//! Bytes never travel as actor messages: the machine's link pushes here, readers read here.

pub mod disk;

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use iii_protocol::log::{LogRecord, Wanted};
use tokio::sync::watch;

/// Bytes a ring holds by default.
pub const DEFAULT_RING_BYTES: usize = 256 * 1024;
/// What a record weighs beside its payload: without it, a ring of empty lines would take a hundred times
/// its limit.
pub const RECORD_BYTES: usize = size_of::<LogRecord>();

/// A bounded run of consecutive records, addressed by their numbers.
#[derive(Debug)]
pub struct LogRing {
    inner: Mutex<Inner>,
    next: watch::Sender<u64>,
    limit_bytes: usize,
}

#[derive(Debug, Default)]
struct Inner {
    records: VecDeque<LogRecord>,
    bytes: usize,
}

/// What a reader gets for "from record N on".
#[derive(Debug, PartialEq, Eq)]
pub enum Chunk {
    /// These, in order; possibly none, when N is still to come.
    Records(Vec<LogRecord>),
    /// N is older than the ring: records before this number are in the log files only.
    Expired {
        /// The oldest number in the ring.
        oldest: u64,
    },
}

impl LogRing {
    /// An empty ring that holds `limit_bytes` of records: their output and [`RECORD_BYTES`] each.
    pub fn new(limit_bytes: usize) -> LogRing {
        LogRing { inner: Mutex::default(), next: watch::Sender::new(0), limit_bytes }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A reader that panicked cannot have left the ring half changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the newest record. A gap in the numbers (a slow link) drops what is older than the gap; a
    /// record that is here already is ignored.
    pub fn push(&self, record: LogRecord) {
        let mut inner = self.lock();
        if let Some(last) = inner.records.back() {
            if record.seq <= last.seq {
                return;
            }
            if record.seq != last.seq + 1 {
                inner.records.clear();
                inner.bytes = 0;
            }
        }
        let next = record.seq + 1;
        inner.bytes += RECORD_BYTES + record.bytes.len();
        inner.records.push_back(record);
        while inner.bytes > self.limit_bytes && inner.records.len() > 1 {
            if let Some(old) = inner.records.pop_front() {
                inner.bytes -= RECORD_BYTES + old.bytes.len();
            }
        }
        drop(inner);
        self.next.send_replace(next);
    }

    /// Number of the next record to come; changes wake followers.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.next.subscribe()
    }

    /// Where the last `count` of the wanted records begin; `None` if that is further back than the ring.
    pub fn tail(&self, count: u64, wanted: Wanted) -> Option<u64> {
        let inner = self.lock();
        let mut left = count;
        let mut from = inner.records.back().map(|newest| newest.seq + 1)?;
        for record in inner.records.iter().rev() {
            if left == 0 {
                return Some(from);
            }
            if wanted.takes(record.stream) {
                left -= 1;
                from = record.seq;
            }
        }
        (left == 0).then_some(from)
    }

    /// Up to `max` records from number `from` on.
    pub fn read(&self, from: u64, max: usize) -> Chunk {
        let inner = self.lock();
        let Some(oldest) = inner.records.front().map(|r| r.seq) else { return Chunk::Records(Vec::new()) };
        if from < oldest {
            return Chunk::Expired { oldest };
        }
        let skip = usize::try_from(from - oldest).unwrap_or(usize::MAX);
        Chunk::Records(inner.records.iter().skip(skip).take(max).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use iii_protocol::log::Stream;
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn a_tail_counts_what_is_wanted_and_nothing_else() {
        let ring = LogRing::new(1 << 20);
        assert_eq!(ring.tail(0, Wanted::All), None);
        for seq in 11..=20 {
            let stream = if seq % 5 == 0 { Stream::Event } else { Stream::Stdout };
            let ts = Timestamp::UNIX_EPOCH;
            ring.push(LogRecord { seq, ts, generation: 1, stream, bytes: b"x".to_vec() });
        }
        for (count, wanted, from) in [
            (0, Wanted::Output, Some(21)),
            (3, Wanted::All, Some(18)),
            (1, Wanted::Output, Some(19)),
            (5, Wanted::Output, Some(14)),
            (8, Wanted::Output, Some(11)),
            (9, Wanted::Output, None),
            (1, Wanted::Events, Some(20)),
            (2, Wanted::Events, Some(15)),
            (3, Wanted::Events, None),
        ] {
            assert_eq!(ring.tail(count, wanted), from, "{count} {wanted:?}");
        }
    }

    #[test]
    fn a_flood_of_empty_lines_takes_no_more_memory_than_long_ones() {
        let ring = LogRing::new(100 * RECORD_BYTES);
        for seq in 1..=1000 {
            let ts = Timestamp::UNIX_EPOCH;
            ring.push(LogRecord { seq, ts, generation: 1, stream: Stream::Stdout, bytes: b"\n".to_vec() });
        }
        assert!(ring.lock().records.len() <= 100);
        assert_eq!(*ring.subscribe().borrow(), 1001);
    }
}
