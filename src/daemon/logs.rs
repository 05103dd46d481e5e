//! A worker's log as one stream: log files first, then the ring, then what is still to come.
//!
//! ```text
//!            record not in the ring                 read up to the ring's oldest
//!   Ring ------------------------------> Disk -------------------------------------> Ring
//!    | nothing there yet: wait if following, else end
//! ```
//! The client pulls: a batch is read when the one before has been sent, so that a slow client holds one
//! batch and blocks nobody.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, stream};
use iii_protocol::api::LogsQuery;
use iii_protocol::log::{LogRecord, Wanted};
use jiff::Timestamp;
use tokio::sync::watch;

use super::routes::Edge;
use super::server::closed;
use crate::actors::messages::{SupervisorMsg, WorkerView};
use crate::logs::disk::DiskQuery;
use crate::logs::{Chunk, disk};

/// How many records one batch holds at most.
const BATCH_RECORDS: usize = 128;
/// How many bytes of output end a batch.
const BATCH_BYTES: usize = 64 * 1024;

/// Records on their way from the log files, oldest first.
type Records = Box<dyn Iterator<Item = io::Result<LogRecord>> + Send>;

/// Where one client is in one worker's log.
pub(super) struct LogSource {
    view: WorkerView,
    dir: PathBuf,
    /// The next record to send.
    next: u64,
    /// The first record not to send; `None` follows.
    until: Option<u64>,
    since: Option<Timestamp>,
    wanted: Wanted,
    follow: bool,
    /// Nothing old is wanted (`tail=0`), but where "new" begins is not known yet.
    only_new: bool,
    stage: Stage,
}

enum Stage {
    Disk {
        records: Records,
        /// Where the ring takes over at the earliest.
        resume: u64,
    },
    Ring,
    End,
}

impl LogSource {
    /// Finds the beginning; opens the log files if it is there.
    pub(super) async fn open(view: WorkerView, dir: PathBuf, query: &LogsQuery) -> io::Result<LogSource> {
        let upper = *view.ring.subscribe().borrow();
        let wanted = query.wanted();
        // The ring may not go back as far as that.
        let tail = query.tail.map(|tail| (tail, view.ring.tail(tail, wanted)));
        let mut source = LogSource {
            view,
            dir,
            next: tail.and_then(|(_, from)| from).unwrap_or(0),
            until: (!query.follow).then_some(upper),
            since: query.since,
            wanted,
            follow: query.follow,
            only_new: false,
            stage: Stage::Ring,
        };
        if query.previous || upper == 0 {
            // The ring cannot tell: it knows neither generations of old nor an end of its own.
            source.until = None;
            source.only_new = query.follow && query.tail == Some(0);
            let disk = DiskQuery {
                wanted,
                tail: query.tail,
                since: query.since,
                previous: query.previous,
                ..DiskQuery::default()
            };
            source.open_disk(disk, 0).await?;
        } else if let Some((tail, None)) = tail {
            let disk = DiskQuery { wanted, tail: Some(tail), until_seq: Some(upper), ..DiskQuery::default() };
            source.open_disk(disk, upper).await?;
        } else if let Chunk::Expired { oldest } = source.view.ring.read(source.next, 0) {
            source.open_gap(oldest).await?;
        }
        Ok(source)
    }

    /// The records as lines, until the end or, when following, until the daemon or the worker ends.
    pub(super) fn into_stream(
        self,
        name: String,
        edge: Arc<Edge>,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        let closing = edge.closing.clone();
        stream::unfold(Some((self, name, edge, closing)), |state| async move {
            let (mut source, name, edge, mut closing) = state?;
            match source.next_batch(&name, &edge, &mut closing).await {
                Ok(Some(lines)) => Some((Ok(lines), Some((source, name, edge, closing)))),
                Ok(None) => None,
                Err(e) => {
                    tracing::warn!(worker = name, error = %e, "a log stream ended early");
                    Some((Err(e), None))
                }
            }
        })
    }

