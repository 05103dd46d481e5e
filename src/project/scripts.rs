//! From manifest and files to what is run: every value, and where it comes from. Pure.
//!
//! What the manifest does not say is inferred, value by value:
//!
//! | | node (`npm`; `pnpm`, `yarn` and `bun` likewise) | bun | python | rust |
//! |---|---|---|---|---|
//! | install | `npm install` | `bun install` | venv, then `pip install` of `requirements.txt` and the project | `cargo build --release` |
//! | start, with an entry | `npx tsx ENTRY` | `bun run ENTRY` | `.venv/bin/python ENTRY`, `-m` for a module | `cargo run --release` |
//! | start, without one | `npm run dev` or `start`, as package.json has it | the same with `bun` | `main.py`, `app.py`, `worker.py`, `__main__` | |
//!
//! A virtual environment is used only if install and start are both inferred: a command that somebody wrote, such
//! as `python worker.py`, knows nothing of it. `setup` is inferred only where the machine's image may lack the tools: the usual images have them.

use std::fmt;
use std::path::Path;

use iii_protocol::api::Resources;
use serde::{Serialize, Serializer};

use super::commands::{Inferred, install, setup, start};
use super::detect::{Detected, Evidence, detect, lock, stray_locks};
use super::error::ProjectError;
use super::kind::{Kind, PackageManager};
use super::manifest::{Manifest, Placed, Scripts};
use crate::config::load::check_name;
use crate::config::schema::default_resources;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// `--name`.
    Flag,
    /// The manifest says it, on this line.
    Manifest(usize),
    /// It follows from `runtime.entry`, on this line of the manifest.
    Entry(usize),
    /// A file of the project shows it.
    File(String),
    /// The name of the project's folder.
    FolderName,
    /// Projects of this kind have it so.
    Kind(Kind),
    /// Every worker has it so.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag => f.write_str("--name"),
            Origin::Manifest(line) => write!(f, "manifest line {line}"),
            Origin::Entry(line) => write!(f, "entry in manifest line {line}"),
            Origin::File(name) => f.write_str(name),
            Origin::FolderName => f.write_str("name of the folder"),
            Origin::Kind(kind) => write!(f, "default for kind {kind}"),
            Origin::Default => f.write_str("default"),
        }
    }
}

impl Serialize for Origin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A value and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sourced<T> {
    /// What is used.
    pub value: T,
    /// Why.
    pub from: Origin,
}

impl<T> Sourced<T> {
    /// A value from somewhere.
    pub fn new(value: T, from: Origin) -> Sourced<T> {
        Sourced { value, from }
    }
}

impl<T: Clone> From<&Placed<T>> for Sourced<T> {
    fn from(placed: &Placed<T>) -> Sourced<T> {
        Sourced::new(placed.value.clone(), Origin::Manifest(placed.line))
    }
}

/// A variable of the worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
    /// Why.
    pub from: Origin,
}

/// All that a project is run by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// What the worker is called.
    pub name: Sourced<String>,
    /// What it says about itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<Sourced<String>>,
    /// Its kind.
    pub kind: Sourced<Kind>,
    /// What installs its dependencies.
    pub package_manager: Sourced<PackageManager>,
    /// Reference of the image that its machine starts from.
    pub base_image: Sourced<String>,
    /// Memory of its machine, MiB.
    pub memory_mib: Sourced<u32>,
    /// Virtual CPUs of its machine.
    pub cpus: Sourced<u8>,
    /// Size of its machine's disk, bytes.
    pub disk_bytes: Sourced<u64>,
    /// Shell command that is run once per disk, if any.
    pub setup: Sourced<Option<String>>,
    /// Shell command that is run when what it depends on has changed, if any.
    pub install: Sourced<Option<String>>,
    /// Shell command that is the workload.
    pub start: Sourced<String>,
    /// Variables of all three.
    pub env: Vec<Variable>,
    /// What is worth knowing.
    pub notes: Vec<String>,
    /// What should be changed.
    pub warnings: Vec<String>,
}

impl Plan {
    /// What its machine gets, unless config.yaml says otherwise.
    pub fn resources(&self) -> Resources {
        Resources {
            memory_mib: self.memory_mib.value,
            cpus: self.cpus.value,
            disk_bytes: self.disk_bytes.value,
        }
    }

    /// Its kind, unless that is only what is taken when nothing tells it.
    pub fn known_kind(&self) -> Option<Kind> {
        (self.kind.from != Origin::Default).then_some(self.kind.value)
    }
}

/// What a plan is made of.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// The project's folder, for its name and for messages.
    pub folder: &'a Path,
    /// `--name`.
    pub name: Option<&'a str>,
    /// `iii.worker.yaml`, if there is one.
    pub manifest: Option<&'a Manifest>,
    /// What the files show.
    pub evidence: &'a Evidence,
}

