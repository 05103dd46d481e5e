use std::collections::HashSet;
use std::fs;
use std::io;

use iii_protocol::api::{
    ErrorBody, ErrorCode, PullEvent, PullRequest, PulledImage, ReloadReply, StopRequest, WorkerStatus,
};

use super::dry_run::{dry_run, is_local};
use super::{Tally, wait_stopped, wait_until};
use crate::cli::args::AddArgs;
use crate::cli::client::{Client, ClientError, worker_path};
use crate::cli::context::Context;
use crate::cli::exit::Failure;
use crate::cli::offline::{ended_machine, is_machine_running};
use crate::cli::output::Printer;
use crate::cli::progress::PullProgress;
use crate::cli::wait::StartWait;
use crate::config::edit::{AddMode, NewEntry, add_worker, edit_file};
use crate::config::load;
use crate::config::locate::STARTER;
use crate::config::resources::usable_hints;
use crate::config::schema::{Source, WorkerConfig};
use crate::fsutil::PathError;
use crate::image::reference::{Reference, default_worker_name};
use crate::image::store::{ImageStore, PullPolicy, RegistrySettings};

/// Variables of an image that describe the image, not the worker: never written into config.yaml.
const SYSTEM_VARIABLES: [&str; 5] = ["PATH", "HOME", "HOSTNAME", "LANG", "TERM"];

/// `iii worker add`: one after the other; a failure does not undo or keep back the others.
pub async fn add(ctx: &Context, args: &AddArgs, printer: &mut Printer) -> Result<(), Failure> {
    if args.name.is_some() && args.references.len() > 1 {
        return Err(Failure::usage("`--name` names one worker, but there are several references"));
    }
    if let Some(image) = args.references.iter().find(|reference| !is_local(reference)) {
        let only_for_projects = [("--dry-run", args.dry_run), ("--exclude", !args.exclude.is_empty())];
        if let Some((flag, _)) = only_for_projects.into_iter().find(|(_, given)| *given) {
            return Err(Failure::usage(format!("`{flag}` is for local projects, and `{image}` is an image"))
                .hint("the path of a project starts with `.`, `/` or `~`"));
        }
    }
    if args.dry_run {
        return dry_run(args, printer);
    }
    let daemon = ctx.client();
    let daemon = daemon.is_daemon_running().await?.then_some(daemon);
    let mut tally = Tally::of(args.references.len());
    for reference in &args.references {
        let added = add_one(ctx, args, reference, daemon.as_ref(), printer).await;
        tally.note(printer, added);
    }
    tally.result()
}

async fn add_one(
    ctx: &Context,
    args: &AddArgs,
    reference: &str,
    daemon: Option<&Client>,
    printer: &mut Printer,
) -> Result<(), Failure> {
    let name = worker_name(args, reference)?;
    // All that can be wrong without the image is found before it is pulled.
    let known = ctx.load_or_empty()?;
    let known = known.as_ref().and_then(|config| config.workers.iter().find(|w| w.name == name));
    if let Some(known) = known.filter(|_| !args.force) {
        return Err(exists(known, reference));
    }
    if args.force && daemon.is_none() {
        refuse_if_running(ctx, &name)?;
    }
    let image = pull(ctx, args, reference, daemon, printer).await?;
    if args.force {
        wipe(ctx, &name, daemon, known.is_some(), printer).await?;
    }
    write_entry(ctx, args, reference, &name, &image, printer)?;
    match daemon {
        Some(daemon) => bring_up(daemon, &name, args.no_wait, printer).await,
        None => {
            printer.say(&format!("{name}: added; it starts with `iii`"));
            Ok(())
        }
    }
}

/// The name the worker gets; says what is wrong with the reference.
fn worker_name(args: &AddArgs, reference: &str) -> Result<String, Failure> {
    if is_local(reference) {
        return Err(Failure::usage(format!(
            "`{reference}` is a local path, and local projects are not supported by this version yet"
        ))
        .hint(
            "build an image of it, push it to a registry, and add that; `--dry-run` shows what will be run",
        ));
    }
    let parsed = parse(reference)?;
    let name = args.name.clone().unwrap_or_else(|| default_worker_name(&parsed));
    load::check_name(&name).map_err(|e| Failure::usage(e).hint("choose another one with `--name`"))?;
    Ok(name)
}

