use std::collections::HashSet;
use std::path::Path;

use iii_protocol::api::{ErrorBody, ErrorCode, ReloadReply, StopRequest, WorkerStatus};

use super::add_local::add_project;
use super::dry_run::{dry_run, is_local};
use super::pull::pull;
use super::scripts::Scripts;
use super::{Tally, wait_started, wait_stopped};
use crate::cli::args::AddArgs;
use crate::cli::client::{Client, ClientError, worker_path};
use crate::cli::context::Context;
use crate::cli::exit::Failure;
use crate::cli::offline::{ended_machine, is_machine_running};
use crate::cli::output::Printer;
use crate::config::edit::{AddMode, NewEntry, add_worker, edit_file};
use crate::config::load;
use crate::config::resources::usable_hints;
use crate::config::schema::{Source, WorkerConfig};
use crate::fsutil::remove_files;
use crate::image::reference::{Reference, default_worker_name};

/// Variables of an image that describe the image, not the worker: never written into config.yaml.
const SYSTEM_VARIABLES: [&str; 5] = ["PATH", "HOME", "HOSTNAME", "LANG", "TERM"];
/// What `--force` deletes in the worker's managed folder, from the last to the first: `vm::scratch::OF_THE_DISK`, which
/// commands may not name.
const OF_THE_DISK: [&str; 4] = ["base.json", "scratch.ext4", "files", "installed.json"];

/// What all workers of one `add` have in common.
#[derive(Clone, Copy)]
pub(super) struct Adding<'a> {
    pub(super) ctx: &'a Context,
    pub(super) args: &'a AddArgs,
    /// If one runs.
    pub(super) daemon: Option<&'a Client>,
}

/// What a worker is to be made from.
#[derive(Clone, Copy)]
pub(super) enum New<'a> {
    /// A reference, as it was typed.
    Image(&'a str),
    /// A folder, canonical.
    Project(&'a Path),
}

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
    let adding = Adding { ctx, args, daemon: daemon.as_ref() };
    let mut tally = Tally::of(args.references.len());
    for reference in &args.references {
        let added = match is_local(reference) {
            true => add_project(adding, reference, printer).await,
            false => add_image(adding, reference, printer).await,
        };
        tally.note(printer, added);
    }
    tally.result()
}

async fn add_image(adding: Adding<'_>, reference: &str, printer: &mut Printer) -> Result<(), Failure> {
    let name = worker_name(adding.args, reference)?;
    let known = adding.check(&name, New::Image(reference))?;
    let pulled = pull(adding, reference, printer).await?;
    let (resources, unusable) = usable_hints(pulled.resources);
    for warning in pulled.warnings.iter().chain(&unusable) {
        printer.warn(&format!("{name}: {warning}"));
    }
    let image = Some(reference.to_owned());
    let entry = NewEntry { name, image, resources, config: config_of(&pulled.env), ..NewEntry::default() };
    adding.put(&entry, known.is_some(), printer).await
}

impl Adding<'_> {
    /// What the worker's entry says now, if there is one and it may be replaced. All that can be wrong without the
    /// image is to be found before it is pulled.
    pub(super) fn check(self, name: &str, new: New<'_>) -> Result<Option<WorkerConfig>, Failure> {
        let config = self.ctx.load_or_empty()?;
        let known = config.and_then(|config| config.workers.into_iter().find(|worker| worker.name == name));
        if let Some(known) = known.as_ref().filter(|_| !self.args.force) {
            return Err(exists(known, new));
        }
        if self.args.force && self.daemon.is_none() {
            refuse_if_running(self.ctx, name)?;
        }
        Ok(known)
    }

    /// Writes the entry and has the worker started, with `--force` from scratch. `known` is whether there was one of
    /// that name.
    pub(super) async fn put(
        self,
        entry: &NewEntry,
        known: bool,
        printer: &mut Printer,
    ) -> Result<(), Failure> {
        let (ctx, name) = (self.ctx, &entry.name);
        if self.args.force {
            wipe(ctx, name, self.daemon.filter(|_| known), printer).await?;
        }
        let new_file = !ctx.config.exists();
        edit_file(&ctx.config, |text| add_worker(text, entry, self.mode()).map(Some))
            .map_err(|e| Failure::from(ErrorBody::from(&e)))?;
        if new_file {
            printer.say(&format!("created {}", ctx.config.display()));
        }
        match self.daemon {
            Some(daemon) => bring_up(daemon, name, self.args.no_wait, printer).await,
            None => {
                let first = match entry.image {
                    Some(_) => "",
                    None => ", which then copies the project and runs its setup and install",
                };
                printer.say(&format!("{name}: added; it starts with `iii`{first}"));
                Ok(())
            }
        }
    }

    /// What to do with an entry that is there.
    pub(super) fn mode(self) -> AddMode {
        match (self.args.force, self.args.reset_config) {
            (false, _) => AddMode::Fail,
            (true, false) => AddMode::Replace,
            (true, true) => AddMode::Reset,
        }
    }
}

/// The name that a worker of an image gets; says what is wrong with the reference.
fn worker_name(args: &AddArgs, reference: &str) -> Result<String, Failure> {
    let parsed = parse(reference)?;
    let name = args.name.clone().unwrap_or_else(|| default_worker_name(&parsed));
    check_name(&name)?;
    Ok(name)
}

pub(super) fn check_name(name: &str) -> Result<(), Failure> {
    load::check_name(name).map_err(|e| Failure::usage(e).hint("choose another one with `--name`"))
}

