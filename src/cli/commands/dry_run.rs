//! `iii worker add PATH --dry-run`: what would be run and copied, and why. Asks no daemon and changes nothing.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use iii_protocol::api::ErrorBody;
use serde::Serialize;

use super::Tally;
use crate::cli::args::AddArgs;
use crate::cli::exit::Failure;
use crate::cli::output::{Printer, sourced_table};
use crate::config::load::{check_name, expand_home};
use crate::project::error::ProjectError;
use crate::project::files::{self, EntryKind, FileEntry, Files, Skip, shown};
use crate::project::scripts::{Plan, Sourced};
use crate::units::short_bytes;

/// Most paths that a line names; the rest are counted.
const MAX_SHOWN_PATHS: usize = 10;

/// Whether an argument of `add` is a project folder, not an image.
pub(super) fn is_local(reference: &str) -> bool {
    reference.starts_with(['.', '/', '~'])
}

/// One project after the other; a failure does not keep back the others.
pub(super) fn dry_run(args: &AddArgs, printer: &mut Printer) -> Result<(), Failure> {
    if let Some(name) = &args.name {
        check_name(name).map_err(Failure::usage)?;
    }
    let mut tally = Tally::of(args.references.len());
    for path in &args.references {
        let shown = show(args, path, printer);
        tally.note(printer, shown);
    }
    tally.result()
}

fn show(args: &AddArgs, path: &str, printer: &mut Printer) -> Result<(), Failure> {
    let failure = |error: ProjectError| Failure::from(ErrorBody::from(&error));
    let folder = folder(path)?;
    let plan = crate::project::read(&folder, args.name.as_deref()).map_err(failure)?;
    let files = files::list(&folder, &args.exclude).map_err(failure)?;
    if args.json {
        return Ok(printer.json(&Shown::new(&folder, &plan, &files))?);
    }
    printer.print(&sourced_table(&facts(&folder, &plan, &files)))?;
    remark(&plan, &files, args.dry_run, printer);
    Ok(())
}

/// What should be known about a project before it is run, or before it would be.
pub(super) fn remark(plan: &Plan, files: &Files, dry_run: bool, printer: &mut Printer) {
    let (is_not, all) = match dry_run {
        true => ("would not be", "`--json` lists them all"),
        false => ("is not", "`--dry-run --json` lists them all"),
    };
    for warning in &plan.warnings {
        printer.warn(warning);
    }
    for (path, why) in files.skipped.iter().take(MAX_SHOWN_PATHS) {
        printer.warn(&format!("{} {why}: it {is_not} copied", shown(path)));
    }
    if let Some(more) = files.skipped.len().checked_sub(MAX_SHOWN_PATHS).filter(|more| *more > 0) {
        printer.warn(&format!("{more} more cannot be copied; {all}"));
    }
    for note in &plan.notes {
        printer.say(&format!("note: {note}"));
    }
}

/// The folder as it is really called, so that `.` has a name; one that is not there is told later.
pub(super) fn folder(path: &str) -> Result<PathBuf, Failure> {
    let path = expand_home(path, std::env::var("HOME").ok());
    match path.canonicalize() {
        Ok(real) => Ok(real),
        Err(_) => std::path::absolute(&path)
            .map_err(|e| Failure::usage(format!("cannot find {}: {e}", path.display()))),
    }
}

