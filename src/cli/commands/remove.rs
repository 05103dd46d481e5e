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
use crate::config::edit::{EditError, check_accepted, edit_file, removable_workers, remove_worker};
use crate::fsutil::PathError;

/// `iii worker remove`: out of config.yaml, then stopped, then its files are deleted.
pub async fn remove(ctx: &Context, args: &RemoveArgs, printer: &mut Printer) -> Result<(), Failure> {
    let (names, mistake) = removable(ctx)?;
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
            // It may be there, and not be told apart.
            Err(mistake.clone().unwrap_or_else(|| ctx.unknown(name, &names)))
        };
        tally.note(printer, removed);
    }
    tally.result()
}

/// The workers that can be removed, and what is wrong with the file. Of one that is not accepted these are the ones that
/// can be told apart all the same: the mistake may be in the very one that is to go.
fn removable(ctx: &Context) -> Result<(Vec<String>, Option<Failure>), Failure> {
    let mistake = match ctx.load() {
        Ok(config) => return Ok((config.workers.into_iter().map(|worker| worker.name).collect(), None)),
        Err(mistake) => mistake,
    };
    match removable_workers(&ctx.config) {
        Ok(names) if !names.is_empty() => Ok((names, Some(mistake))),
        _ => Err(mistake),
    }
}

async fn is_known(daemon: &Client, name: &str) -> Result<bool, Failure> {
    match daemon.get::<WorkerStatus>(&worker_path(name, "")).await {
        Ok(_) => Ok(true),
        Err(e) if is_not_found(&e) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Takes the entry out of the file. The daemon follows no file with a mistake, so a worker that it runs stays in one
/// that would still have one.
fn take_out(ctx: &Context, name: &str, in_force: bool) -> Result<(), Failure> {
    let edited = edit_file(&ctx.config, |text| {
        let edited = remove_worker(text, name)?;
        if in_force && let Some(edited) = &edited {
            check_accepted(edited)?;
        }
        Ok(edited)
    });
    match edited {
        Ok(_) => Ok(()),
        Err(EditError::Config(error)) if in_force => Err(Failure::from(ErrorBody {
            hint: Some(format!(
                "mend that first: until then `iii` goes on with `{name}`; `iii worker stop {name}` stops it"
            )),
            ..ErrorBody::from(&EditError::Config(error))
        })),
        Err(error) => Err(Failure::from(ErrorBody::from(&error))),
    }
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
    let in_force = match daemon {
        Some(daemon) => is_known(daemon, name).await?,
        None => false,
    };
    take_out(ctx, name, in_force)?;
    if let Some(daemon) = daemon {
        match daemon.post::<ReloadReply>("/v1/reload", &StopRequest::default()).await {
            Ok(_) => {}
            // Wrong elsewhere, as it was before; and of a worker that is not in force nothing runs.
            Err(ClientError::Refused(e)) if e.code == ErrorCode::BadConfig && !in_force => {}
            Err(e) => return Err(e.into()),
        }
        wait_gone(daemon, name, printer).await?;
    }
    delete_files(ctx, name, printer).await?;
    printer.say(&format!("{name}: removed"));
    Ok(())
}

/// Waits until the daemon knows the worker no more.
async fn wait_gone(daemon: &Client, name: &str, printer: &mut Printer) -> Result<(), Failure> {
    let mut changes = match daemon.get_lines(&worker_path(name, "watch")).await {
        Ok(changes) => changes,
        Err(e) if is_not_found(&e) => return Ok(()),
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
    match is_known(daemon, name).await? {
        false => Ok(()),
        true => Err(Failure::failed(format!("`{name}` is back: it was added again in the meantime"))),
    }
}

fn is_not_found(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused(ErrorBody { code: ErrorCode::NotFound, .. }))
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