pub(super) fn parse(reference: &str) -> Result<Reference, Failure> {
    reference.parse::<Reference>().map_err(|e| {
        Failure::usage(e.to_string()).hint("a reference looks like `redis:7` or `ghcr.io/org/name:1.0.0`")
    })
}

/// Whether it is the project in this folder, which is canonical, however it is written.
pub(super) fn is_of(source: &Source, folder: &Path) -> bool {
    match source {
        Source::Local { path, .. } => path == folder || path.canonicalize().is_ok_and(|path| path == folder),
        Source::Oci { .. } | Source::None => false,
    }
}

fn exists(known: &WorkerConfig, new: New<'_>) -> Failure {
    let name = &known.name;
    let same = match (&known.source, new) {
        (Source::Oci { image }, New::Image(reference)) => image == reference,
        (source, New::Project(folder)) => is_of(source, folder),
        (Source::Local { .. } | Source::None, New::Image(_)) => false,
    };
    let (made_of, hint) = match (&known.source, new) {
        (Source::Oci { .. }, _) if same => {
            return Failure::failed(format!("`{name}` is in the config file already, with this image"))
                .hint("`--force` pulls it again and starts it from scratch");
        }
        (Source::Local { .. }, _) if same => {
            return Failure::failed(format!("`{name}` is in the config file already, with this folder"))
                .hint(format!(
                    "`iii worker restart {name}` copies what has changed; `--force` installs it from scratch"
                ));
        }
        (Source::Oci { image }, New::Image(_)) => (format!("of the image {image}"), "replace its image"),
        (Source::Oci { image }, New::Project(_)) => (format!("of the image {image}"), "replace it"),
        (Source::Local { path, .. }, _) => (format!("of the project {}", path.display()), "replace it"),
        (Source::None, _) => ("of neither an image nor a project".to_owned(), "replace it"),
    };
    Failure::failed(format!("there is a worker `{name}` already, {made_of}"))
        .hint(format!("choose another name with `--name`, or {hint} with `--force`"))
}

fn refuse_if_running(ctx: &Context, name: &str) -> Result<(), Failure> {
    if !is_machine_running(ctx, name)? {
        return Ok(());
    }
    Err(Failure::failed(format!("the machine of `{name}` still runs, though no daemon does"))
        .hint("start `iii`, which takes it over, then try again"))
}

/// `--force`: the worker begins from scratch, so its machine ends first and its disk goes. `daemon` is the one that
/// knows it.
async fn wipe(
    ctx: &Context,
    name: &str,
    daemon: Option<&Client>,
    printer: &mut Printer,
) -> Result<(), Failure> {
    let stopped = match daemon {
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
    let folder = ctx.home.managed(name);
    // What is noted of the disk goes before it: a wipe that is cut short must not leave notes of a new one.
    Ok(remove_files(&folder, OF_THE_DISK.into_iter().rev())?)
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
    let scripts = Scripts::follow(daemon, &accepted).await;
    let how = wait_started(daemon, &accepted, scripts, printer).await?;
    printer.say(&format!("{name}: added, {how}"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, io};

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

    fn known(fields: &str) -> WorkerConfig {
        let text = format!("workers: [{{name: web, {fields}}}]");
        load::parse(&text, Path::new("config.yaml"), &|_| None).unwrap().workers.remove(0)
    }

    #[test]
    fn what_is_there_already_is_told_with_what_can_be_done() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        let link = real.join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let here = format!("worker_path: {}", real.display());
        let linked = format!("worker_path: {}", link.display());
        let (image, project) = (New::Image("nginx:1"), New::Project(&real));
        for (fields, new, told, hint) in [
            ("image: \"nginx:1\"", image, "already, with this image", "pulls it again"),
            ("image: \"nginx:2\"", image, "of the image nginx:2", "replace its image with `--force`"),
            ("image: \"nginx:1\"", project, "of the image nginx:1", "replace it with `--force`"),
            (here.as_str(), project, "already, with this folder", "`--force` installs it from scratch"),
            (linked.as_str(), project, "already, with this folder", "`iii worker restart web`"),
            ("worker_path: /other", project, "of the project /other", "replace it with `--force`"),
            ("worker_path: /other", image, "of the project /other", "`--name`"),
            ("restart: never", image, "of neither an image nor a project", "`--name`"),
        ] {
            let text = exists(&known(fields), new).text().unwrap();
            assert!(text.contains(told) && text.contains(hint), "{fields}: {text}");
        }
    }

    #[tokio::test]
    async fn a_wipe_takes_the_disk_and_what_is_noted_of_it() {
        assert_eq!(OF_THE_DISK, crate::vm::scratch::OF_THE_DISK);
        let dir = tempfile::tempdir().unwrap();
        let home = crate::home::Home::at(dir.path().join("home"));
        let ctx = Context::new(home, &dir.path().join("config.yaml")).unwrap();
        let folder = ctx.home.managed("web");
        fs::create_dir_all(&folder).unwrap();
        for name in OF_THE_DISK.iter().chain(&["state.json"]) {
            fs::write(folder.join(name), "").unwrap();
        }
        let mut printer = Printer::to(io::sink(), io::sink());
        for _ in 0..2 {
            wipe(&ctx, "web", None, &mut printer).await.unwrap();
            let left: Vec<_> =
                fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(left, ["state.json"]);
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
