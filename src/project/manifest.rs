//! `iii.worker.yaml`: what a project says about the worker it is.
//!
//! Every key is known or an error at its place, as in config.yaml, with the same reader. Values are taken as they
//! are written: a `${VAR}` in a script is for the guest's shell.

use std::fs;
use std::path::Path;

use super::error::ProjectError;
use super::kind::{Kind, PackageManager};
use crate::config::error::{ConfigError, Problem, line_of};
use crate::config::fields::{self, Fields};
use crate::config::load::{check_image, check_name, head};
use crate::config::resources::{CPUS_EXPECTED, DISK_EXPECTED, MEMORY_EXPECTED, cpus, disk_bytes, memory_mib};
use crate::config::suggest::suggest;
use crate::config::tree::{self, Entry, Node, Value};
use crate::fsutil::PathError;

/// The file at the top of a project.
pub const MANIFEST_FILE: &str = "iii.worker.yaml";
/// Longest manifest that is read, bytes.
pub const MAX_MANIFEST_BYTES: usize = 64 * 1024;
/// Variables that `iii` sets itself.
const RESERVED: &[&str] = &["III_URL", "III_ENGINE_URL", "III_WORKER_NAME", "III_ISOLATION"];

const TOP_KEYS: &[&str] = &[
    "name",
    "description",
    "runtime",
    "resources",
    "scripts",
    "env",
    "dependencies",
    // For publishing; nothing here depends on them.
    "iii",
    "deploy",
    "manifest",
    "tags",
    // Of earlier versions.
    "config",
    "language",
    "entry",
];
const RUNTIME_KEYS: &[&str] = &["kind", "package_manager", "entry", "base_image", "language"];
const RESOURCE_KEYS: &[&str] = &["memory", "cpus", "disk"];
const SCRIPT_KEYS: &[&str] = &["setup", "install", "start"];
const MISPLACED: &[(&str, &str)] = &[
    ("kind", "`kind` belongs under `runtime:`"),
    ("package_manager", "`package_manager` belongs under `runtime:`"),
    ("base_image", "`base_image` belongs under `runtime:`"),
    ("image", "the image of a project's machine is `base_image` under `runtime:`"),
    ("memory", "`memory` belongs under `resources:`"),
    ("cpus", "`cpus` belongs under `resources:`"),
    ("disk", "`disk` belongs under `resources:`"),
    ("setup", "`setup` belongs under `scripts:`"),
    ("install", "`install` belongs under `scripts:`"),
    ("start", "`start` belongs under `scripts:`"),
    ("environment", "environment variables are written under `env:`"),
];

/// A value and the line its key stands on, from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed<T> {
    /// What it says.
    pub value: T,
    /// Where.
    pub line: usize,
}

/// A manifest; what it does not say is `None` or empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// `name:`, the only key that has to be there, unless the user names the worker.
    pub name: Option<Placed<String>>,
    /// `description:`.
    pub description: Option<Placed<String>>,
    /// `runtime.kind`, or `language` as it was called.
    pub kind: Option<Placed<Kind>>,
    /// `runtime.package_manager`.
    pub package_manager: Option<Placed<PackageManager>>,
    /// `runtime.entry`, a path inside the project or a Python module.
    pub entry: Option<Placed<String>>,
    /// `runtime.base_image`.
    pub base_image: Option<Placed<String>>,
    /// `resources.memory`, MiB.
    pub memory_mib: Option<Placed<u32>>,
    /// `resources.cpus`.
    pub cpus: Option<Placed<u8>>,
    /// `resources.disk`, bytes.
    pub disk_bytes: Option<Placed<u64>>,
    /// `scripts:`; `None` when the block is not there at all.
    pub scripts: Option<Scripts>,
    /// `env:` in its order, without the variables that are reserved.
    pub env: Vec<(String, Placed<String>)>,
    /// `dependencies:`, name and range of versions.
    pub dependencies: Vec<(String, Placed<String>)>,
    /// What is accepted and should be written otherwise, each with its place.
    pub warnings: Vec<String>,
}