fn parse(reference: &str) -> Result<Reference, Failure> {
    reference.parse::<Reference>().map_err(|e| {
        Failure::usage(e.to_string()).hint("a reference looks like `redis:7` or `ghcr.io/org/name:1.0.0`")
    })
}

fn exists(known: &WorkerConfig, reference: &str) -> Failure {
    let name = &known.name;
    match &known.source {
        Source::Oci { image } if image == reference => {
            Failure::failed(format!("`{name}` is in the config file already, with this image"))
                .hint("`--force` pulls it again and starts it from scratch")
        }
        Source::Oci { image } => {
            Failure::failed(format!("there is a worker `{name}` already, of the image {image}"))
                .hint("choose another name with `--name`, or replace its image with `--force`")
        }
        Source::Local { .. } | Source::None => {
            Failure::failed(format!("there is a worker `{name}` already, which is not of an image"))
                .hint("choose another name with `--name`, or replace it with `--force`")
        }
    }
}

fn refuse_if_running(ctx: &Context, name: &str) -> Result<(), Failure> {
    if !is_machine_running(ctx, name)? {
        return Ok(());
    }
    Err(Failure::failed(format!("the machine of `{name}` still runs, though no daemon does"))
        .hint("start `iii`, which takes it over, then try again"))
}

async fn pull(
    ctx: &Context,
    args: &AddArgs,
    reference: &str,
    daemon: Option<&Client>,
    printer: &mut Printer,
) -> Result<PulledImage, Failure> {
    let request = PullRequest { reference: reference.to_owned(), force: args.force };
    let mut progress = PullProgress::new(printer.err_style);
    let pulled = match daemon {
        Some(daemon) => pull_there(daemon, &request, &mut progress, printer).await,
        None => pull_here(ctx, request, &mut progress, printer).await,
    };
    progress.finish();
    pulled
}

async fn pull_there(
    daemon: &Client,
    request: &PullRequest,
    progress: &mut PullProgress,
    printer: &mut Printer,
) -> Result<PulledImage, Failure> {
    let mut events = daemon.post_lines("/v1/images/pull", request).await?;
    while let Some(event) = events.next_json::<PullEvent>().await? {
        progress.event(printer, &event);
        match event {
            PullEvent::Done { image } => return Ok(image),
            PullEvent::Failed { error } => return Err(error.into()),
            PullEvent::Resolved { .. } | PullEvent::Layer { .. } | PullEvent::Building { .. } => {}
        }
    }
    Err(ClientError::Gone("it ended during the pull".to_owned()).into())
}

async fn pull_here(
    ctx: &Context,
    request: PullRequest,
    progress: &mut PullProgress,
    printer: &mut Printer,
) -> Result<PulledImage, Failure> {
    // A file that is still to be written has its defaults and what the environment says.
    let config = match ctx.load_or_empty()? {
        Some(config) => config,
        None => load::parse(STARTER, &ctx.config, &|name| std::env::var(name).ok())
            .map_err(|e| Failure::from(ErrorBody::from(&e)))?,
    };
    let reference = parse(&request.reference)?;
    let policy = if request.force { PullPolicy::Always } else { PullPolicy::IfMissing };
    let mirrors = config.mirrors();
    let settings = RegistrySettings { insecure: config.insecure_registries, mirrors };
    let store = ImageStore::new(&ctx.home);
    let tell = |event| progress.event(printer, &event);
    let pulled = store.ensure_telling(&reference, policy, &settings, tell).await;
    let image = PulledImage::from(&pulled.map_err(|e| Failure::from(ErrorBody::from(&e)))?);
    progress.event(printer, &PullEvent::Done { image: image.clone() });
    Ok(image)
}

