//! Adding and removing workers in config.yaml without touching anything else in it.
//!
//! Items are put in and taken out as whole lines (or as one piece, in a list in brackets), so that the comments of
//! an item stay with it; changes inside an item are yaml-edit's work. Whatever made the new text, it is parsed
//! again and compared with what was wanted, value by value and comment by comment, before it is
//! returned. A file that cannot be edited safely stays as it is, and the error says what to write by hand.

mod check;
mod layout;
mod render;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use iii_protocol::api::{ErrorBody, ErrorCode, ResourceHints};
use yaml_edit::{Document, Mapping, Sequence};

use self::check::Wanted;
use super::env;
use super::error::{ConfigError, Problem, line_of};
use super::expand;
use super::load;
use super::locate::{CONFIG_FILE, STARTER};
use super::tree::{self, Node, Span, Value};
use crate::fsutil::{PathError, sweep_prefixed, write_atomic_by};

/// Most links that are followed from config.yaml to the file itself.
const MAX_LINKS: usize = 16;

/// A worker to be written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewEntry {
    /// `name:`.
    pub name: String,
    /// `image:`, taken literally.
    pub image: Option<String>,
    /// `worker_path:`, taken literally.
    pub worker_path: Option<PathBuf>,
    /// `exclude:`, taken literally; nothing is written if there is none.
    pub exclude: Vec<String>,
    /// `resources:`; nothing is written of what it leaves out.
    pub resources: ResourceHints,
    /// `config:`; values are taken literally, so `${` in one is written as `$${`.
    pub config: Vec<(String, String)>,
}

/// What to do when there is a worker of that name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddMode {
    /// Refuse.
    Fail,
    /// Take over image or path, and `exclude:` if there is one; of `config:` add what is not there yet, likewise
    /// `resources:` if the entry has no such key; keep everything else that is not of the source that goes.
    Replace,
    /// Write the entry anew; nothing of the old one is kept.
    Reset,
}

/// Why a file was not edited. It is as it was.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// Only with [`AddMode::Fail`].
    #[error("there is already a worker named `{name}`, at line {line}")]
    Exists {
        /// The worker.
        name: String,
        /// Where its entry starts, from 1.
        line: usize,
    },
    /// The file was wrong before the edit.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The new entry is wrong.
    #[error("{0}")]
    Entry(String),
    /// No way was found to make this edit and to keep everything else.
    #[error("the layout of {} cannot be edited safely ({reason}); it was left as it is", path.display())]
    ByHand {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
        /// What to do by hand.
        instead: String,
    },
    /// Reading or writing failed.
    #[error(transparent)]
    File(#[from] PathError),
}

impl EditError {
    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            EditError::Exists { .. } => {
                Some("`--force` updates it, `--force --reset-config` writes it anew".into())
            }
            EditError::Config(error) => Some(error.hint().unwrap_or("mend the file first").to_owned()),
            EditError::ByHand { instead, .. } => Some(instead.clone()),
            EditError::Entry(_) | EditError::File(_) => None,
        }
    }
}

impl From<&EditError> for ErrorBody {
    fn from(error: &EditError) -> ErrorBody {
        let code = match error {
            EditError::Exists { .. } => ErrorCode::Conflict,
            EditError::Config(_) | EditError::ByHand { .. } => ErrorCode::BadConfig,
            EditError::Entry(_) => ErrorCode::BadRequest,
            EditError::File(_) => ErrorCode::Host,
        };
        ErrorBody { code, message: error.to_string(), hint: error.hint() }
    }
}

/// The text with `entry` in it; an unchanged text if it already says all of it.
pub fn add_worker(text: &str, entry: &NewEntry, mode: AddMode) -> Result<String, EditError> {
    load::check_name(&entry.name).map_err(EditError::Entry)?;
    let entry = &render::Literal::of(entry).map_err(EditError::Entry)?;
    // Adding to a file that is not accepted would add a worker that is never started.
    validate(text)?;
    let file = Workers::read(text)?;
    let (edited, wanted) = match (file.find(entry.name), mode) {
        (Some(index), AddMode::Fail) => {
            let line = line_of(text, file.items[index].span.start);
            return Err(EditError::Exists { name: entry.name.to_owned(), line });
        }
        (None, _) => (file.insert(entry), Wanted::Added),
        (Some(index), AddMode::Replace) => (file.update(index, entry), Wanted::Updated(index)),
        (Some(index), AddMode::Reset) => {
            let (edited, gone) = file.rewrite(index, entry);
            (edited, Wanted::Rewritten(index, gone))
        }
    };
    let by_hand = |reason: String| EditError::ByHand {
        path: CONFIG_FILE.into(),
        reason,
        instead: format!("write this under `workers:` by hand:\n\n{}", render::block(entry, 2, "\n")),
    };
    let edited = edited.map_err(by_hand)?;
    check::added(&file, &edited, entry, wanted).map_err(by_hand)?;
    validate(&edited).map_err(|e| by_hand(e.to_string()))?;
    Ok(edited)
}

