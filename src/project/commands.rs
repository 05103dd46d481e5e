//! The commands of each kind of project that nobody wrote down. Pure.

use std::path::Path;

use super::detect::{Evidence, NODE_ENTRIES, PYTHON_ENTRIES, Pyproject, is_module};
use super::error::ProjectError;
use super::kind::{Kind, PackageManager};
use super::manifest::Placed;
use super::scripts::{Origin, Sourced};

/// What commands are inferred from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inferred<'a> {
    pub(super) folder: &'a Path,
    pub(super) kind: Kind,
    pub(super) package_manager: &'a Sourced<PackageManager>,
    pub(super) entry: Option<&'a Placed<String>>,
    /// The image is not the usual one of this kind, so it may lack the tools.
    pub(super) has_own_image: bool,
    /// Both install and start are inferred. A command that somebody wrote knows nothing of a virtual environment.
    pub(super) may_use_venv: bool,
    pub(super) evidence: &'a Evidence,
}

/// Brings Node.js where it is missing, from the vendor's repository for Debian and Ubuntu.
const SETUP_NODE: &str = "command -v node >/dev/null 2>&1 || { apt-get update && apt-get install -y ca-certificates \
                          curl && curl -fsSL https://deb.nodesource.com/setup_22.x | bash - && apt-get install -y \
                          nodejs; }";
/// Python itself, and what makes virtual environments, which Debian packages apart.
const SETUP_PYTHON: &str = "python3 -c 'import ensurepip, venv' 2>/dev/null || { apt-get update && apt-get install \
                            -y python3 python3-pip python3-venv; }";
/// Debian's Python refuses to be installed into by others than Debian (PEP 668), which on a machine of its own helps
/// nobody. Versions of pip that do not know the variable do not mind it.
const SYSTEM_PIP: &str = "PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip";
const SETUP_RUST: &str = "command -v cargo >/dev/null 2>&1 || [ -x \"$HOME/.cargo/bin/cargo\" ] || { apt-get update \
                          && apt-get install -y build-essential ca-certificates curl && curl -fsSL \
                          https://sh.rustup.rs | sh -s -- -y; }";
/// Where rustup puts cargo, for images in which it is not in PATH.
const CARGO_ENV: &str = "[ ! -f \"$HOME/.cargo/env\" ] || . \"$HOME/.cargo/env\"; ";

/// Tools that the image may lack.
pub(super) fn setup(from: &Inferred<'_>) -> Sourced<Option<String>> {
    let mut steps: Vec<String> = Vec::new();
    match from.kind {
        Kind::Typescript | Kind::Javascript => {
            if from.has_own_image {
                steps.push(SETUP_NODE.to_owned());
            }
            let manager = from.package_manager.value;
            if manager != PackageManager::Npm {
                steps.push(format!("command -v {manager} >/dev/null 2>&1 || npm install -g {manager}"));
            }
        }
        Kind::Python if from.has_own_image => steps.push(SETUP_PYTHON.to_owned()),
        Kind::Rust if from.has_own_image => steps.push(SETUP_RUST.to_owned()),
        // An image that was chosen for a project of this kind has Bun.
        Kind::Bun | Kind::Python | Kind::Rust => {}
    }
    let value = match &steps[..] {
        [] => None,
        [step] => Some(step.clone()),
        // `a || b && c` would run `c` only where `a` failed or `b` did not; each step is a unit of its own.
        steps => Some(steps.iter().map(|step| format!("{{ {step}; }}")).collect::<Vec<_>>().join(" && ")),
    };
    Sourced::new(value, Origin::Kind(from.kind))
}

/// What brings the project's dependencies.
pub(super) fn install(from: &Inferred<'_>) -> Result<Sourced<Option<String>>, ProjectError> {
    let (command, origin) = match from.kind {
        Kind::Typescript | Kind::Javascript | Kind::Bun => {
            (format!("{} install", from.package_manager.value), from.package_manager.from.clone())
        }
        Kind::Python => return python_install(from),
        Kind::Rust => (cargo(from, "build"), Origin::Kind(Kind::Rust)),
    };
    Ok(Sourced::new(Some(command), origin))
}

/// A virtual environment, because the image's own Python may refuse to be installed into; it lives in the
/// project's folder of the guest, which copies leave alone.
fn python_install(from: &Inferred<'_>) -> Result<Sourced<Option<String>>, ProjectError> {
    let evidence = from.evidence;
    let (mut packages, mut files) = (Vec::new(), Vec::new());
    if evidence.has("requirements.txt") {
        packages.push("-r requirements.txt");
        files.push("requirements.txt");
    }
    let project = pyproject(from)?;
    let has_requirements = !files.is_empty();
    // With a list of requirements, a `[project]` that nothing builds only describes.
    let is_package = project.is_some_and(|p| p.has_build_system || (p.has_project && !has_requirements));
    if is_package || evidence.has("setup.py") {
        packages.push("-e .");
        files.push(if is_package { "pyproject.toml" } else { "setup.py" });
    }
    let (packages, origin) = match packages.is_empty() {
        true => (None, Origin::Kind(Kind::Python)),
        false => (Some(packages.join(" ")), Origin::File(files.join(", "))),
    };
    let venv = "python3 -m venv .venv";
    let command = match (from.may_use_venv, packages) {
        (true, None) => Some(venv.to_owned()),
        (true, Some(packages)) => Some(format!("{venv} && .venv/bin/pip install {packages}")),
        (false, packages) => packages.map(|packages| format!("{SYSTEM_PIP} install {packages}")),
    };
    Ok(Sourced::new(command, origin))
}

