//! One function per command: ask, print, return how it went.

mod add;
mod add_local;
mod cp;
mod daemon;
mod dev;
mod dry_run;
mod exec;
mod list;
mod logs;
mod pull;
mod remove;
mod restart;
mod scripts;
mod start;
mod status;
mod stop;

use std::time::Duration;

use iii_protocol::api::{ErrorBody, ErrorCode, StopRequest, WorkerStatus};
use iii_protocol::shim::without_last_lines;

pub use add::add;
pub use cp::cp;
pub use daemon::daemon;
pub use dev::dev;
pub use exec::exec;
pub use list::list;
pub use logs::logs;
pub use remove::remove;
pub use restart::restart;
pub use start::start;
pub use status::status;
pub use stop::stop;

use super::client::{Client, ClientError, worker_path};
use super::context::Context;
use super::exit::Failure;
use super::output::Printer;
use super::progress::WaitProgress;
use super::wait::{StartWait, Verdict, judge_stop};
use scripts::{MAX_FOLLOWED, Scripts};

/// Follows a worker's changes until `judge` knows the answer, and returns its words. Meanwhile what its project's
/// scripts write is shown.
async fn wait_until(
    client: &Client,
    name: &str,
    printer: &mut Printer,
    mut scripts: Scripts,
    judge: impl Fn(&WorkerStatus) -> Verdict,
) -> Result<String, Failure> {
    let mut changes = client.get_lines(&worker_path(name, "watch")).await?;
    let mut progress = WaitProgress::new(printer.err_style);
    let answer = loop {
        let change = tokio::select! {
            biased;
            change = changes.next_json::<WorkerStatus>() => change,
            line = scripts.next() => {
                progress.above(|| printer.script_line(&line));
                continue;
            }
        };
        let status = match change {
            Ok(Some(status)) => status,
            Ok(None) => break Err(why_no_more(client, name).await),
            Err(e) => break Err(e.into()),
        };
        match judge(&status) {
            // The other two are told by the answer itself.
            Verdict::Pending => progress.status(printer, &status),
            Verdict::Done(how) => break Ok(Ok(how)),
            Verdict::Failed(error) => break Ok(Err(error)),
        }
    };
    let shown = scripts.finish(client, name, |line| progress.above(|| printer.script_line(line))).await;
    progress.finish();
    Ok(answer?.map_err(|error| told_once(error, shown))?)
}

/// What its script wrote last is part of a failure, unless it was `shown` already.
fn told_once(error: ErrorBody, shown: bool) -> ErrorBody {
    let message = if shown { without_last_lines(&error.message) } else { &error.message };
    ErrorBody { message: message.to_owned(), ..error }
}

/// Waits until a worker runs whose start was accepted.
async fn wait_started(
    client: &Client,
    accepted: &WorkerStatus,
    scripts: Scripts,
    printer: &mut Printer,
) -> Result<String, Failure> {
    let wait = StartWait::new(accepted);
    wait_until(client, &accepted.name, printer, scripts, |status| wait.judge(status)).await
}

/// A stream of changes has come to its end: the worker is gone, or the daemon is.
async fn why_no_more(client: &Client, name: &str) -> Failure {
    match client.get::<WorkerStatus>(&worker_path(name, "")).await {
        Err(ClientError::Refused(ErrorBody { code: ErrorCode::NotFound, .. })) => {
            Failure::failed(format!("`{name}` was removed in the meantime"))
        }
        Err(e @ ClientError::Refused(_)) => e.into(),
        Ok(_) | Err(_) => ClientError::Gone(format!("it ended while `{name}` was waited for")).into(),
    }
}

/// Waits until a worker that was told to stop has stopped.
async fn wait_stopped(client: &Client, name: &str, printer: &mut Printer) -> Result<String, Failure> {
    wait_until(client, name, printer, Scripts::none(), judge_stop).await
}

/// Says how each of several went, in order; a failure does not keep the others from their turn.
struct Tally {
    failures: Vec<Failure>,
    several: bool,
}

impl Tally {
    fn of(count: usize) -> Tally {
        Tally { failures: Vec::new(), several: count > 1 }
    }

    fn note(&mut self, printer: &mut Printer, result: Result<(), Failure>) {
        let Err(failure) = result else { return };
        if self.several {
            printer.fail(&failure);
        }
        self.failures.push(failure);
    }

    fn result(mut self) -> Result<(), Failure> {
        match self.failures.pop() {
            None => Ok(()),
            Some(_) if self.several => Err(Failure::Said),
            Some(failure) => Err(failure),
        }
    }
}

/// The grace of a stop on the wire.
fn grace_ms(timeout: Option<Duration>) -> Option<u64> {
    timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX))
}

/// Asks the daemon for one thing per name; names the project if there is no daemon.
async fn post_each(
    ctx: &Context,
    names: &[String],
    verb: &str,
    body: &impl serde::Serialize,
    printer: &mut Printer,
    tally: &mut Tally,
) -> Vec<WorkerStatus> {
    let client = ctx.client();
    let mut accepted = Vec::new();
    for name in names {
        match client.post::<WorkerStatus>(&worker_path(name, verb), body).await {
            Ok(status) => accepted.push(status),
            Err(e) => {
                let gone = matches!(e, ClientError::NoDaemon);
                tally.note(printer, Err(ctx.explain(e)));
                // The others would only say the same.
                if gone {
                    break;
                }
            }
        }
    }
    accepted
}

/// Posts `verb` for all workers first, then waits, unless told not to, until each runs.
async fn post_and_await_start(
    ctx: &Context,
    names: &[String],
    verb: &str,
    body: &StopRequest,
    no_wait: bool,
    printer: &mut Printer,
) -> Result<(), Failure> {
    let mut tally = Tally::of(names.len());
    let client = ctx.client();
    let all = post_each(ctx, names, verb, body, printer, &mut tally).await;
    if no_wait {
        all.iter().for_each(|accepted| printer.say(&format!("{}: {}", accepted.name, accepted.phase)));
        return tally.result();
    }
    // All start side by side: what one writes while another is waited for is kept for its turn.
    let mut followed = Vec::new();
    for accepted in all.iter().filter(|accepted| Scripts::may_come(accepted)).take(MAX_FOLLOWED) {
        followed.push((&accepted.name, Scripts::follow(&client, accepted).await));
    }
    let mut followed = followed.into_iter().peekable();
    for accepted in &all {
        let scripts = match followed.next_if(|(name, _)| *name == &accepted.name) {
            Some((_, scripts)) => scripts,
            None => Scripts::follow(&client, accepted).await,
        };
        let answer = wait_started(&client, accepted, scripts, printer).await;
        let told = answer.map(|how| printer.say(&format!("{}: {how}", accepted.name)));
        tally.note(printer, told);
    }
    tally.result()
}
