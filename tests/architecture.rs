//! Who may import whom, how long a file may be, and where `unsafe` may stand: ARCHITECTURE.md's rules, checked.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// For each top-level module: the modules of this crate it may name besides itself.
const ALLOWED: &[(&str, &[&str])] = &[
    ("fsutil", &[]),
    ("units", &[]),
    ("home", &[]),
    ("host", &["home"]),
    ("logs", &["fsutil"]),
    ("config", &["fsutil", "units"]),
    ("session", &[]),
    ("project", &["config", "fsutil", "units"]),
    ("prepare", &["fsutil", "project", "session", "units"]),
    ("image", &["fsutil", "home", "units"]),
    ("vm", &["fsutil", "home", "host", "logs", "prepare", "project"]),
    ("actors", &["config", "fsutil", "home", "image", "logs", "project", "units", "vm"]),
    (
        "daemon",
        &["actors", "config", "fsutil", "home", "host", "image", "logs", "project", "session", "units", "vm"],
    ),
    ("cli", &["config", "fsutil", "home", "host", "image", "logs", "project", "session", "units"]),
];

/// Files that may hold `unsafe`, each for a reason its own head gives.
const MAY_BE_UNSAFE: &[&str] = &["src/vm/krun.rs", "crates/agent/src/sys.rs", "crates/agent/src/fork.rs"];

/// Lines (tests apart) after which a file has to be split.
const MAX_LINES: usize = 500;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

/// The file's lines without comments and without its tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("\n#[cfg(test)]").next().unwrap_or_default().to_owned();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn top_module(path: &Path) -> String {
    let relative = path.strip_prefix(root().join("src")).unwrap();
    let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

fn modules_named(code: &str) -> Vec<String> {
    code.match_indices("crate::")
        .filter_map(|(at, word)| {
            let rest = &code[at + word.len()..];
            let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            (!name.is_empty()).then_some(name)
        })
        .collect()
}

#[test]
fn modules_import_only_what_the_architecture_allows() {
    let allowed: BTreeMap<_, _> = ALLOWED.iter().copied().collect();
    let mut wrong = Vec::new();
    for file in rust_files(&root().join("src")) {
        let module = top_module(&file);
        if module == "lib" || module == "main" {
            continue;
        }
        let Some(may) = allowed.get(module.as_str()) else {
            panic!("module `{module}` has no rule: add it to this test and to ARCHITECTURE.md");
        };
        for named in modules_named(&code(&file)) {
            let is_module = allowed.contains_key(named.as_str());
            if is_module && named != module && !may.contains(&named.as_str()) {
                wrong.push(format!("{} names crate::{named}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_main_knows_the_cli_the_daemon_and_the_shim_together() {
    let main = fs::read_to_string(root().join("src/main.rs")).unwrap();
    for name in ["cli", "daemon", "run_shim", "run_vmm"] {
        assert!(main.contains(name), "main.rs does not name {name}");
    }
    for (module, foreign) in
        [("cli", ["daemon::", "actors::", "vm::"]), ("daemon", ["cli::", "run_shim", "run_vmm"])]
    {
        for file in rust_files(&root().join("src").join(module)) {
            let code = code(&file);
            for name in foreign {
                assert!(!code.contains(&format!("crate::{name}")), "{} names {name}", file.display());
            }
        }
    }
}

#[test]
fn only_the_shim_has_a_network() {
    for file in rust_files(&root().join("src")) {
        let is_shims = file.starts_with(root().join("src/vm/shim"));
        assert!(is_shims || !code(&file).contains("iii_netstack"), "{} names the stack", file.display());
    }
}

#[test]
fn unsafe_stands_only_where_it_may() {
    let folders =
        ["src", "crates/protocol/src", "crates/archive/src", "crates/agent/src", "crates/netstack/src"];
    for folder in folders {
        for file in rust_files(&root().join(folder)) {
            let relative = file.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            let has =
                code(&file).split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|word| word == "unsafe");
            assert!(!has || MAY_BE_UNSAFE.contains(&relative.as_str()), "{relative} has unsafe code");
        }
    }
}

#[test]
fn files_stay_readable() {
    let folders =
        ["src", "crates/protocol/src", "crates/archive", "crates/agent/src", "crates/netstack", "tests"];
    for folder in folders {
        for file in rust_files(&root().join(folder)) {
            // Tables of cases grow with what is covered; nobody has to hold them in mind at once.
            if file.file_stem().is_some_and(|stem| stem.to_string_lossy().ends_with("tests")) {
                continue;
            }
            let text = fs::read_to_string(&file).unwrap();
            let lines = text.split("\n#[cfg(test)]").next().unwrap_or_default().lines().count();
            assert!(lines <= MAX_LINES, "{} has {lines} lines", file.display());
        }
    }
}
