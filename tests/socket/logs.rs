//! `logs`: log files, ring and what is still to come are one stream without gap or repetition.

use iii::cli::args::LogsArgs;
use iii::cli::client::logs_path;
use iii::cli::commands;
use iii_protocol::api::{LogsQuery, Phase, WorkerList};

use crate::fake::{Project, printer, record, status};

fn project() -> Project {
    let project = Project::new("workers:\n  - name: web\n    image: redis:7\n");
    project.add(status("web", Phase::Running));
    project
}

async fn seqs(project: &Project, query: LogsQuery) -> Vec<u64> {
    let mut lines = project.ctx.client().get_lines(&logs_path("web", &query)).await.unwrap();
    let mut seqs = Vec::new();
    while let Some(record) = lines.next_record().await.unwrap() {
        seqs.push(record.seq);
    }
    seqs
}

fn line(seq: u64) -> String {
    format!("line {seq} {}\n", "x".repeat(50))
}

#[tokio::test]
async fn old_lines_come_from_the_files_and_new_ones_from_the_ring() {
    let project = project();
    (1..=100).for_each(|seq| project.log("web", seq, &line(seq)));
    let daemon = project.serve().await;
    let all = LogsQuery::default();
    assert_eq!(seqs(&project, all.clone()).await, (1..=100).collect::<Vec<_>>());
    assert_eq!(seqs(&project, LogsQuery { tail: Some(3), ..all.clone() }).await, [98, 99, 100]);
    assert_eq!(seqs(&project, LogsQuery { tail: Some(90), ..all.clone() }).await.len(), 90);
    assert_eq!(seqs(&project, LogsQuery { tail: Some(1000), ..all.clone() }).await.len(), 100);
    assert!(seqs(&project, LogsQuery { tail: Some(0), ..all.clone() }).await.is_empty());
    let since = Some(record(97, "").ts);
    assert_eq!(seqs(&project, LogsQuery { since, ..all }).await, [97, 98, 99, 100]);
    daemon.end().await;
}

#[tokio::test]
async fn events_are_apart_from_what_the_worker_wrote_and_count_in_no_tail_but_their_own() {
    let project = project();
    // Some of both are in the files only, the newest in the ring.
    for seq in 1..=100 {
        project.log("web", seq, &if seq % 10 == 0 { format!("#event {seq}\n") } else { line(seq) });
    }
    let daemon = project.serve().await;
    let output = LogsQuery::default();
    let events = LogsQuery { events: true, ..LogsQuery::default() };
    assert_eq!(seqs(&project, output.clone()).await.len(), 90);
    assert_eq!(seqs(&project, LogsQuery { tail: Some(3), ..output.clone() }).await, [97, 98, 99]);
    assert_eq!(seqs(&project, LogsQuery { tail: Some(80), ..output }).await.len(), 80);
    assert_eq!(seqs(&project, events.clone()).await, [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]);
    assert_eq!(seqs(&project, LogsQuery { tail: Some(1), ..events.clone() }).await, [100]);
    assert_eq!(seqs(&project, LogsQuery { tail: Some(8), ..events }).await.first(), Some(&30));
    daemon.end().await;
}

#[tokio::test]
async fn a_stopped_worker_of_a_new_daemon_still_has_its_logs() {
    let project = project();
    project.log("web", 7, "from before\n");
    project.add(status("web", Phase::Stopped));
    let daemon = project.serve().await;
    assert_eq!(seqs(&project, LogsQuery::default()).await, [7]);
    daemon.end().await;
}

#[tokio::test]
async fn following_goes_on_from_the_past_into_the_future_until_the_daemon_ends() {
    let project = project();
    (1..=60).for_each(|seq| project.log("web", seq, &line(seq)));
    let daemon = project.serve().await;
    let query = LogsQuery { follow: true, ..LogsQuery::default() };
    let mut lines = project.ctx.client().get_lines(&logs_path("web", &query)).await.unwrap();
    for seq in 1..=60 {
        assert_eq!(lines.next_record().await.unwrap().unwrap().seq, seq);
    }
    for seq in 61..=70 {
        project.log("web", seq, &line(seq));
        assert_eq!(lines.next_record().await.unwrap().unwrap().seq, seq);
    }
    daemon.end().await;
    assert!(lines.next_record().await.unwrap().is_none());
}

#[tokio::test]
async fn only_what_is_new_is_followed_with_a_tail_of_nothing() {
    let project = project();
    let daemon = project.serve().await;
    // The files have lines, the ring of this daemon has none yet.
    let dir = project.ctx.home.logs("web");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("output.jsonl"), record(1, "old\n").to_line()).unwrap();
    let query = LogsQuery { follow: true, tail: Some(0), ..LogsQuery::default() };
    let mut lines = project.ctx.client().get_lines(&logs_path("web", &query)).await.unwrap();
    project.log("web", 2, &line(2));
    assert_eq!(lines.next_record().await.unwrap().unwrap().seq, 2);
    daemon.end().await;
}

#[tokio::test]
async fn a_reader_that_stops_reading_holds_up_nobody_and_misses_nothing() {
    const LINES: u64 = 40_000;
    let project = project();
    project.log("web", 1, &line(1));
    let daemon = project.serve().await;
    let query = LogsQuery { follow: true, ..LogsQuery::default() };
    let mut slow = project.ctx.client().get_lines(&logs_path("web", &query)).await.unwrap();
    assert_eq!(slow.next_record().await.unwrap().unwrap().seq, 1);
    for seq in 2..=LINES {
        project.log("web", seq, &line(seq));
        if seq % 1000 == 0 {
            // The others are served as ever.
            let _: WorkerList = project.ctx.client().get("/v1/workers").await.unwrap();
        }
    }
    for seq in 2..=LINES {
        assert_eq!(slow.next_record().await.unwrap().unwrap().seq, seq);
    }
    daemon.end().await;
}

fn args(name: &str) -> LogsArgs {
    LogsArgs {
        name: name.to_owned(),
        follow: false,
        tail: None,
        since: None,
        timestamps: false,
        previous: false,
        events: false,
        json: false,
    }
}

#[tokio::test]
async fn the_command_keeps_the_streams_apart_with_and_without_a_daemon() {
    let project = project();
    project.log("web", 1, "hello\n");
    project.log("web", 2, "!oops\n");
    project.log("web", 3, "no newline");
    let daemon = project.serve().await;
    let (mut with, out, err) = printer();
    commands::logs(&project.ctx, &args("web"), &mut with).await.unwrap();
    assert_eq!((out.text().as_str(), err.text().as_str()), ("hello\nno newline", "!oops\n"));
    daemon.end().await;

    let (mut without, out, err) = printer();
    commands::logs(&project.ctx, &args("web"), &mut without).await.unwrap();
    assert_eq!((out.text().as_str(), err.text().as_str()), ("hello\nno newline", "!oops\n"));

    let (mut follow, out, err) = printer();
    commands::logs(&project.ctx, &LogsArgs { follow: true, ..args("web") }, &mut follow).await.unwrap();
    assert_eq!(out.text(), "hello\nno newline");
    assert!(err.text().contains("nothing to follow; start it with `iii`"), "{}", err.text());
}

#[tokio::test]
async fn logs_of_an_unknown_worker_ask_whether_another_was_meant() {
    let project = project();
    let (mut printer, _, _) = printer();
    let failure = commands::logs(&project.ctx, &args("wbe"), &mut printer).await.unwrap_err();
    let text = failure.text().unwrap();
    assert!(text.contains("there is no worker `wbe`"), "{text}");
    assert!(text.ends_with("hint: did you mean `web`?"), "{text}");
}
