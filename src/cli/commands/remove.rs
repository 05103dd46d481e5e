use std::fs;
use std::io;
use std::path::Path;

use iii_protocol::api::{ErrorBody, ErrorCode, ReloadReply, StopRequest, WorkerStatus};

use super::Tally;
use crate::cli::args::RemoveArgs;
use crate::cli::client::{Client, ClientError, worker_path};
use crate::cli::context::Context;
use crate::cli::exit::Failure;
use crate::cli::offline::{ended_machine, is_machine_running, noted};
use crate::cli::output::Printer;
use crate::cli::progress::WaitProgress;
use crate::config::edit::{edit_file, remove_worker};
use crate::fsutil::PathError;

/// `iii worker remove`: out of config.yaml, then stopped, then its files are deleted.
pub async fn remove(ctx: &Context, args: &RemoveArgs, printer: &mut Printer) -> Result<(), Failure> {
    let names: Vec<_> = ctx.load()?.workers.into_iter().map(|worker| worker.name).collect();
    if printer.interactive && !args.yes {
        let question = format!("remove {} and delete what it left (disk, logs)?", args.names.join(", "));
        if !printer.confirm(&question)? {
            return Err(Failure::failed("nothing was removed"));
        }
    }
    let daemon = ctx.client();
    let daemon = daemon.is_daemon_running().await?.then_some(daemon);
    let mut tally = Tally::of(args.names.len());
    for name in &args.names {
        let removed = if names.contains(name) {
            remove_one(ctx, name, daemon.as_ref(), printer).await
        } else {
            Err(ctx.unknown(name, &names))
        };
        tally.note(printer, removed);
    }
    tally.result()
}

async fn remove_one(
    ctx: &Context,
    name: &str,
    daemon: Option<&Client>,
    printer: &mut Printer,
) -> Result<(), Failure> {
    if daemon.is_none() && is_machine_running(ctx, name)? {
        return Err(Failure::failed(format!("the machine of `{name}` still runs, though no daemon does"))
            .hint("start `iii`, which takes it over, then try again"));
    }
    edit_file(&ctx.config, |text| remove_worker(text, name))
        .map_err(|e| Failure::from(ErrorBody::from(&e)))?;
    if let Some(daemon) = daemon {
        daemon.post::<ReloadReply>("/v1/reload", &StopRequest::default()).await?;
        wait_gone(daemon, name, printer).await?;
    }
    delete_files(ctx, name, printer).await?;
    printer.say(&format!("{name}: removed"));
    Ok(())
}

/// Waits until the daemon knows the worker no more.
async fn wait_gone(daemon: &Client, name: &str, printer: &mut Printer) -> Result<(), Failure> {
    let gone =
        |e: &ClientError| matches!(e, ClientError::Refused(ErrorBody { code: ErrorCode::NotFound, .. }));
    let mut changes = match daemon.get_lines(&worker_path(name, "watch")).await {
        Ok(changes) => changes,
        Err(e) if gone(&e) => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    let mut progress = WaitProgress::new(printer.err_style);
    let ended: Result<(), Failure> = loop {
        match changes.next_json::<WorkerStatus>().await {
            Ok(Some(status)) => progress.status(printer, &status),
            Ok(None) => break Ok(()),
            Err(e) => break Err(e.into()),
        }
    };
    progress.finish();
    ended?;
    match daemon.get::<WorkerStatus>(&worker_path(name, "")).await {
        Err(e) if gone(&e) => Ok(()),
        Err(e) => Err(e.into()),
        Ok(_) => Err(Failure::failed(format!("`{name}` is back: it was added again in the meantime"))),
    }
}

/// Disk, state and logs of the worker; image layers stay. Another project's worker of the same name keeps
/// what is its own.
async fn delete_files(ctx: &Context, name: &str, printer: &mut Printer) -> Result<(), Failure> {
    let run = ctx.home.machine_run(&ctx.project, name);
    let _lock = ended_machine(ctx, name).await?;
    delete(&run)?;
    if let Some((noted, _)) = noted(ctx, name)
        && noted.owner != ctx.config
        && noted.owner.exists()
    {
        printer.say(&format!("{name}: disk and logs belong to {} and stay", noted.owner.display()));
        return Ok(());
    }
    delete(&ctx.home.managed(name))?;
    delete(&ctx.home.logs(name))
}

fn delete(folder: &Path) -> Result<(), Failure> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(PathError::new("delete", folder)(e).into()),
        _ => Ok(()),
    }
}