/// Decides everything about how a project is run.
pub fn plan(inputs: Inputs<'_>) -> Result<Plan, ProjectError> {
    let Inputs { folder, manifest, evidence, .. } = inputs;
    let mut notes = Vec::new();
    let mut warnings = manifest.map(|m| m.warnings.clone()).unwrap_or_default();
    let kind = kind(inputs, &mut notes)?;
    let package_manager = package_manager(kind.value, manifest, evidence, &mut notes, &mut warnings);
    let entry = manifest.and_then(|m| m.entry.as_ref()).filter(|_| kind.value != Kind::Rust);
    if let Some(entry) = manifest.and_then(|m| m.entry.as_ref()).filter(|_| kind.value == Kind::Rust) {
        warnings.push(format!("`runtime.entry` (manifest line {}) has no effect with kind rust", entry.line));
    }
    let own_image = manifest.and_then(|m| m.base_image.as_ref());
    let base_image = own_image.map_or_else(
        || Sourced::new(kind.value.base_image().to_owned(), Origin::Kind(kind.value)),
        Sourced::from,
    );

    let written = manifest.and_then(|m| m.scripts.clone()).unwrap_or_default();
    let inferred = Inferred {
        folder,
        kind: kind.value,
        package_manager: &package_manager,
        entry,
        has_own_image: own_image.is_some(),
        may_use_venv: written.install.is_none() && written.start.is_none(),
        evidence,
    };
    if let Some(Scripts { install: None, .. }) = manifest.and_then(|m| m.scripts.as_ref()) {
        notes
            .push("`scripts` has no `install`: it is inferred; write `install: \"\"` to run none".to_owned());
    }
    // Of scripts for nothing that is known here, nobody can tell what tools they need.
    let is_unknown = kind.from == Origin::Default && written.install.is_some() && written.start.is_some();
    let setup = match optional(written.setup.as_ref()) {
        Some(setup) => setup,
        None if is_unknown => Sourced::new(None, Origin::Default),
        None => setup(&inferred),
    };
    let install = match optional(written.install.as_ref()) {
        Some(install) => install,
        None => install(&inferred)?,
    };
    let start = match &written.start {
        Some(start) => Sourced::from(start),
        None => start(&inferred, &mut notes)?,
    };
    if manifest.is_some_and(|m| !m.dependencies.is_empty()) {
        notes.push("`dependencies` are other workers, which are not added along with this one".to_owned());
    }
    let resources = default_resources();
    Ok(Plan {
        name: name(inputs)?,
        description: manifest.and_then(|m| m.description.as_ref()).map(Sourced::from),
        memory_mib: or_default(manifest.and_then(|m| m.memory_mib.as_ref()), resources.memory_mib),
        cpus: or_default(manifest.and_then(|m| m.cpus.as_ref()), resources.cpus),
        disk_bytes: or_default(manifest.and_then(|m| m.disk_bytes.as_ref()), resources.disk_bytes),
        env: manifest.map_or_else(Vec::new, |m| {
            let variable = |(name, value): &(String, Placed<String>)| Variable {
                name: name.clone(),
                value: value.value.clone(),
                from: Origin::Manifest(value.line),
            };
            m.env.iter().map(variable).collect()
        }),
        kind,
        package_manager,
        base_image,
        setup,
        install,
        start,
        notes,
        warnings,
    })
}

/// What the manifest says, or what every worker has.
fn or_default<T: Clone>(value: Option<&Placed<T>>, default: T) -> Sourced<T> {
    value.map_or_else(|| Sourced::new(default, Origin::Default), Sourced::from)
}

/// A script of the manifest; an empty one is none.
fn optional(script: Option<&Placed<String>>) -> Option<Sourced<Option<String>>> {
    let script = script?;
    let value = Some(script.value.clone()).filter(|text| !text.is_empty());
    Some(Sourced::new(value, Origin::Manifest(script.line)))
}

fn name(inputs: Inputs<'_>) -> Result<Sourced<String>, ProjectError> {
    let Inputs { folder, name, manifest, .. } = inputs;
    if let Some(name) = name {
        return Ok(Sourced::new(name.to_owned(), Origin::Flag));
    }
    if let Some(name) = manifest.and_then(|m| m.name.as_ref()) {
        return Ok(Sourced::from(name));
    }
    let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    check_name(&name).map_err(|reason| ProjectError::Name { reason })?;
    Ok(Sourced::new(name, Origin::FolderName))
}

/// The manifest's, else what the files show, else TypeScript if there is a manifest at all.
fn kind(inputs: Inputs<'_>, notes: &mut Vec<String>) -> Result<Sourced<Kind>, ProjectError> {
    let Inputs { folder, manifest, evidence, .. } = inputs;
    if let Some(kind) = manifest.and_then(|m| m.kind.as_ref()) {
        return Ok(Sourced::from(kind));
    }
    match (detect(evidence), manifest) {
        (Some(Detected { kind, by, notes: found }), _) => {
            notes.extend(found);
            Ok(Sourced::new(kind, Origin::File(by.to_owned())))
        }
        (None, Some(_)) => Ok(Sourced::new(Kind::Typescript, Origin::Default)),
        (None, None) => Err(ProjectError::Unknown { path: folder.to_owned() }),
    }
}

fn package_manager(
    kind: Kind,
    manifest: Option<&Manifest>,
    evidence: &Evidence,
    notes: &mut Vec<String>,
    warnings: &mut Vec<String>,
) -> Sourced<PackageManager> {
    let default = Sourced::new(kind.package_manager(), Origin::Kind(kind));
    let written = manifest.and_then(|m| m.package_manager.as_ref());
    if let Some(Placed { value, line }) = written.filter(|written| !written.value.fits(kind)) {
        warnings.push(format!(
            "`runtime.package_manager` (manifest line {line}): {value} is not for kind {kind}; {} is used",
            default.value
        ));
        return default;
    }
    if let Some(written) = written {
        return Sourced::from(written);
    }
    let by_lock = lock(evidence).filter(|(_, whose)| whose.fits(kind));
    let used = by_lock.map_or(default, |(name, whose)| Sourced::new(whose, Origin::File(name.to_owned())));
    let stray = stray_locks(evidence, used.value);
    if let (Origin::File(name), false) = (&used.from, stray.is_empty()) {
        notes.push(format!(
            "{} is there too: `{name}` decides that {} is used",
            stray.join(", "),
            used.value
        ));
    }
    used
}

#[cfg(test)]
mod tests;