    async fn next_batch(
        &mut self,
        name: &str,
        edge: &Edge,
        closing: &mut watch::Receiver<bool>,
    ) -> io::Result<Option<Bytes>> {
        loop {
            match std::mem::replace(&mut self.stage, Stage::End) {
                Stage::End => return Ok(None),
                Stage::Disk { records, resume } => {
                    let (records, batch) = tokio::task::spawn_blocking(move || read_batch(records)).await??;
                    if batch.is_empty() {
                        self.next = self.next.max(resume);
                        self.stage =
                            if self.follow || self.until.is_some() { Stage::Ring } else { Stage::End };
                        continue;
                    }
                    self.stage = Stage::Disk { records, resume };
                    if let Some(lines) = self.take(batch) {
                        return Ok(Some(lines));
                    }
                }
                Stage::Ring => {
                    // Subscribed before reading: what comes after the read wakes the wait.
                    let pushed = self.view.ring.subscribe();
                    match self.view.ring.read(self.next, BATCH_RECORDS) {
                        Chunk::Expired { oldest } if self.only_new => {
                            self.next = oldest;
                            self.stage = Stage::Ring;
                        }
                        Chunk::Expired { oldest } => self.open_gap(oldest).await?,
                        Chunk::Records(batch) if batch.is_empty() => {
                            if !self.follow {
                                return Ok(None);
                            }
                            // After the last news, what came along with them is still to be read.
                            self.follow = self.wait(pushed, name, edge, closing).await;
                            self.stage = Stage::Ring;
                        }
                        Chunk::Records(batch) => {
                            self.stage = Stage::Ring;
                            if let Some(lines) = self.take(batch) {
                                return Ok(Some(lines));
                            }
                        }
                    }
                }
            }
        }
    }

    /// Waits for news; false when there will be none.
    async fn wait(
        &mut self,
        mut pushed: watch::Receiver<u64>,
        name: &str,
        edge: &Edge,
        closing: &mut watch::Receiver<bool>,
    ) -> bool {
        let gone = async |status: &mut watch::Receiver<_>| while status.changed().await.is_ok() {};
        tokio::select! {
            biased;
            // The ring is ours as long as `view` lives, so that this cannot fail.
            _ = pushed.changed() => true,
            () = gone(&mut self.view.status) => self.find_again(name, edge).await,
            () = closed(closing) => false,
        }
    }

    /// The worker's actor is gone: removed, or replaced after a defect of ours.
    async fn find_again(&mut self, name: &str, edge: &Edge) -> bool {
        let view = edge.call(|reply| SupervisorMsg::View { name: name.to_owned(), reply }).await;
        match view {
            Ok(Ok(view)) if view.status.has_changed().is_ok() => {
                self.view = view;
                true
            }
            _ => false,
        }
    }

    /// Lines of those records that are wanted, if any; goes on behind the last one.
    fn take(&mut self, batch: Vec<LogRecord>) -> Option<Bytes> {
        let mut lines = Vec::new();
        for record in batch {
            if self.until.is_some_and(|until| record.seq >= until) {
                self.stage = Stage::End;
                break;
            }
            self.next = record.seq + 1;
            self.only_new = false;
            if self.wanted.takes(record.stream) && self.since.is_none_or(|since| record.ts >= since) {
                lines.extend(record.to_line());
            }
        }
        (!lines.is_empty()).then(|| lines.into())
    }

    async fn open_gap(&mut self, oldest: u64) -> io::Result<()> {
        let query = DiskQuery {
            wanted: self.wanted,
            from_seq: Some(self.next),
            until_seq: Some(oldest),
            since: self.since,
            ..DiskQuery::default()
        };
        self.open_disk(query, oldest).await
    }

    async fn open_disk(&mut self, query: DiskQuery, resume: u64) -> io::Result<()> {
        let dir = self.dir.clone();
        let records = tokio::task::spawn_blocking(move || open(&dir, &query)).await??;
        self.stage = Stage::Disk { records, resume };
        Ok(())
    }
}

fn open(dir: &Path, query: &DiskQuery) -> io::Result<Records> {
    Ok(Box::new(disk::read(dir, query)?))
}

/// Reads until a batch is full; an empty one is the end.
fn read_batch(mut records: Records) -> io::Result<(Records, Vec<LogRecord>)> {
    let mut batch = Vec::new();
    let mut bytes = 0;
    while batch.len() < BATCH_RECORDS && bytes < BATCH_BYTES {
        let Some(record) = records.next().transpose()? else { break };
        bytes += record.bytes.len();
        batch.push(record);
    }
    Ok((records, batch))
}