/// `scripts:`; an empty text means that nothing is to be run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scripts {
    /// `setup`: once per disk.
    pub setup: Option<Placed<String>>,
    /// `install`: when what it depends on has changed.
    pub install: Option<Placed<String>>,
    /// `start`: the workload.
    pub start: Option<Placed<String>>,
}

/// The manifest of a project folder, if it has one. `is_named` says that the worker has a name without it.
pub fn read(folder: &Path, is_named: bool) -> Result<Option<Manifest>, ProjectError> {
    let path = folder.join(MANIFEST_FILE);
    match fs::metadata(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !path.is_symlink() => return Ok(None),
        // Opening a pipe would wait for its other end.
        Ok(meta) if !meta.is_file() => {
            let error = std::io::Error::other("it is not a file");
            return Err(PathError::new("read", &path)(error).into());
        }
        _ => {}
    }
    let text = tree::read(&path, MAX_MANIFEST_BYTES)?;
    parse(&text, &path, is_named).map(Some).map_err(|error| ProjectError::Manifest(Box::new(error)))
}

/// Validates the text of a manifest; `path` is for messages, and `is_named` says that the worker has a name without it.
pub fn parse(text: &str, path: &Path, is_named: bool) -> Result<Manifest, ConfigError> {
    let mut reader = Reader { text, path, is_named, warnings: Vec::new() };
    reader.manifest().map_err(|problem| problem.in_file(text, path))
}

struct Reader<'t> {
    text: &'t str,
    path: &'t Path,
    is_named: bool,
    warnings: Vec<String>,
}

