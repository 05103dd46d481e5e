//! Which files of a project are copied into its machine.
//!
//! Left out are, from weakest to strongest: folders of dependencies, builds and version control by their names
//! ([`LEFT_OUT`]), what `.iiiignore` files say, and what `--exclude` says; the latter two with git's patterns, so
//! that `!dist/` takes a folder back in. As with git, what is in a folder that is left out cannot be taken back
//! in; `.git` itself is never copied. What cannot be copied (sockets, links that lead out) is skipped, and told.
//!
//! Names are bytes; the list is sorted by them, so that the same project gives the same list.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use iii_archive::EntryPath;
use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::error::ProjectError;
use super::index::Hash;
use super::links::{Leads, leads};
use crate::fsutil::PathError;

/// A file of patterns, in the project's folder or any below it.
pub const IGNORE_FILE: &str = ".iiiignore";
/// Folders (and links) that are left out wherever they are.
pub const LEFT_OUT: &[&str] = &["node_modules", ".git", "target", "__pycache__", ".venv", "dist"];
/// Most files, folders and links of a project.
pub const MAX_ENTRIES: usize = 1_000_000;
/// Deepest folder.
pub const MAX_DEPTH: usize = 128;
/// Longest `.iiiignore` that is read, bytes.
const MAX_IGNORE_BYTES: u64 = 1024 * 1024;
/// The mode bits that are kept.
const MODE_BITS: u32 = 0o7777;

/// What one entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A folder.
    Folder,
    /// A regular file.
    File {
        /// Its length, bytes.
        size: u64,
        /// When it was changed: nanoseconds since 1970.
        mtime_ns: i128,
    },
    /// A symbolic link.
    Link {
        /// What it says.
        target: Vec<u8>,
    },
}

/// One file, folder or link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Relative to the project, with `/` in between.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits; of a link they mean nothing and are 0777.
    pub mode: u32,
}

/// Why something that should be copied is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Skip {
    /// A link out of the project.
    LeadsOut,
    /// A link with an absolute path.
    Absolute,
    /// A pipe, a socket or a device.
    Special,
}

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Skip::LeadsOut => "is a link that leads out of the project",
            Skip::Absolute => "is a link to an absolute path, which is another one in the machine",
            Skip::Special => "is a pipe, a socket or a device",
        })
    }
}

/// What of a project is copied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// All of it, sorted by path; a folder comes before what is in it.
    pub entries: Vec<FileEntry>,
    /// What a rule leaves out: the topmost paths, sorted.
    pub left_out: Vec<Vec<u8>>,
    /// What cannot be copied, sorted.
    pub skipped: Vec<(Vec<u8>, Skip)>,
}

impl Files {
    /// The bytes of all files together.
    pub fn bytes(&self) -> u64 {
        self.entries.iter().map(FileEntry::bytes).sum()
    }
}

impl FileEntry {
    /// Of a file; nothing of anything else.
    pub fn bytes(&self) -> u64 {
        match self.kind {
            EntryKind::File { size, .. } => size,
            EntryKind::Folder | EntryKind::Link { .. } => 0,
        }
    }
}

/// Where the entry of the project in `folder` is.
pub fn full_path(folder: &Path, entry: &FileEntry) -> PathBuf {
    folder.join(OsStr::from_bytes(&entry.path))
}

/// Opens a file of a project to be read: never through a link, and never waiting for whoever writes into a pipe.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path)
}

/// The hash of what the file has now.
pub fn hash(folder: &Path, entry: &FileEntry) -> io::Result<Hash> {
    let (mut file, mut hash) = (open(&full_path(folder, entry))?, Sha256::new());
    io::copy(&mut file, &mut hash)?;
    Ok(hash.finalize().into())
}

/// Whether [`LEFT_OUT`] names it.
pub(super) fn is_left_out_by_name(name: &[u8]) -> bool {
    LEFT_OUT.iter().any(|left_out| left_out.as_bytes() == name)
}

