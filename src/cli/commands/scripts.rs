//! What a project's scripts write, shown while its start is waited for.

use iii_protocol::api::{LogsQuery, Phase, WorkerStatus, WorkerType};
use iii_protocol::log::{LogRecord, Stream};

use crate::cli::client::{Client, Lines, logs_path};

/// Most workers that are followed before it is their turn to be waited for: each holds a connection to the daemon.
pub(super) const MAX_FOLLOWED: usize = 16;

/// The log of one worker from some moment on, of which only its scripts' lines are given. A log that cannot be read
/// gives nothing: the start itself does not depend on it.
pub(super) struct Scripts {
    lines: Option<Lines>,
    /// The machine that was asked for; what an earlier one's scripts wrote is no news.
    generation: u64,
    /// The last record that was read, of whatever stream.
    seen: Option<u64>,
    /// Some line was given.
    any: bool,
}

impl Scripts {
    /// Nothing.
    pub(super) fn none() -> Scripts {
        Scripts { lines: None, generation: 0, seen: None, any: false }
    }

    /// Whether there can be any.
    pub(super) fn may_come(accepted: &WorkerStatus) -> bool {
        accepted.worker_type == WorkerType::Local
    }

    /// From now on. `accepted` is the status right after the start was accepted.
    pub(super) async fn follow(client: &Client, accepted: &WorkerStatus) -> Scripts {
        if !Scripts::may_come(accepted) {
            return Scripts::none();
        }
        // The newest record there is comes first: without it `finish` could wait for one that is older than this.
        let lines = client.get_lines(&logs_path(&accepted.name, &newest(true))).await.ok();
        // While the old machine is on the way down, the number is still its own.
        let generation = accepted.generation + u64::from(accepted.phase == Phase::Stopping);
        Scripts { lines, generation, seen: None, any: false }
    }

    /// The next line of a script; waits for ever if there is none. May be cancelled without loss.
    pub(super) async fn next(&mut self) -> LogRecord {
        loop {
            match self.read().await {
                Some(record) if self.is_news(&record) => {
                    self.any = true;
                    return record;
                }
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    }

    /// Gives `show` the lines that were written until now and not read yet. Whether all that the scripts wrote was
    /// shown, and that was something.
    pub(super) async fn finish(
        mut self,
        client: &Client,
        name: &str,
        mut show: impl FnMut(&LogRecord),
    ) -> bool {
        if self.lines.is_none() {
            return false;
        }
        let newest = match client.get_lines(&logs_path(name, &newest(false))).await {
            Ok(mut lines) => lines.next_record().await.ok().flatten(),
            Err(_) => None,
        };
        let Some(newest) = newest else { return false };
        while self.seen.is_none_or(|seen| seen < newest.seq) {
            match self.read().await {
                Some(record) if self.is_news(&record) => {
                    self.any = true;
                    show(&record);
                }
                Some(_) => {}
                None => return false,
            }
        }
        self.any
    }

    async fn read(&mut self) -> Option<LogRecord> {
        let record = self.lines.as_mut()?.next_record().await.ok().flatten();
        match &record {
            Some(record) => self.seen = Some(record.seq),
            // The worker was removed or the daemon ended: who waits is told elsewhere.
            None => self.lines = None,
        }
        record
    }

    fn is_news(&self, record: &LogRecord) -> bool {
        matches!(record.stream, Stream::Setup | Stream::Install) && record.generation >= self.generation
    }
}

/// The newest record, and if `follow` is set everything after it.
fn newest(follow: bool) -> LogsQuery {
    LogsQuery { follow, tail: Some(1), ..LogsQuery::default() }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::{Arc, Mutex};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{UnixListener, UnixStream};
    use tokio::sync::mpsc;

    use super::super::{wait_started, wait_until};
    use super::*;
    use crate::cli::output::Printer;
    use crate::cli::output::tests::{Captured, at, worker};
    use crate::cli::wait::{StartWait, Verdict};

    const WATCH: &str = "/v1/workers/app/watch";
    const FOLLOW: &str = "/v1/workers/app/logs?follow=true&previous=false&tail=1";
    const NEWEST: &str = "/v1/workers/app/logs?follow=false&previous=false&tail=1";

    type Bodies = Arc<Mutex<HashMap<String, mpsc::UnboundedReceiver<Vec<u8>>>>>;

    /// A daemon of canned answers: each path is asked for once, and gets what is sent for it as it comes.
    struct Canned {
        _dir: tempfile::TempDir,
        client: Client,
        bodies: Bodies,
    }

    impl Canned {
        fn new() -> Canned {
            let dir = tempfile::tempdir().unwrap();
            let socket = dir.path().join("sock");
            let listener = UnixListener::bind(&socket).unwrap();
            let bodies = Bodies::default();
            let answers = bodies.clone();
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(answer(stream, answers.clone()));
                }
            });
            Canned { _dir: dir, client: Client::new(&socket), bodies }
        }