fn facts(folder: &Path, plan: &Plan, files: &Files) -> Vec<[String; 3]> {
    let mut facts = vec![["project".to_owned(), folder.display().to_string(), String::new()]];
    let mut add = |what: &str, value: String, from: &dyn Display| {
        facts.push([what.to_owned(), printable(&value), from.to_string()]);
    };
    add("name", plan.name.value.clone(), &plan.name.from);
    if let Some(description) = &plan.description {
        add("description", description.value.clone(), &description.from);
    }
    add("kind", plan.kind.value.to_string(), &plan.kind.from);
    add("package manager", plan.package_manager.value.to_string(), &plan.package_manager.from);
    add("base image", plan.base_image.value.clone(), &plan.base_image.from);
    add("memory", format!("{} MiB", plan.memory_mib.value), &plan.memory_mib.from);
    add("cpus", plan.cpus.value.to_string(), &plan.cpus.from);
    add("disk", short_bytes(plan.disk_bytes.value), &plan.disk_bytes.from);
    for (what, Sourced { value, from }) in [("setup", &plan.setup), ("install", &plan.install)] {
        add(what, value.clone().unwrap_or_else(|| "(none)".to_owned()), from);
    }
    add("start", plan.start.value.clone(), &plan.start.from);
    for variable in &plan.env {
        add("env", format!("{}={}", variable.name, variable.value), &variable.from);
    }
    add("copied", copied(files), &"");
    if !files.left_out.is_empty() {
        let names: Vec<String> =
            files.left_out.iter().take(MAX_SHOWN_PATHS).map(|path| shown(path)).collect();
        let more = match files.left_out.len() - names.len() {
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        add("left out", format!("{}{more}", names.join(", ")), &"");
    }
    facts
}

/// `12 files, 3 folders, 1 link (34 KiB)`.
fn copied(files: &Files) -> String {
    let count = |is: fn(&EntryKind) -> bool, what: &str| {
        let number = files.entries.iter().filter(|entry| is(&entry.kind)).count();
        (number > 0).then(|| format!("{number} {what}{}", if number == 1 { "" } else { "s" }))
    };
    let counts: Vec<String> = [
        count(|kind| matches!(kind, EntryKind::File { .. }), "file"),
        count(|kind| matches!(kind, EntryKind::Folder), "folder"),
        count(|kind| matches!(kind, EntryKind::Link { .. }), "link"),
    ]
    .into_iter()
    .flatten()
    .collect();
    match counts.is_empty() {
        true => "nothing".to_owned(),
        false => format!("{} ({})", counts.join(", "), short_bytes(files.bytes())),
    }
}

/// Nothing in a value moves the terminal's cursor but a line break.
fn printable(value: &str) -> String {
    let plain =
        |c: char| if c.is_control() && c != '\n' { c.escape_default().to_string() } else { c.to_string() };
    value.chars().map(plain).collect()
}

/// What `--json` prints.
#[derive(Serialize)]
struct Shown<'a> {
    path: String,
    plan: &'a Plan,
    files: Vec<ShownFile<'a>>,
    bytes: u64,
    left_out: Vec<String>,
    skipped: Vec<ShownSkip>,
}

#[derive(Serialize)]
struct ShownFile<'a> {
    path: String,
    #[serde(rename = "type")]
    kind: &'a str,
    /// As `chmod` takes it.
    mode: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
}

#[derive(Serialize)]
struct ShownSkip {
    path: String,
    why: Skip,
}

impl<'a> Shown<'a> {
    fn new(folder: &Path, plan: &'a Plan, files: &Files) -> Shown<'a> {
        Shown {
            path: folder.display().to_string(),
            plan,
            files: files.entries.iter().map(ShownFile::new).collect(),
            bytes: files.bytes(),
            left_out: files.left_out.iter().map(|path| shown(path)).collect(),
            skipped: files
                .skipped
                .iter()
                .map(|(path, why)| ShownSkip { path: shown(path), why: *why })
                .collect(),
        }
    }
}

impl ShownFile<'_> {
    fn new(entry: &FileEntry) -> ShownFile<'static> {
        let (kind, bytes, target) = match &entry.kind {
            EntryKind::Folder => ("folder", None, None),
            EntryKind::File { size, .. } => ("file", Some(*size), None),
            EntryKind::Link { target } => ("link", None, Some(shown(target))),
        };
        let mode = format!("{:04o}", entry.mode);
        ShownFile { path: shown(&entry.path), kind, mode, bytes, target }
    }
}
