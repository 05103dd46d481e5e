//! What a project folder shows about itself, and which kind of project that makes it.
//!
//! [`look`] reads the few files that matter; [`detect`] decides, and is pure. When a folder shows several kinds,
//! the first of this order counts, and a note says so: `package.json`, `Cargo.toml`, `pyproject.toml` or
//! `requirements.txt`.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read as _};
use std::path::Path;

use serde::Deserialize;

use super::error::ProjectError;
use super::files::is_left_out_by_name;
use super::kind::{Kind, PackageManager};
use super::manifest::MANIFEST_FILE;
use crate::fsutil::PathError;

/// The files whose presence says something.
const TELLING: &[&str] = &[
    "package.json",
    "package-lock.json",
    "npm-shrinkwrap.json",
    "yarn.lock",
    "pnpm-lock.yaml",
    "bun.lock",
    "bun.lockb",
    "pyproject.toml",
    "requirements.txt",
    "setup.py",
    "Cargo.toml",
];
/// What a Node or Bun project starts from when neither manifest nor package.json says it, best first.
pub const NODE_ENTRIES: &[&str] =
    &["src/index.ts", "index.ts", "src/main.ts", "main.ts", "src/index.js", "index.js"];
/// The same for a Python project.
pub const PYTHON_ENTRIES: &[&str] = &["main.py", "app.py", "worker.py", "__main__.py"];
/// Lock files and whose they are, in the order in which they count.
const LOCKS: &[(&str, PackageManager)] = &[
    ("bun.lock", PackageManager::Bun),
    ("bun.lockb", PackageManager::Bun),
    ("pnpm-lock.yaml", PackageManager::Pnpm),
    ("yarn.lock", PackageManager::Yarn),
    ("package-lock.json", PackageManager::Npm),
    ("npm-shrinkwrap.json", PackageManager::Npm),
];
/// Longest package.json or pyproject.toml that is read, bytes.
const MAX_PROJECT_FILE_BYTES: u64 = 1024 * 1024;
/// Most folders in which a `__main__.py` is looked for.
const MAX_PACKAGES: usize = 256;

/// What of a folder matters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evidence {
    /// The telling files and usual entries that are there.
    pub files: BTreeSet<&'static str>,
    /// What package.json says, or why it cannot be understood.
    pub package_json: Option<Result<PackageJson, String>>,
    /// What pyproject.toml says, or why it cannot be understood.
    pub pyproject: Option<Result<Pyproject, String>>,
    /// Python packages with a `__main__.py`, at the top or in `src`, sorted.
    pub packages: Vec<String>,
}

/// The part of package.json that matters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackageJson {
    /// The names under `scripts`.
    pub scripts: BTreeSet<String>,
}

/// The part of pyproject.toml that matters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pyproject {
    /// It has a `[build-system]`: it is meant to be installed.
    pub has_build_system: bool,
    /// It has a `[project]`: pip can install it. Without either, the file only configures tools.
    pub has_project: bool,
    /// The names under `[project.scripts]`.
    pub scripts: BTreeSet<String>,
}

/// What a folder is, by its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detected {
    /// Its kind.
    pub kind: Kind,
    /// The file that shows it.
    pub by: &'static str,
    /// What else it might have been.
    pub notes: Vec<String>,
}

impl Evidence {
    /// Whether a file is there.
    pub fn has(&self, name: &str) -> bool {
        self.files.contains(name)
    }
}

/// Reads what matters of a folder.
pub fn look(folder: &Path) -> Result<Evidence, ProjectError> {
    match fs::metadata(folder) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Err(ProjectError::Missing { path: folder.to_owned() });
        }
        Err(e) => return Err(PathError::new("open folder", folder)(e).into()),
        Ok(meta) if !meta.is_dir() => return Err(ProjectError::NotAFolder { path: folder.to_owned() }),
        Ok(_) => {}
    }
    // A folder that cannot be listed is told here, not as one without any files.
    let mut packages = packages(folder, "")?;
    if folder.join("src").is_dir() {
        packages.extend(self::packages(&folder.join("src"), "src/")?);
    }
    packages.sort();
    let known = TELLING.iter().chain(NODE_ENTRIES).chain(PYTHON_ENTRIES);
    let files: BTreeSet<_> = known.copied().filter(|name| folder.join(name).is_file()).collect();
    let text = |name: &str| match files.contains(name) {
        true => read(&folder.join(name)).map(Some),
        false => Ok(None),
    };
    let package_json = text("package.json")?.map(|text| package_json(&text));
    let pyproject = text("pyproject.toml")?.map(|text| pyproject(&text));
    Ok(Evidence { package_json, pyproject, packages, files })
}

