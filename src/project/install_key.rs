//! Whether what was installed is still what the project needs, and if not, why. Pure.
//!
//! A finished `setup` and a finished `install` leave a marker with a key each: hashes of all they depend on. The
//! marker is JSON with a version:
//!
//! ```text
//! {"version": 1, "setup": {"base_image": "sha256:...", "script": "<hex>", "files": {}},
//!  "install": {"base_image": "sha256:...", "script": "<hex>", "files": {"package.json": "<hex>"}}}
//! ```
//!
//! | reader | writer 1 |
//! |---|---|
//! | 1 | reads it |
//!
//! Any other version is as good as no marker: both scripts run again.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::files::shown;
use super::index::{Index, Indexed, IndexedKind, hex};
use super::kind::Kind;

/// The version that is written, and the only one that is read.
pub const MARKER_VERSION: u32 = 1;

/// Files, anywhere in the project, on whose content an install depends: manifests, locks and settings.
const NODE_FILES: &[&str] = &[
    "package.json",
    "package-lock.json",
    "npm-shrinkwrap.json",
    "yarn.lock",
    "pnpm-lock.yaml",
    "pnpm-workspace.yaml",
    "bun.lock",
    "bun.lockb",
    "bunfig.toml",
    ".npmrc",
    ".yarnrc",
    ".yarnrc.yml",
];
const PYTHON_FILES: &[&str] =
    &["pyproject.toml", "setup.py", "setup.cfg", "poetry.lock", "uv.lock", "pdm.lock", "Pipfile.lock"];

/// What one script depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// Digest of the machine's image.
    pub base_image: String,
    /// Hash of the script; of the empty text if there is none.
    pub script: String,
    /// Path, as it is shown, to hash.
    pub files: BTreeMap<String, String>,
}

/// What was done on a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Marker {
    version: u32,
    /// The `setup` that finished.
    pub setup: Option<Key>,
    /// The `install` that finished.
    pub install: Option<Key>,
}

/// Why a marker cannot be gone by.
#[derive(Debug, thiserror::Error)]
pub enum MarkerError {
    /// Another version wrote it.
    #[error("the marker of what is installed has version {0}, not {MARKER_VERSION}")]
    Version(u32),
    /// Not a marker.
    #[error("the marker of what is installed is damaged: {0}")]
    Damaged(#[from] serde_json::Error),
}

/// One reason to run a script again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// It has not run to its end on this disk.
    NeverFinished,
    /// The machine starts from another image.
    BaseImage,
    /// The script is another one.
    Script,
    /// A file says something else.
    Changed(String),
    /// A file was not there.
    New(String),
    /// A file is not there any more.
    Gone(String),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Difference::NeverFinished => f.write_str("it has not finished yet"),
            Difference::BaseImage => f.write_str("the base image changed"),
            Difference::Script => f.write_str("the script changed"),
            Difference::Changed(file) => write!(f, "{file} changed"),
            Difference::New(file) => write!(f, "{file} is new"),
            Difference::Gone(file) => write!(f, "{file} is gone"),
        }
    }
}

/// The key of a `setup`.
pub fn setup_key(script: Option<&str>, base_image: &str) -> Key {
    let script = hex(&Sha256::digest(script.unwrap_or_default()).into());
    Key { base_image: base_image.to_owned(), script, files: BTreeMap::new() }
}

/// The key of an `install`: `machine` is what it finds in the machine. Of a project that is compiled or whose kind is not
/// known, any file may be one that the install depends on.
pub fn install_key(kind: Option<Kind>, script: Option<&str>, base_image: &str, machine: &Index) -> Key {
    let mut key = setup_key(script, base_image);
    for Indexed { path, kind: what, .. } in &machine.entries {
        if let IndexedKind::File { sha256, .. } = what
            && decides(kind, path)
        {
            key.files.insert(shown(path), hex(sha256));
        }
    }
    key
}

fn decides(kind: Option<Kind>, path: &[u8]) -> bool {
    let name = path.rsplit(|&b| b == b'/').next().unwrap_or_default();
    let is_one_of = |files: &[&str]| files.iter().any(|file| file.as_bytes() == name);
    match kind {
        // An install that compiles what `start` runs; cargo itself knows what is to be done again.
        None | Some(Kind::Rust) => true,
        Some(Kind::Typescript | Kind::Javascript | Kind::Bun) => is_one_of(NODE_FILES),
        // One list of requirements may include others, which are usually named alike.
        Some(Kind::Python) => {
            is_one_of(PYTHON_FILES)
                || ([&b"requirements"[..], b"constraints"].iter().any(|start| name.starts_with(start))
                    && name.ends_with(b".txt"))
        }
    }
}

/// Why a script has to run, given what its last run depended on; empty if it need not.
pub fn differences(stored: Option<&Key>, now: &Key) -> Vec<Difference> {
    let Some(stored) = stored else { return vec![Difference::NeverFinished] };
    let mut found = Vec::new();
    if stored.base_image != now.base_image {
        found.push(Difference::BaseImage);
    }
    if stored.script != now.script {
        found.push(Difference::Script);
    }
    for (file, hash) in &now.files {
        match stored.files.get(file) {
            None => found.push(Difference::New(file.clone())),
            Some(old) if old != hash => found.push(Difference::Changed(file.clone())),
            Some(_) => {}
        }
    }
    let gone = stored.files.keys().filter(|file| !now.files.contains_key(*file));
    found.extend(gone.map(|file| Difference::Gone(file.clone())));
    found
}

