//! `iii worker add PATH`: the folder of a local project becomes a worker.

use iii_protocol::api::ErrorBody;

use super::add::{Adding, New, check_name, is_of, parse};
use super::dry_run::{folder, remark};
use super::pull::pull;
use crate::cli::args::AddArgs;
use crate::cli::exit::Failure;
use crate::cli::output::Printer;
use crate::config::edit::{AddMode, NewEntry, add_worker, edit_file};
use crate::config::schema::{Source, WorkerConfig};
use crate::project::error::ProjectError;
use crate::project::{self, files};

/// Reads the project, brings the image that its machine starts from, and writes an entry that says where it is. What
/// the project says of itself is not written: it is read again at each start.
pub(super) async fn add_project(
    adding: Adding<'_>,
    path: &str,
    printer: &mut Printer,
) -> Result<(), Failure> {
    let args = adding.args;
    let failure = |error: ProjectError| Failure::from(ErrorBody::from(&error));
    if let Some(name) = &args.name {
        check_name(name)?;
    }
    let folder = folder(path)?;
    let plan = project::read(&folder, args.name.as_deref()).map_err(failure)?;
    let known = adding.check(&plan.name.value, New::Project(&folder))?;
    let files = files::list(&folder, excluded(args, known.as_ref())).map_err(failure)?;
    parse(&plan.base_image.value)?;
    // A path that leads there already stays as it was written, relative for example.
    let is_written = adding.mode() == AddMode::Replace
        && known.as_ref().is_some_and(|worker| is_of(&worker.source, &folder));
    let entry = NewEntry {
        name: plan.name.value.clone(),
        worker_path: (!is_written).then(|| folder.clone()),
        exclude: args.exclude.clone(),
        ..NewEntry::default()
    };
    // The entry does not depend on the image, so what is wrong with it is told before anything is done.
    edit_file(&adding.ctx.config, |text| add_worker(text, &entry, adding.mode()).map(|_| None))
        .map_err(|e| Failure::from(ErrorBody::from(&e)))?;
    remark(&plan, &files, args.dry_run, printer);
    pull(adding, &plan.base_image.value, printer).await?;
    adding.put(&entry, known.is_some(), printer).await
}

/// What the entry will leave out: an old one keeps its own if nothing else is asked for.
fn excluded<'a>(args: &'a AddArgs, known: Option<&'a WorkerConfig>) -> &'a [String] {
    match known.map(|worker| &worker.source) {
        Some(Source::Local { exclude, .. }) if args.exclude.is_empty() && !args.reset_config => exclude,
        Some(Source::Local { .. } | Source::Oci { .. } | Source::None) | None => &args.exclude,
    }
}