fn read(path: &Path) -> Result<String, ProjectError> {
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_PROJECT_FILE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(PathError::new("read", path))?;
    if bytes.len() as u64 > MAX_PROJECT_FILE_BYTES {
        let what = format!("more than the limit of {MAX_PROJECT_FILE_BYTES} bytes");
        return Err(ProjectError::TooLarge { path: path.to_owned(), what });
    }
    // Only names are looked for; what else is in it is for others to judge.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn packages(folder: &Path, prefix: &str) -> Result<Vec<String>, ProjectError> {
    let mut found = Vec::new();
    let entries = fs::read_dir(folder).map_err(PathError::new("read folder", folder))?;
    let named = entries.flatten().filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry)));
    let is_package =
        |name: &str| !name.starts_with('.') && !is_left_out_by_name(name.as_bytes()) && is_module(name);
    let folders = named.filter(|(name, entry)| is_package(name) && entry.path().is_dir());
    for (name, entry) in folders.take(MAX_PACKAGES) {
        if entry.path().join("__main__.py").is_file() {
            found.push(format!("{prefix}{name}"));
        }
    }
    Ok(found)
}

/// Whether a text can be the name of a Python module: words with dots in between.
pub fn is_module(text: &str) -> bool {
    text.split('.').all(|word| {
        word.starts_with(|c: char| c.is_alphabetic() || c == '_')
            && word.chars().all(|c| c.is_alphanumeric() || c == '_')
    })
}

fn package_json(text: &str) -> Result<PackageJson, String> {
    #[derive(Deserialize)]
    struct File {
        // Values of any type: npm itself judges them.
        #[serde(default)]
        scripts: Option<serde_json::Value>,
    }
    // As npm does, past a byte order mark.
    let file: File =
        serde_json::from_str(text.trim_start_matches('\u{feff}')).map_err(|error| error.to_string())?;
    let scripts = file.scripts.and_then(|scripts| match scripts {
        serde_json::Value::Object(scripts) => Some(scripts.into_iter().map(|(name, _)| name).collect()),
        _ => None,
    });
    Ok(PackageJson { scripts: scripts.unwrap_or_default() })
}

fn pyproject(text: &str) -> Result<Pyproject, String> {
    let table: toml::Table =
        text.trim_start_matches('\u{feff}').parse().map_err(|error: toml::de::Error| {
            let line = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            match line {
                Some(line) => format!("line {line}: {}", error.message()),
                None => error.message().to_owned(),
            }
        })?;
    let project = table.get("project").and_then(toml::Value::as_table);
    let scripts = project.and_then(|project| project.get("scripts")).and_then(toml::Value::as_table);
    Ok(Pyproject {
        has_build_system: table.contains_key("build-system"),
        has_project: project.is_some(),
        scripts: scripts.map(|scripts| scripts.keys().cloned().collect()).unwrap_or_default(),
    })
}

/// The kind of project that the files show, if any.
pub fn detect(evidence: &Evidence) -> Option<Detected> {
    let node = evidence.has("package.json").then_some("package.json");
    let rust = evidence.has("Cargo.toml").then_some("Cargo.toml");
    let python = ["pyproject.toml", "requirements.txt"].into_iter().find(|name| evidence.has(name));
    let mut shown = [node, rust, python].into_iter().flatten();
    let by = shown.next()?;
    let kind = match by {
        "package.json" => match lock(evidence) {
            Some((_, PackageManager::Bun)) => Kind::Bun,
            _ => Kind::Typescript,
        },
        "Cargo.toml" => Kind::Rust,
        _ => Kind::Python,
    };
    let others: Vec<&str> = shown.collect();
    let mut notes = Vec::new();
    if !others.is_empty() {
        notes.push(format!(
            "the project also has {}: `{by}` decides that its kind is {kind}; `kind:` under `runtime:` in \
             {MANIFEST_FILE} says otherwise",
            others.join(" and ")
        ));
    }
    Some(Detected { kind, by, notes })
}

/// The lock file that counts, and whose it is.
pub fn lock(evidence: &Evidence) -> Option<(&'static str, PackageManager)> {
    LOCKS.iter().copied().find(|(name, _)| evidence.has(name))
}

/// The lock files of other package managers than the one that is used.
pub fn stray_locks(evidence: &Evidence, used: PackageManager) -> Vec<&'static str> {
    LOCKS.iter().filter(|(name, whose)| evidence.has(name) && *whose != used).map(|(name, _)| *name).collect()
}

#[cfg(test)]
mod tests;