impl Marker {
    /// Of what has finished.
    pub fn new(setup: Option<Key>, install: Option<Key>) -> Marker {
        Marker { version: MARKER_VERSION, setup, install }
    }

    /// Reads the content of the file.
    pub fn parse(bytes: &[u8]) -> Result<Marker, MarkerError> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        match serde_json::from_slice::<Head>(bytes)?.version {
            MARKER_VERSION => Ok(serde_json::from_slice(bytes)?),
            other => Err(MarkerError::Version(other)),
        }
    }

    /// The content of the file.
    pub fn to_bytes(&self) -> Result<Vec<u8>, MarkerError> {
        Ok(serde_json::to_vec(self)?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The hash of a file is that of its path and this text.
    fn key(kind: impl Into<Option<Kind>>, script: &str, image: &str, paths: &[&str], content: &str) -> Key {
        let file = |path: &&str| {
            let sha256 = Sha256::digest([path, content].concat()).into();
            let kind = IndexedKind::File { size: 1, mtime_ns: 0, sha256 };
            Indexed { path: path.as_bytes().into(), kind, mode: 0o644 }
        };
        let folder = Indexed { path: b"a/package.json".into(), kind: IndexedKind::Folder, mode: 0o755 };
        let entries = paths.iter().map(file).chain([folder]).collect();
        install_key(kind.into(), Some(script), image, &Index { taken_ns: 0, entries })
    }

    #[test]
    fn only_files_that_decide_what_is_installed_count() {
        let paths = [
            "package.json",
            "packages/a/package.json",
            "bun.lockb",
            "src/index.ts",
            "pyproject.toml",
            "requirements.txt",
            "requirements-dev.txt",
            "requirements",
            "uv.lock",
            "Cargo.toml",
            "x/Cargo.lock",
        ];
        for (kind, expected) in [
            (Kind::Typescript, &["bun.lockb", "package.json", "packages/a/package.json"][..]),
            (Kind::Bun, &["bun.lockb", "package.json", "packages/a/package.json"]),
            (Kind::Python, &["pyproject.toml", "requirements-dev.txt", "requirements.txt", "uv.lock"]),
        ] {
            let key = key(kind, "s", "i", &paths, "");
            assert_eq!(key.files.keys().collect::<Vec<_>>(), expected, "{kind}");
        }
        for kind in [None, Some(Kind::Rust)] {
            assert_eq!(key(kind, "s", "i", &paths, "").files.len(), paths.len(), "{kind:?}");
        }
    }

    #[test]
    fn what_differs_is_named() {
        let old = key(Kind::Typescript, "npm install", "sha256:1", &["package.json", "yarn.lock"], "1");
        let said =
            |now: &Key| differences(Some(&old), now).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(said(&old), Vec::<String>::new());
        let now = key(Kind::Typescript, "npm ci", "sha256:2", &["package-lock.json", "package.json"], "2");
        let expected = [
            "the base image changed",
            "the script changed",
            "package-lock.json is new",
            "package.json changed",
            "yarn.lock is gone",
        ];
        assert_eq!(said(&now), expected);
        assert_eq!(differences(None, &now), [Difference::NeverFinished]);
        assert_eq!(Difference::NeverFinished.to_string(), "it has not finished yet");
        assert_ne!(setup_key(Some("a"), "i"), setup_key(None, "i"));
        assert_eq!(setup_key(Some(""), "i"), setup_key(None, "i"));
    }

    #[test]
    fn a_marker_has_a_version() {
        let marker = Marker::new(Some(setup_key(None, "sha256:1")), None);
        let bytes = marker.to_bytes().unwrap();
        assert!(bytes.starts_with(b"{\"version\":1,"), "{}", String::from_utf8_lossy(&bytes));
        assert_eq!(Marker::parse(&bytes).unwrap(), marker);
        assert!(matches!(Marker::parse(b"{\"version\": 2, \"more\": 1}"), Err(MarkerError::Version(2))));
        for damaged in
            ["", "{}", "{\"version\": 1}x", "{\"version\": 1, \"setup\": null, \"install\": null, \"x\": 1}"]
        {
            assert!(matches!(Marker::parse(damaged.as_bytes()), Err(MarkerError::Damaged(_))), "{damaged}");
        }
    }

    proptest! {
        #[test]
        fn two_keys_differ_if_and_only_if_a_reason_is_named(
            a in ("[ab]", "[ab]", proptest::collection::btree_map("[abc]", "[xy]", 0..4)),
            b in ("[ab]", "[ab]", proptest::collection::btree_map("[abc]", "[xy]", 0..4)),
        ) {
            let key = |(base_image, script, files): (String, String, _)| Key { base_image, script, files };
            let (a, b) = (key(a), key(b));
            prop_assert_eq!(differences(Some(&a), &b).is_empty(), a == b);
        }
    }
}