impl Reader<'_> {
    fn manifest(&mut self) -> Result<Manifest, Problem> {
        let root = tree::parse(self.text, MAX_MANIFEST_BYTES)?.filter(|root| !root.is_null());
        let root = root.unwrap_or_else(Node::empty_map);
        let top = fields(&root, "at the top of the file", TOP_KEYS)?;
        let name = self.optional(&top, "name", "name", check_name)?;
        if name.is_none() && !self.is_named {
            return Err(Problem::at(head(&root), "the manifest has no `name`")
                .hint("`name:` is what the worker is called in config.yaml; `--name` says it too"));
        }
        let mut manifest = Manifest {
            name,
            description: self.optional(&top, "description", "description", |_| Ok(()))?,
            kind: None,
            package_manager: None,
            entry: None,
            base_image: None,
            memory_mib: None,
            cpus: None,
            disk_bytes: None,
            scripts: None,
            env: Vec::new(),
            dependencies: Vec::new(),
            warnings: Vec::new(),
        };
        self.runtime(&top, &mut manifest)?;
        if let Some(node) = top.get("resources") {
            let fields = fields(node, "under `resources`", RESOURCE_KEYS)?;
            manifest.memory_mib = self.number(&fields, "memory", MEMORY_EXPECTED, memory_mib)?;
            manifest.cpus = self.number(&fields, "cpus", CPUS_EXPECTED, cpus)?;
            manifest.disk_bytes = self.number(&fields, "disk", DISK_EXPECTED, disk_bytes)?;
        }
        if let Some(node) = top.get("scripts") {
            let fields = fields(node, "under `scripts`", SCRIPT_KEYS)?;
            manifest.scripts = Some(Scripts {
                setup: self.script(&fields, "setup")?,
                install: self.script(&fields, "install")?,
                start: self.script(&fields, "start")?,
            });
        }
        if let Some(node) = top.get("env") {
            manifest.env = self.env(node)?;
        }
        if let Some(node) = top.get("dependencies") {
            manifest.dependencies = self.dependencies(node)?;
        }
        if let Some(entry) = top.entry("config") {
            self.warn(entry.key_span, "`config` has no effect here; variables are written under `env`");
        }
        manifest.warnings = std::mem::take(&mut self.warnings);
        Ok(manifest)
    }

    fn runtime(&mut self, top: &Fields<'_>, manifest: &mut Manifest) -> Result<(), Problem> {
        let empty = Node::empty_map();
        let node = top.get("runtime").unwrap_or(&empty);
        let runtime = fields(node, "under `runtime`", RUNTIME_KEYS)?;
        manifest.kind = self.word(&runtime, "kind", "runtime.kind", Kind::ALL, Kind::name)?;
        let older = [(&runtime, "language", "runtime.language"), (top, "language", "language")];
        for (fields, key, shown) in older {
            let old = self.word(fields, key, shown, Kind::ALL, Kind::name)?;
            manifest.kind = self.deprecated(fields, (key, shown), "runtime.kind", manifest.kind.take(), old);
        }
        let managers = PackageManager::ALL;
        let shown = "runtime.package_manager";
        manifest.package_manager =
            self.word(&runtime, "package_manager", shown, managers, PackageManager::name)?;
        manifest.entry = self.optional(&runtime, "entry", "runtime.entry", check_entry)?;
        let old = self.optional(top, "entry", "entry", check_entry)?;
        manifest.entry =
            self.deprecated(top, ("entry", "entry"), "runtime.entry", manifest.entry.take(), old);
        manifest.base_image = self.optional(&runtime, "base_image", "runtime.base_image", check_image)?;
        Ok(())
    }

    /// The newer key's value, else the older one's; says that there is a newer one.
    fn deprecated<T>(
        &mut self,
        fields: &Fields<'_>,
        (key, shown): (&str, &str),
        newer: &str,
        value: Option<Placed<T>>,
        old: Option<Placed<T>>,
    ) -> Option<Placed<T>> {
        if let (Some(entry), Some(_)) = (fields.entry(key), &old) {
            let effect = if value.is_some() { " and has no effect beside it" } else { "" };
            self.warn(entry.key_span, &format!("`{shown}` is the old name of `{newer}`{effect}: rename it"));
        }
        value.or(old)
    }

    /// One of a set of words.
    fn word<T: Copy>(
        &self,
        fields: &Fields<'_>,
        key: &str,
        shown: &str,
        all: &[T],
        name: fn(T) -> &'static str,
    ) -> Result<Option<Placed<T>>, Problem> {
        let Some(entry) = fields.present(key) else { return Ok(None) };
        let text = &fields::text(&entry.value, shown)?.text;
        if let Some(found) = all.iter().find(|item| name(**item) == text) {
            return Ok(Some(self.placed(*found, entry)));
        }
        let words: Vec<&str> = all.iter().map(|item| name(*item)).collect();
        let message = format!("`{shown}` cannot be `{}`", text.escape_debug());
        Err(Problem::at(
            entry.value.span,
            match suggest(text, words.iter().copied()) {
                Some(meant) => format!("{message}; did you mean `{meant}`?"),
                None => format!("{message}; it is one of {}", words.join(", ")),
            },
        ))
    }

    fn optional(
        &self,
        fields: &Fields<'_>,
        key: &str,
        shown: &str,
        check: fn(&str) -> Result<(), String>,
    ) -> Result<Option<Placed<String>>, Problem> {
        fields.present(key).map(|entry| self.read_text(entry, shown, check)).transpose()
    }

    fn read_text(
        &self,
        entry: &Entry,
        shown: &str,
        check: fn(&str) -> Result<(), String>,
    ) -> Result<Placed<String>, Problem> {
        let text = &fields::text(&entry.value, shown)?.text;
        check(text).map_err(|message| Problem::at(entry.value.span, message))?;
        Ok(self.placed(text.clone(), entry))
    }

    fn number<T>(
        &self,
        fields: &Fields<'_>,
        key: &str,
        expected: &str,
        read: fn(&str) -> Result<T, String>,
    ) -> Result<Option<Placed<T>>, Problem> {
        let Some(entry) = fields.present(key) else { return Ok(None) };
        let number = fields::parsed(&entry.value, &format!("resources.{key}"), expected, read)?;
        Ok(Some(self.placed(number, entry)))
    }

    fn script(&self, fields: &Fields<'_>, key: &str) -> Result<Option<Placed<String>>, Problem> {
        let Some(entry) = fields.present(key) else { return Ok(None) };
        let text = without_nul(&entry.value, &format!("scripts.{key}"))?.trim();
        if key == "start" && text.is_empty() {
            let message = "`scripts.start` is empty, so there would be no worker";
            return Err(Problem::at(entry.value.span, message));
        }
        Ok(Some(self.placed(text.to_owned(), entry)))
    }

    fn env(&mut self, node: &Node) -> Result<Vec<(String, Placed<String>)>, Problem> {
        let mut env = Vec::new();
        for entry in entries(node, "env")? {
            let key = &entry.key;
            if key.is_empty() || key.contains(['=', '\0']) {
                let message =
                    "a key of `env` names an environment variable: it may not be empty or contain `=` or NUL";
                return Err(Problem::at(entry.key_span, message));
            }
            let value = without_nul(&entry.value, &format!("env.{key}"))?;
            if RESERVED.contains(&key.as_str()) {
                self.warn(entry.key_span, &format!("`{key}` is set by iii itself; this one is left out"));
                continue;
            }
            env.push((key.clone(), self.placed(value.to_owned(), entry)));
        }
        Ok(env)
    }

    fn dependencies(&self, node: &Node) -> Result<Vec<(String, Placed<String>)>, Problem> {
        let read = |entry: &Entry| {
            check_name(&entry.key).map_err(|message| Problem::at(entry.key_span, message))?;
            let range = fields::text(&entry.value, &format!("dependencies.{}", entry.key))?;
            Ok((entry.key.clone(), self.placed(range.text.clone(), entry)))
        };
        entries(node, "dependencies")?.iter().map(read).collect()
    }

    /// The place is the key's: a value may begin on the line below.
    fn placed<T>(&self, value: T, entry: &Entry) -> Placed<T> {
        Placed { value, line: line_of(self.text, entry.key_span.start) }
    }

    fn warn(&mut self, span: tree::Span, message: &str) {
        let line = line_of(self.text, span.start);
        self.warnings.push(format!("{}:{line}: {message}", self.path.display()));
    }
}