/// Lists a project. `exclude` are further patterns.
pub fn list(folder: &Path, exclude: &[String]) -> Result<Files, ProjectError> {
    let mut patterns = GitignoreBuilder::new("");
    for pattern in exclude {
        add_pattern(&mut patterns, pattern, || "--exclude".to_owned())?;
    }
    let exclude = build(&patterns, "--exclude")?;
    let mut walk = Walk { folder, exclude, files: Files::default() };
    let mut ahead = vec![Folder { path: Vec::new(), depth: 0, rules: Vec::new() }];
    while let Some(folder) = ahead.pop() {
        walk.folder(folder, &mut ahead)?;
    }
    Ok(walk.finish())
}

/// A folder that is still to be read.
struct Folder {
    path: Vec<u8>,
    depth: usize,
    /// The `.iiiignore` files above it, topmost first.
    rules: Vec<Arc<Gitignore>>,
}

struct Walk<'a> {
    folder: &'a Path,
    exclude: Gitignore,
    files: Files,
}

impl Walk<'_> {
    fn folder(&mut self, mut folder: Folder, ahead: &mut Vec<Folder>) -> Result<(), ProjectError> {
        let here = self.folder.join(OsStr::from_bytes(&folder.path));
        let names = match names(&here) {
            Ok(names) => names,
            // It was there a moment ago: a project may be worked on.
            Err(e) if e.kind() == io::ErrorKind::NotFound && folder.depth > 0 => return Ok(()),
            Err(e) => return Err(PathError::new("read folder", &here)(e).into()),
        };
        if names.iter().any(|name| name == IGNORE_FILE.as_bytes())
            && let Some(rules) = read_rules(&here, &folder.path)?
        {
            folder.rules.push(Arc::new(rules));
        }
        for name in names {
            let path = match folder.path.is_empty() {
                true => name.clone(),
                false => [&folder.path[..], b"/", &name].concat(),
            };
            let full = self.folder.join(OsStr::from_bytes(&path));
            let meta = match fs::symlink_metadata(&full) {
                Ok(meta) => meta,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(PathError::new("look at", &full)(e).into()),
            };
            if self.is_left_out(&path, &name, &meta, &folder.rules) {
                self.files.left_out.push(path);
                continue;
            }
            let Some(kind) = self.kind(&path, &full, &meta)? else { continue };
            if kind == EntryKind::Folder {
                if folder.depth == MAX_DEPTH {
                    let what = format!("folders more than {MAX_DEPTH} deep in it");
                    return Err(ProjectError::TooLarge { path: full, what });
                }
                let (path, rules) = (path.clone(), folder.rules.clone());
                ahead.push(Folder { path, depth: folder.depth + 1, rules });
            }
            let mode = if meta.is_symlink() { 0o777 } else { meta.mode() & MODE_BITS };
            self.files.entries.push(FileEntry { path, kind, mode });
            if self.files.entries.len() > MAX_ENTRIES {
                let what = format!("more than the limit of {MAX_ENTRIES} files");
                return Err(ProjectError::TooLarge { path: self.folder.to_owned(), what });
            }
        }
        Ok(())
    }

    /// The strongest rule that says something counts.
    fn is_left_out(&self, path: &[u8], name: &[u8], meta: &Metadata, rules: &[Arc<Gitignore>]) -> bool {
        // Patterns such as `!*` are not about it, for git neither. Of a submodule it is a file.
        if name == b".git" {
            return true;
        }
        let (shown, is_dir) = (Path::new(OsStr::from_bytes(path)), meta.is_dir());
        let said = std::iter::once(&self.exclude)
            .chain(rules.iter().rev().map(|rules| &**rules))
            .map(|rules| rules.matched(shown, is_dir))
            .find(|said| !said.is_none());
        match said {
            Some(Match::Ignore(_)) => true,
            Some(Match::Whitelist(_)) => false,
            // A file of such a name is none of those folders.
            Some(Match::None) | None => is_left_out_by_name(name) && (is_dir || meta.is_symlink()),
        }
    }

    fn kind(&mut self, path: &[u8], full: &Path, meta: &Metadata) -> Result<Option<EntryKind>, ProjectError> {
        let kind = meta.file_type();
        Ok(if kind.is_dir() {
            Some(EntryKind::Folder)
        } else if kind.is_file() {
            let mtime_ns = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
            Some(EntryKind::File { size: meta.len(), mtime_ns })
        } else if kind.is_symlink() {
            let target = fs::read_link(full).map_err(PathError::new("read link", full))?;
            Some(EntryKind::Link { target: target.into_os_string().into_vec() })
        } else {
            self.files.skipped.push((path.to_owned(), Skip::Special));
            None
        })
    }

    /// Sorts, and takes out the links that lead out: only now all links are known.
    fn finish(self) -> Files {
        let mut files = self.files;
        files.entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        let links: BTreeMap<&[u8], &[u8]> = files
            .entries
            .iter()
            .filter_map(|entry| match &entry.kind {
                EntryKind::Link { target } => Some((&entry.path[..], &target[..])),
                EntryKind::Folder | EntryKind::File { .. } => None,
            })
            .collect();
        let refused: BTreeMap<Vec<u8>, Skip> = links
            .keys()
            .filter_map(|path| match leads(path, &links) {
                Leads::Outside => Some((path.to_vec(), Skip::LeadsOut)),
                Leads::Absolute => Some((path.to_vec(), Skip::Absolute)),
                // It is as broken there as it is here.
                Leads::Inside | Leads::Nowhere => None,
            })
            .collect();
        files.entries.retain(|entry| !refused.contains_key(&entry.path));
        files.skipped.extend(refused);
        files.skipped.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        files.left_out.sort_unstable();
        files
    }
}