fn pyproject<'a>(from: &Inferred<'a>) -> Result<Option<&'a Pyproject>, ProjectError> {
    read(from, "pyproject.toml", from.evidence.pyproject.as_ref())
}

fn read<'a, T>(
    from: &Inferred<'_>,
    name: &str,
    file: Option<&'a Result<T, String>>,
) -> Result<Option<&'a T>, ProjectError> {
    let malformed =
        |reason: &String| ProjectError::Malformed { path: from.folder.join(name), reason: reason.clone() };
    file.map(Result::as_ref).transpose().map_err(malformed)
}

fn cargo(from: &Inferred<'_>, verb: &str) -> String {
    let env = if from.has_own_image { CARGO_ENV } else { "" };
    format!("{env}cargo {verb} --release")
}

/// The workload.
pub(super) fn start(from: &Inferred<'_>, notes: &mut Vec<String>) -> Result<Sourced<String>, ProjectError> {
    match from.kind {
        Kind::Typescript | Kind::Javascript | Kind::Bun => node_start(from),
        Kind::Python => python_start(from, notes),
        Kind::Rust => Ok(Sourced::new(cargo(from, "run"), Origin::Kind(Kind::Rust))),
    }
}

fn node_start(from: &Inferred<'_>) -> Result<Sourced<String>, ProjectError> {
    let manager = from.package_manager.value;
    let run = |entry: &str| {
        let entry = quoted(entry);
        match manager {
            PackageManager::Bun => format!("bun run {entry}"),
            PackageManager::Pnpm | PackageManager::Yarn => format!("{manager} exec tsx {entry}"),
            PackageManager::Npm | PackageManager::Pip | PackageManager::Cargo => format!("npx tsx {entry}"),
        }
    };
    if let Some(entry) = from.entry {
        return Ok(Sourced::new(run(&entry.value), Origin::Entry(entry.line)));
    }
    let package = read(from, "package.json", from.evidence.package_json.as_ref())?;
    let script = ["dev", "start"].into_iter().find(|name| package.is_some_and(|p| p.scripts.contains(*name)));
    if let Some(script) = script {
        return Ok(Sourced::new(format!("{manager} run {script}"), Origin::File("package.json".to_owned())));
    }
    match NODE_ENTRIES.iter().find(|name| from.evidence.has(name)) {
        Some(name) => Ok(Sourced::new(run(name), Origin::File((*name).to_owned()))),
        None => Err(no_start(
            from,
            format!(
                "package.json has no script `dev` or `start`, and there is no {}",
                NODE_ENTRIES.join(", ")
            ),
        )),
    }
}

fn python_start(from: &Inferred<'_>, notes: &mut Vec<String>) -> Result<Sourced<String>, ProjectError> {
    let python = if from.may_use_venv { ".venv/bin/python" } else { "python3" };
    let module = |path: &str| path.trim_start_matches("src/").to_owned();
    if let Some(Placed { value, line }) = from.entry {
        let is_file = value.contains('/') || value.ends_with(".py") || !is_module(value);
        let dash_m = if is_file { "" } else { "-m " };
        return Ok(Sourced::new(format!("{python} {dash_m}{}", quoted(value)), Origin::Entry(*line)));
    }
    let files: Vec<&str> = PYTHON_ENTRIES.iter().copied().filter(|name| from.evidence.has(name)).collect();
    if let [first, others @ ..] = &files[..] {
        if !others.is_empty() {
            notes.push(format!("{first} is started, though {} is there too", others.join(" and ")));
        }
        return Ok(Sourced::new(format!("{python} {first}"), Origin::File((*first).to_owned())));
    }
    match &from.evidence.packages[..] {
        [] => {}
        [package] => {
            let origin = Origin::File(format!("{package}/__main__.py"));
            return Ok(Sourced::new(format!("{python} -m {}", module(package)), origin));
        }
        several => {
            let found = format!("each of {} has a `__main__.py`", several.join(", "));
            return Err(no_start(from, found));
        }
    }
    let scripts = pyproject(from)?.map(|project| &project.scripts);
    match scripts.map(|scripts| scripts.iter().collect::<Vec<_>>()).as_deref() {
        Some([script]) => {
            let folder = if from.may_use_venv { ".venv/bin/" } else { "" };
            let command = format!("{folder}{}", quoted(script));
            Ok(Sourced::new(command, Origin::File("pyproject.toml".to_owned())))
        }
        _ => Err(no_start(
            from,
            format!("there is no {} and no package with a `__main__.py`", PYTHON_ENTRIES.join(", ")),
        )),
    }
}

fn no_start(from: &Inferred<'_>, looked_for: String) -> ProjectError {
    ProjectError::NoStart { path: from.folder.to_owned(), kind: from.kind, looked_for }
}

/// As one word of a shell.
pub(super) fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_./@:+-".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}