fn fields<'n>(node: &'n Node, place: &str, known: &[&str]) -> Result<Fields<'n>, Problem> {
    Fields::with(node, place, known, MISPLACED)
}

/// A mapping whose keys are the user's own.
fn entries<'n>(node: &'n Node, key: &str) -> Result<&'n [Entry], Problem> {
    match &node.value {
        Value::Map { entries, .. } => Ok(entries),
        _ => Err(Problem::at(node.span, format!("`{key}`: expected a mapping, found {}", node.kind()))),
    }
}

fn without_nul<'n>(node: &'n Node, key: &str) -> Result<&'n str, Problem> {
    let text = &fields::string(node, key)?.text;
    if text.contains('\0') {
        return Err(Problem::at(node.span, format!("`{key}` contains a NUL character")));
    }
    Ok(text)
}

/// Inside the project, and no option to the program that runs it.
fn check_entry(entry: &str) -> Result<(), String> {
    let message = format!("`{}` cannot be the entry", entry.escape_debug());
    if entry.starts_with(['/', '~', '-']) {
        return Err(format!(
            "{message}: it is a path that starts at the project's folder, such as `src/index.ts`"
        ));
    }
    if entry.split('/').any(|step| step == "..") {
        return Err(format!("{message}: it leads out of the project"));
    }
    if entry.contains(char::is_control) {
        return Err(format!("{message}: it contains a control character"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