/// The text without the worker `name`; `None` if it has no such worker.
pub fn remove_worker(text: &str, name: &str) -> Result<Option<String>, EditError> {
    let file = Workers::read(text)?;
    let Some(index) = file.find(name) else { return Ok(None) };
    let by_hand = |reason: String| EditError::ByHand {
        path: CONFIG_FILE.into(),
        reason,
        instead: format!("delete the item `- name: {name}` of `workers:` by hand"),
    };
    let (edited, gone) = file.remove(index);
    let edited = edited.map_err(by_hand)?;
    check::removed(&file, &edited, index, gone).map_err(by_hand)?;
    Ok(Some(edited))
}

/// Names of the workers that [`remove_worker`] can take out of the file at `path`, whether or not it is accepted: names
/// by the rules, and each of one entry only.
pub fn removable_workers(path: &Path) -> Result<Vec<String>, EditError> {
    removable_of(&tree::read(path, load::MAX_FILE_BYTES)?)
}

fn removable_of(text: &str) -> Result<Vec<String>, EditError> {
    let file = Workers::read(text)?;
    let names: Vec<&str> =
        file.items.iter().filter_map(|item| item.get("name").and_then(Node::text)).collect();
    let is_removable = |name: &&&str| {
        load::check_name(name).is_ok() && names.iter().filter(|other| other == name).count() == 1
    };
    Ok(names.iter().filter(is_removable).map(|name| (*name).to_owned()).collect())
}

/// Whether `iii` would follow a file of this text; an error says what is wrong with it.
pub fn check_accepted(text: &str) -> Result<(), EditError> {
    Ok(validate(text)?)
}

