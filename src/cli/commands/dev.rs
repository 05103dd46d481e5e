use iii_protocol::api::{LogsQuery, Phase, StopRequest, WorkerStatus};
use iii_protocol::log::LogRecord;
use iii_protocol::shim::without_last_lines;
use jiff::Timestamp;

use super::logs::Show;
use super::why_no_more;
use crate::cli::args::DevArgs;
use crate::cli::client::{Client, Lines, logs_path, worker_path};
use crate::cli::context::Context;
use crate::cli::exit::Failure;
use crate::cli::output::Printer;

/// `iii worker dev`: holds the stream for whose life the project is followed, and shows what comes.
pub async fn dev(ctx: &Context, args: &DevArgs, printer: &mut Printer) -> Result<(), Failure> {
    let (client, name) = (ctx.client(), &args.name);
    // First of all, so that no edit is missed, and a worker that cannot be developed is not started.
    let develop = client.post_lines(&worker_path(name, "develop"), &StopRequest::default()).await;
    let mut changes = develop.map_err(|e| ctx.explain(e))?;
    let (mut output, mut events) = (follow(&client, name, false).await?, follow(&client, name, true).await?);
    let started: WorkerStatus = client
        .post(&worker_path(name, "start"), &StopRequest::default())
        .await
        .map_err(|e| ctx.explain(e))?;
    printer.say(&format!("{}: its files are followed; Ctrl-C leaves, the worker runs on", started.name));

    let (mut show, mut story) = (Show::new(false, args.timestamps), Story::default());
    loop {
        tokio::select! {
            // What it wrote comes before what became of it.
            biased;
            record = output.next_record() => match record? {
                Some(record) => {
                    show.record(&record, printer)?;
                    if !output.has_line() {
                        printer.flush()?;
                    }
                }
                None => return Err(why_no_more(&client, name).await),
            },
            record = events.next_record() => match record? {
                Some(record) => printer.say(&event(name, &record)),
                None => return Err(why_no_more(&client, name).await),
            },
            status = changes.next_json::<WorkerStatus>() => match status? {
                Some(status) => {
                    if let Some(line) = story.line(&status) {
                        printer.say(&line);
                    }
                }
                None => return Err(why_no_more(&client, name).await),
            },
        }
    }
}

/// What is written from now on.
async fn follow(client: &Client, name: &str, events: bool) -> Result<Lines, Failure> {
    let query = LogsQuery { follow: true, tail: Some(0), events, ..LogsQuery::default() };
    Ok(client.get_lines(&logs_path(name, &query)).await?)
}

fn event(name: &str, record: &LogRecord) -> String {
    // Of a script that failed all lines are above.
    format!("{name}: {}", without_last_lines(String::from_utf8_lossy(&record.bytes).trim_end()))
}

/// What of its states is told: each once, and why.
#[derive(Debug, Default)]
struct Story {
    told: Option<Told>,
}

#[derive(Debug, PartialEq, Eq)]
struct Told {
    phase: Phase,
    generation: u64,
    cause: Option<String>,
    step: Option<String>,
    running_since: Option<Timestamp>,
}

impl Story {
    fn line(&mut self, status: &WorkerStatus) -> Option<String> {
        let cause = status.cause.as_ref().map(|cause| without_last_lines(&cause.message).to_owned());
        // How far a pull or a copy is would be a line for each step; of a running worker it is what happens to it.
        let detail = status.detail.clone().filter(|_| status.phase == Phase::Running);
        let step = status.not_in_force().or(status.step()).filter(|_| detail.is_some());
        let now = Told {
            phase: status.phase,
            generation: status.generation,
            cause: cause.clone(),
            step: step.map(str::to_owned),
            running_since: status.running_since,
        };
        if self.told.as_ref() == Some(&now) {
            return None;
        }
        // Of the machine that runs already: what is done to it, and what came of it.
        let before = self.told.replace(now);
        let before = before.filter(|before| {
            (before.phase, status.phase, before.generation)
                == (Phase::Running, Phase::Running, status.generation)
        });
        let (name, phase) = (&status.name, status.phase);
        let is_restart = before.as_ref().is_some_and(|before| before.running_since != status.running_since);
        Some(match (cause, detail) {
            _ if is_restart => format!("{name}: restarted in place"),
            (Some(cause), _) => format!("{name}: {phase}: {cause}"),
            (None, Some(detail)) => format!("{name}: {detail}"),
            (None, None) if before.is_some() => format!("{name}: up to date"),
            (None, None) => format!("{name}: {phase}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::tests::worker;

    #[test]
    fn a_restart_in_place_is_told_from_its_beginning_to_its_end_and_nothing_twice() {
        let running = worker("app", Phase::Running);
        let busy = |detail: &str| WorkerStatus { detail: Some(detail.to_owned()), ..running.clone() };
        let since = Some(Timestamp::UNIX_EPOCH);
        let mut story = Story::default();
        let mut lines = Vec::new();
        for status in [
            WorkerStatus { detail: Some("1 of 2".to_owned()), ..worker("app", Phase::Booting) },
            WorkerStatus { detail: Some("2 of 2".to_owned()), ..worker("app", Phase::Booting) },
            running.clone(),
            running.clone(),
            busy("copying the project: 1 to copy"),
            busy("restarting the workload"),
            WorkerStatus { running_since: since, ..busy("restarting the workload") },
            WorkerStatus { running_since: since, ..running.clone() },
        ] {
            lines.extend(story.line(&status));
        }
        assert_eq!(
            lines,
            [
                "app: booting",
                "app: running",
                "app: copying the project: 1 to copy",
                "app: restarting the workload",
                "app: restarted in place",
                "app: up to date"
            ]
        );
    }
}
