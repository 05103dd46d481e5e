use iii_protocol::api::{WorkerList, WorkerStatus};
use jiff::Timestamp;
use serde::Serialize;

use crate::cli::args::ListArgs;
use crate::cli::client::ClientError;
use crate::cli::context::Context;
use crate::cli::exit::Failure;
use crate::cli::offline::{RUNNING_WORD, worker_status};
use crate::cli::output::{Printer, Row, worker_table};

/// `iii worker list --json`.
#[derive(Debug, Serialize)]
struct ListJson<'a> {
    /// Whether a daemon answered; without one `running` is all that is known of a machine.
    daemon: bool,
    workers: &'a [WorkerStatus],
    config_error: Option<&'a str>,
}

/// What is to be listed, and who said so.
pub(super) struct Listing {
    pub(super) daemon: bool,
    pub(super) list: WorkerList,
}

impl Listing {
    /// From the daemon, or without one from what is on disk.
    pub(super) async fn get(ctx: &Context) -> Result<Listing, Failure> {
        match ctx.client().get("/v1/workers").await {
            Ok(list) => Ok(Listing { daemon: true, list }),
            Err(ClientError::NoDaemon) => {
                let config = ctx.load()?;
                let workers = config.workers.iter().map(|worker| worker_status(ctx, worker));
                let workers = workers.collect::<Result<_, _>>()?;
                Ok(Listing { daemon: false, list: WorkerList { workers, config_error: None } })
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Says on stderr what the list itself does not show.
    pub(super) fn remark(&self, ctx: &Context, printer: &mut Printer) {
        if !self.daemon {
            printer.say(&format!("no daemon is running for {}; start it with `iii`", ctx.config.display()));
        }
        if let Some(error) = &self.list.config_error {
            printer.warn(&format!("the config file is not in force, the last good one still is:\n{error}"));
        }
        for worker in &self.list.workers {
            if let Some(why) = worker.not_in_force() {
                printer.warn(&format!("`{}`: {why}", worker.name));
            }
        }
    }

    /// Instead of the phase's word, where that would say too much.
    pub(super) fn status_word(&self, status: &WorkerStatus) -> Option<&'static str> {
        let orphan = !self.daemon && status.phase == iii_protocol::api::Phase::Running;
        orphan.then_some(RUNNING_WORD)
    }

    pub(super) fn json(&self, printer: &mut Printer) -> Result<(), Failure> {
        let WorkerList { workers, config_error } = &self.list;
        let json = ListJson { daemon: self.daemon, workers, config_error: config_error.as_deref() };
        Ok(printer.json(&json)?)
    }
}

/// `iii worker list`.
pub async fn list(ctx: &Context, args: &ListArgs, printer: &mut Printer) -> Result<(), Failure> {
    let listing = Listing::get(ctx).await?;
    if args.json {
        return listing.json(printer);
    }
    let workers = &listing.list.workers;
    let row = |status| Row { status, status_word: listing.status_word(status) };
    let rows: Vec<_> = workers.iter().map(row).collect();
    printer.print(&worker_table(&rows, Timestamp::now(), printer.out_style))?;
    if rows.is_empty() {
        printer.say("no workers yet: `iii worker add REF` adds one");
    }
    listing.remark(ctx, printer);
    Ok(())
}