/// Edits the file at `path`, which is created if it is missing and there is something to write. Editors of the same
/// file wait for each other. `edit` is given the present text and returns the new one, or `None` to leave it.
/// A link is followed, and the mode of the file is kept. Returns whether the file was written. Blocks the thread.
pub fn edit_file(
    path: &Path,
    edit: impl FnOnce(&str) -> Result<Option<String>, EditError>,
) -> Result<bool, EditError> {
    let target = follow(path)?;
    let folder = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // The folder itself is locked: a lock file beside config.yaml would be litter in the user's project.
    let lock = File::open(folder).map_err(PathError::new("open folder", folder))?;
    // Some network file systems lock no folders. The write is whole there too; only two edits at the same
    // moment could lose one of them, and that is better than no edit at all.
    let locked = lock.lock().is_ok();
    let temporary = temporary_prefix(&target);
    if locked {
        sweep_prefixed(folder, &temporary);
    }
    let text = match tree::read(&target, load::MAX_FILE_BYTES) {
        Ok(text) => Some(text),
        Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    let edited = edit(text.as_deref().unwrap_or(STARTER)).map_err(|error| match error {
        EditError::Config(error) => EditError::Config(error.renamed(path)),
        EditError::ByHand { reason, instead, .. } => {
            EditError::ByHand { path: path.to_owned(), reason, instead }
        }
        other => other,
    })?;
    match edited {
        Some(edited) if text.as_deref() != Some(&edited) => {
            write_atomic_by(&target, edited.as_bytes(), &temporary)?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// How the temporary files of edits begin: the folder is the user's, so they say whose they are, and no editor's
/// swap or backup file is named like them.
fn temporary_prefix(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    format!(".{name}.iii-")
}

/// The file that a path leads to, which need not exist.
fn follow(path: &Path) -> Result<PathBuf, PathError> {
    let mut target = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&target) {
            Ok(next) => target = target.parent().unwrap_or(Path::new("")).join(next),
            // Not a link, or not there: reading it says more.
            Err(_) => return Ok(target),
        }
    }
    Err(PathError::new("follow the links of", path)(std::io::Error::from(std::io::ErrorKind::QuotaExceeded)))
}

fn validate(text: &str) -> Result<(), ConfigError> {
    load::parse(text, Path::new(CONFIG_FILE), &|name| std::env::var(name).ok()).map(drop)
}

/// A file seen as its list of workers.
struct Workers<'t> {
    text: &'t str,
    root: Option<Node>,
    /// `workers`, or `modules` in old files.
    key: &'static str,
    key_span: Option<Span>,
    /// The list's node, if the key has a value.
    list: Option<Node>,
    items: Vec<Node>,
    flow: bool,
}

impl<'t> Workers<'t> {
    fn read(text: &'t str) -> Result<Workers<'t>, EditError> {
        let fault = |problem: Problem| EditError::Config(problem.in_file(text, Path::new(CONFIG_FILE)));
        let root = tree::parse(text, load::MAX_FILE_BYTES).map_err(fault)?.filter(|root| !root.is_null());
        let mut file = Workers {
            text,
            root,
            key: "workers",
            key_span: None,
            list: None,
            items: Vec::new(),
            flow: false,
        };
        let entries = match file.root.as_ref().map(|root| (&root.value, root)) {
            None => return Ok(file),
            Some((Value::Map { entries, .. }, _)) => entries,
            Some((_, root)) => {
                let message = format!("expected a mapping at the top of the file, found {}", root.kind());
                return Err(fault(Problem::at(root.span, message)));
            }
        };
        let Some(entry) = entries.iter().find(|e| e.key == "workers" || e.key == "modules") else {
            return Ok(file);
        };
        if entry.key == "modules" {
            file.key = "modules";
        }
        file.key_span = Some(entry.key_span);
        file.list = Some(entry.value.clone());
        match &entry.value.value {
            Value::List { items, flow } => {
                file.items = items.clone();
                file.flow = *flow;
            }
            _ if entry.value.is_null() => {}
            _ => {
                let message = format!("`{}`: expected a list, found {}", file.key, entry.value.kind());
                return Err(fault(Problem::at(entry.value.span, message)));
            }
        }
        Ok(file)
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.items.iter().position(|item| item.get("name").and_then(Node::text) == Some(name))
    }

    fn insert(&self, entry: &render::Literal<'_>) -> Result<String, String> {
        if matches!(self.root.as_ref().map(|r| &r.value), Some(Value::Map { flow: true, .. }))
            && self.list.is_none()
        {
            return Err("it is written in brackets and has no list of workers".to_owned());
        }
        if let Some(list) = self.list.as_ref().filter(|_| self.flow) {
            let put_in = |at: usize, item: String| format!("{}{item}{}", &self.text[..at], &self.text[at..]);
            match self.items.last() {
                Some(last) => return Ok(put_in(last.span.end, format!(", {}", render::flow(entry)))),
                // A comment within the brackets keeps them.
                None if self.text[list.span.start..list.span.end].contains('#') => {
                    return Ok(put_in(list.span.start + 1, render::flow(entry)));
                }
                None => {}
            }
        }
        let eol = layout::line_ending(self.text);
        match (self.items.last(), self.key_span, &self.list) {
            (Some(last), Some(key), _) => {
                let dash = layout::dash_of(self.text, last.span.start, key.end)
                    .ok_or("it has no `- ` of its own")?;
                let at = layout::end_of_item(self.text, last.span.end, dash.column);
                let mut block = render::block(entry, dash.column, eol);
                if self.items.len() > 1 && layout::is_set_apart(self.text, dash.line_start) {
                    block.insert_str(0, eol);
                }
                Ok(layout::insert_lines(self.text, at, &block))
            }
            (None, Some(key), Some(list)) => {
                let (text, key_end) = layout::without_value(self.text, key, list.span);
                let column = layout::column(self.text, key.start);
                let at = layout::end_of_item(&text, key_end, column);
                Ok(layout::insert_lines(&text, at, &render::block(entry, column + 2, eol)))
            }
            _ => {
                let block = format!("workers:{eol}{}", render::block(entry, 2, eol));
                Ok(layout::insert_lines(self.text, self.text.len(), &block))
            }
        }
    }

    /// Source and new variables, inside of the item that is there.
    fn update(&self, index: usize, entry: &render::Literal<'_>) -> Result<String, String> {
        let old = &self.items[index];
        let says = |key: &str, value: &str| old.get(key).and_then(Node::text) == Some(value);
        let new_variables = match old.get("config").filter(|config| !config.is_null()) {
            None => entry.config.clone(),
            Some(config) => {
                let known = env::names(config);
                entry.config.iter().filter(|(key, _)| !known.contains(key)).cloned().collect()
            }
        };
        let same_source = entry.image.as_ref().is_none_or(|image| says("image", image))
            && entry.worker_path.as_ref().is_none_or(|path| says("worker_path", path));
        let new_resources = !entry.resources.is_empty() && old.get("resources").is_none();
        let new_exclude = !entry.exclude.is_empty() && !check::says_all(old.get("exclude"), &entry.exclude);
        let stale: Vec<&str> =
            entry.stale_keys().iter().copied().filter(|key| old.get(key).is_some()).collect();
        let same = new_variables.is_empty() && !new_resources && !new_exclude && same_source;
        if same && stale.is_empty() {
            return Ok(self.text.to_owned());
        }
        self.with_sequence(|list| {
            let item = list
                .get(index)
                .and_then(|node| node.as_mapping().cloned())
                .ok_or("it is not a plain mapping")?;
            if let Some(image) = entry.image.as_deref().filter(|image| !says("image", image)) {
                item.set("image", image);
            }
            if let Some(path) = entry.worker_path.as_deref().filter(|path| !says("worker_path", path)) {
                item.set("worker_path", path);
            }
            if new_exclude {
                item.set("exclude", render::exclude(entry)?);
            }
            for key in stale {
                item.remove(key);
            }
            if new_resources {
                item.set("resources", render::resources(entry)?);
            }
            set_variables(&item, &new_variables)
        })
    }

    fn rewrite(&self, index: usize, entry: &render::Literal<'_>) -> (Result<String, String>, Span) {
        match self.lines_of(index) {
            Some((gone, dash)) => {
                let block = render::block(entry, dash.column, layout::line_ending(self.text));
                let rest = format!("{}{}", &self.text[..gone.start], &self.text[gone.end..]);
                (Ok(layout::insert_lines(&rest, gone.start, &block)), gone)
            }
            None => {
                let gone = self.items[index].span;
                let (before, after) = (&self.text[..gone.start], &self.text[gone.end..]);
                let edited = Ok(format!("{before}{}{after}", render::flow(entry)));
                (edited, gone)
            }
        }
    }

    fn remove(&self, index: usize) -> (Result<String, String>, Span) {
        match (self.lines_of(index), self.key_span) {
            (Some((gone, _)), Some(key)) => {
                let mut text = layout::without_lines(self.text, gone);
                if self.items.len() == 1 {
                    text = layout::with_empty_list(&text, key);
                }
                (Ok(text), gone)
            }
            _ => {
                let gone = self.items[index].span;
                (Ok(layout::without_flow_item(self.text, gone)), gone)
            }
        }
    }

    /// The whole lines of an item, with the comments that belong to it; `None` for a list in brackets.
    fn lines_of(&self, index: usize) -> Option<(Span, layout::Dash)> {
        let item = &self.items[index];
        let dash = layout::dash_of(self.text, item.span.start, self.key_span?.end).filter(|_| !self.flow)?;
        let end = layout::end_of_item(self.text, item.span.end, dash.column);
        Some((Span { start: dash.line_start, end }, dash))
    }

    fn with_sequence(&self, edit: impl FnOnce(&Sequence) -> Result<(), String>) -> Result<String, String> {
        let document: Document = self.text.parse().map_err(|e: yaml_edit::YamlError| e.to_string())?;
        let root = document.as_mapping().ok_or("it is not a mapping")?;
        let list =
            root.get_sequence(self.key).ok_or_else(|| format!("`{}` is not a plain list", self.key))?;
        edit(&list)?;
        Ok(document.to_string())
    }
}

fn set_variables(item: &Mapping, variables: &[(String, String)]) -> Result<(), String> {
    if variables.is_empty() {
        return Ok(());
    }
    match item.get_mapping("config") {
        Some(config) => variables.iter().for_each(|(key, value)| config.set(key.as_str(), value.as_str())),
        None => item.set("config", render::variables(variables)?),
    }
    Ok(())
}

#[cfg(test)]
mod tests;