/// `--force`: the worker begins from scratch, so its machine ends first and its disk goes.
async fn wipe(
    ctx: &Context,
    name: &str,
    daemon: Option<&Client>,
    known: bool,
    printer: &mut Printer,
) -> Result<(), Failure> {
    let stopped = match daemon.filter(|_| known) {
        None => false,
        Some(daemon) => {
            match daemon.post::<WorkerStatus>(&worker_path(name, "stop"), &StopRequest::default()).await {
                Ok(_) => {
                    wait_stopped(daemon, name, printer).await?;
                    true
                }
                // In the file, but not in force: a fault elsewhere in it, or it was written a moment ago.
                Err(ClientError::Refused(e)) if e.code == ErrorCode::NotFound => false,
                Err(e) => return Err(e.into()),
            }
        }
    };
    // Held until the disk is gone.
    let _lock = if stopped {
        ended_machine(ctx, name).await?
    } else {
        refuse_if_running(ctx, name)?;
        None
    };
    let scratch = ctx.home.managed(name).join("scratch.ext4");
    match fs::remove_file(&scratch) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(PathError::new("delete", &scratch)(e).into()),
        _ => Ok(()),
    }
}

fn write_entry(
    ctx: &Context,
    args: &AddArgs,
    reference: &str,
    name: &str,
    image: &PulledImage,
    printer: &mut Printer,
) -> Result<(), Failure> {
    let (resources, unusable) = usable_hints(image.resources);
    for warning in image.warnings.iter().chain(&unusable) {
        printer.warn(&format!("{name}: {warning}"));
    }
    let entry = NewEntry {
        name: name.to_owned(),
        image: Some(reference.to_owned()),
        worker_path: None,
        resources,
        config: config_of(&image.env),
    };
    let mode = match (args.force, args.reset_config) {
        (false, _) => AddMode::Fail,
        (true, false) => AddMode::Replace,
        (true, true) => AddMode::Reset,
    };
    let new_file = !ctx.config.exists();
    edit_file(&ctx.config, |text| add_worker(text, &entry, mode).map(Some))
        .map_err(|e| Failure::from(ErrorBody::from(&e)))?;
    if new_file {
        printer.say(&format!("created {}", ctx.config.display()));
    }
    Ok(())
}

/// What of an image's environment goes into `config:`; of a name given twice, the last value.
fn config_of(env: &[String]) -> Vec<(String, String)> {
    let mut seen = HashSet::new();
    let mut config: Vec<_> = env
        .iter()
        .rev()
        .filter_map(|variable| variable.split_once('='))
        .filter(|(key, _)| !key.is_empty() && !SYSTEM_VARIABLES.contains(key))
        .filter(|(key, _)| seen.insert(key.to_owned()))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    config.reverse();
    config
}

async fn bring_up(daemon: &Client, name: &str, no_wait: bool, printer: &mut Printer) -> Result<(), Failure> {
    daemon.post::<ReloadReply>("/v1/reload", &StopRequest::default()).await?;
    // Asked for by name, so that one that was stopped before starts too.
    let accepted: WorkerStatus = daemon.post(&worker_path(name, "start"), &StopRequest::default()).await?;
    if no_wait {
        printer.say(&format!("{name}: added, {}", accepted.phase));
        return Ok(());
    }
    let wait = StartWait::new(&accepted);
    let how = wait_until(daemon, name, printer, |status| wait.judge(status)).await?;
    printer.say(&format!("{name}: added, {how}"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(name: Option<&str>) -> AddArgs {
        AddArgs {
            references: Vec::new(),
            name: name.map(str::to_owned),
            force: false,
            reset_config: false,
            no_wait: false,
            exclude: Vec::new(),
            dry_run: false,
            json: false,
        }
    }

    #[test]
    fn the_name_is_the_last_part_of_the_image_unless_given() {
        assert_eq!(worker_name(&args(None), "ghcr.io/my-org/my-worker:1.0").unwrap(), "my-worker");
        assert_eq!(worker_name(&args(Some("web")), "nginx").unwrap(), "web");
        assert_eq!(worker_name(&args(Some("a b")), "nginx").unwrap_err().code(), 2);
    }

    #[test]
    fn a_local_path_is_told_apart_from_an_image() {
        for path in ["./project", "/srv/project", "~/project"] {
            let text = worker_name(&args(None), path).unwrap_err().text().unwrap();
            assert!(text.contains("local projects are not supported"), "{text}");
        }
    }

    #[test]
    fn system_variables_stay_in_the_image() {
        let env = ["PATH=/bin", "FOO=bar=baz", "HOME=/root", "LANG=C", "FOO=last", "EMPTY="];
        let env: Vec<_> = env.map(str::to_owned).into();
        let expected = [("FOO", "last"), ("EMPTY", "")];
        assert_eq!(config_of(&env), expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
    }
}