fn names(folder: &Path) -> io::Result<Vec<Vec<u8>>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().into_vec())).collect()
}

/// The patterns of the `.iiiignore` in a folder, if it is a file.
fn read_rules(here: &Path, root: &[u8]) -> Result<Option<Gitignore>, ProjectError> {
    let path = here.join(IGNORE_FILE);
    if !path.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    fs::File::open(&path)
        .and_then(|file| file.take(MAX_IGNORE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(PathError::new("read", &path))?;
    if bytes.len() as u64 > MAX_IGNORE_BYTES {
        let what = format!("more than the limit of {MAX_IGNORE_BYTES} bytes");
        return Err(ProjectError::TooLarge { path, what });
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        PathError::new("read", &path)(io::Error::new(io::ErrorKind::InvalidData, e.utf8_error()))
    })?;
    let mut patterns = GitignoreBuilder::new(Path::new(OsStr::from_bytes(root)));
    for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        add_pattern(&mut patterns, line, || format!("{}:{}", path.display(), number + 1))?;
    }
    build(&patterns, &path.display().to_string()).map(Some)
}

fn add_pattern(
    patterns: &mut GitignoreBuilder,
    pattern: &str,
    place: impl FnOnce() -> String,
) -> Result<(), ProjectError> {
    match patterns.add_line(None, pattern) {
        Ok(_) => Ok(()),
        Err(error) => Err(bad_pattern(place(), pattern, &error)),
    }
}

fn build(patterns: &GitignoreBuilder, place: &str) -> Result<Gitignore, ProjectError> {
    patterns.build().map_err(|error| bad_pattern(place.to_owned(), "", &error))
}

fn bad_pattern(place: String, pattern: &str, error: &ignore::Error) -> ProjectError {
    let reason = match error {
        ignore::Error::Glob { err, .. } => err.clone(),
        error => error.to_string(),
    };
    ProjectError::Pattern { place, pattern: pattern.to_owned(), reason }
}

/// A path of the list for people and for JSON: lossy, without control characters.
pub fn shown(path: &[u8]) -> String {
    EntryPath(path.to_vec()).to_string()
}

#[cfg(test)]
mod tests;