        fn body(&self, path: &str) -> mpsc::UnboundedSender<Vec<u8>> {
            let (send, receive) = mpsc::unbounded_channel();
            self.bodies.lock().unwrap().insert(path.to_owned(), receive);
            send
        }
    }

    async fn answer(mut stream: UnixStream, bodies: Bodies) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        let path = head.split(' ').nth(1).unwrap();
        let body = bodies.lock().unwrap().remove(path);
        let Some(mut body) = body else {
            stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            return;
        };
        stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
        while let Some(chunk) = body.recv().await {
            let chunk = [format!("{:x}\r\n", chunk.len()).as_bytes(), &chunk, b"\r\n"].concat();
            // Whoever knows enough leaves.
            if stream.write_all(&chunk).await.is_err() {
                return;
            }
        }
        let _ = stream.write_all(b"0\r\n\r\n").await;
    }

    fn line(seq: u64, generation: u64, stream: Stream, text: &str) -> Vec<u8> {
        LogRecord { seq, ts: at(0), generation, stream, bytes: text.as_bytes().to_vec() }.to_line()
    }

    fn app(phase: Phase) -> WorkerStatus {
        WorkerStatus { worker_type: WorkerType::Local, generation: 2, ..worker("app", phase) }
    }

    fn json(status: &WorkerStatus) -> Vec<u8> {
        let mut line = serde_json::to_vec(status).unwrap();
        line.push(b'\n');
        line
    }

    #[tokio::test]
    async fn what_scripts_write_is_shown_to_the_last_line_and_nothing_else_is() {
        let daemon = Canned::new();
        let (watch, log, newest) = (daemon.body(WATCH), daemon.body(FOLLOW), daemon.body(NEWEST));
        log.send(line(7, 1, Stream::Install, "of the machine before\n")).unwrap();
        log.send(line(8, 2, Stream::Setup, "tools\n")).unwrap();
        log.send(line(9, 2, Stream::Install, "a part")).unwrap();
        log.send(line(10, 2, Stream::Stdout, "the worker itself\n")).unwrap();
        watch.send(json(&app(Phase::Booting))).unwrap();
        watch.send(json(&app(Phase::Running))).unwrap();
        newest.send(line(11, 2, Stream::Install, "late\n")).unwrap();
        // Comes when the answer is known already; the stream itself never ends.
        let late = tokio::spawn(async move {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            log.send(line(11, 2, Stream::Install, "late\n")).unwrap();
            log
        });
        let (out, err) = (Captured::default(), Captured::default());
        let mut printer = Printer::to(out.clone(), err.clone());
        let accepted = app(Phase::Preparing);
        let scripts = Scripts::follow(&daemon.client, &accepted).await;
        let how = wait_started(&daemon.client, &accepted, scripts, &mut printer).await.unwrap();
        assert_eq!(how, "running");
        let said = err.text();
        let scripts: Vec<&str> = said.lines().filter(|line| *line != "app: booting").collect();
        assert_eq!(scripts, ["setup | tools", "install | a part", "install | late"]);
        assert_eq!(out.text(), "");
        drop(late.await.unwrap());
    }

    #[tokio::test]
    async fn a_restart_shows_the_new_machines_scripts_only_and_ends_without_any() {
        let daemon = Canned::new();
        let (watch, log, newest) = (daemon.body(WATCH), daemon.body(FOLLOW), daemon.body(NEWEST));
        log.send(line(7, 2, Stream::Install, "of the old machine\n")).unwrap();
        newest.send(line(7, 2, Stream::Install, "of the old machine\n")).unwrap();
        watch.send(json(&app(Phase::Running))).unwrap();
        let err = Captured::default();
        let mut printer = Printer::to(std::io::sink(), err.clone());
        let accepted = app(Phase::Stopping);
        let scripts = Scripts::follow(&daemon.client, &accepted).await;
        wait_started(&daemon.client, &accepted, scripts, &mut printer).await.unwrap();
        assert_eq!(err.text(), "");
        drop(log);
    }

    #[tokio::test]
    async fn a_log_that_is_refused_or_ends_does_not_keep_the_answer_back() {
        for has_log in [false, true] {
            let daemon = Canned::new();
            let watch = daemon.body(WATCH);
            if has_log {
                drop(daemon.body(FOLLOW));
            }
            let mut printer = Printer::to(std::io::sink(), std::io::sink());
            let scripts = Scripts::follow(&daemon.client, &app(Phase::Preparing)).await;
            watch.send(json(&app(Phase::Running))).unwrap();
            let wait = StartWait::fresh();
            let judge = |status: &WorkerStatus| wait.judge(status);
            assert_eq!(
                wait_until(&daemon.client, "app", &mut printer, scripts, judge).await.unwrap(),
                "running"
            );
        }
    }

    #[tokio::test]
    async fn an_image_has_no_scripts() {
        let daemon = Canned::new();
        let mut printer = Printer::to(std::io::sink(), std::io::sink());
        let (watch, log) = (daemon.body(WATCH), daemon.body(FOLLOW));
        watch.send(json(&worker("app", Phase::Running))).unwrap();
        let scripts = Scripts::follow(&daemon.client, &worker("app", Phase::Preparing)).await;
        let judge = |_: &WorkerStatus| Verdict::Done("done".to_owned());
        wait_until(&daemon.client, "app", &mut printer, scripts, judge).await.unwrap();
        assert!(daemon.bodies.lock().unwrap().contains_key(FOLLOW), "nobody asked");
        drop(log);
    }
}
