//! How a new entry is written.

use std::borrow::Cow;

use iii_protocol::api::ResourceHints;
use yaml_edit::{Document, Mapping, Sequence};

use super::{NewEntry, expand};
use crate::config::tree::Scalar;

/// Words that readers of older YAML take for booleans or nothing.
const OLD_WORDS: &[&str] = &["y", "n", "yes", "no", "on", "off"];

/// A new entry whose values are written so that they are read back literally.
pub(super) struct Literal<'e> {
    pub name: &'e str,
    pub image: Option<Cow<'e, str>>,
    pub worker_path: Option<Cow<'e, str>>,
    pub exclude: Vec<Cow<'e, str>>,
    pub resources: ResourceHints,
    pub config: Vec<(String, String)>,
}

impl<'e> Literal<'e> {
    pub(super) fn of(entry: &'e NewEntry) -> Result<Literal<'e>, String> {
        let worker_path = match &entry.worker_path {
            None => None,
            Some(path) => {
                let text = path.to_str().ok_or_else(|| {
                    format!("{} is not UTF-8, so it cannot be written to config.yaml", path.display())
                })?;
                Some(expand::escape(text))
            }
        };
        let mut config: Vec<(String, String)> = Vec::with_capacity(entry.config.len());
        for (key, value) in &entry.config {
            // As with environments, the last one of a name counts.
            config.retain(|(earlier, _)| earlier != key);
            config.push((key.clone(), expand::escape(value).into_owned()));
        }
        Ok(Literal {
            name: &entry.name,
            image: entry.image.as_deref().map(expand::escape),
            worker_path,
            exclude: entry.exclude.iter().map(|pattern| expand::escape(pattern)).collect(),
            resources: entry.resources,
            config,
        })
    }

    /// Keys of an older entry that are not about the new source: a path would win over the image that was asked
    /// for, and an image beside a path would never be used.
    pub(super) fn stale_keys(&self) -> &'static [&'static str] {
        match (&self.image, &self.worker_path) {
            (Some(_), None) => &["worker_path", "exclude", "watch"],
            (None, Some(_)) => &["image"],
            (Some(_), Some(_)) | (None, None) => &[],
        }
    }

    /// What is under `exclude:`, in brackets.
    fn exclude_list(&self) -> String {
        let patterns: Vec<String> = self.exclude.iter().map(|pattern| scalar(pattern)).collect();
        format!("[{}]", patterns.join(", "))
    }

    /// What is under `resources:`; the numbers need no quotes.
    pub(super) fn resources(&self) -> Vec<(&'static str, String)> {
        let ResourceHints { memory_mib, cpus } = self.resources;
        let memory = memory_mib.map(|mib| ("memory", mib.to_string()));
        memory.into_iter().chain(cpus.map(|cpus| ("cpus", cpus.to_string()))).collect()
    }
}

/// Whole lines, the dash at `column`.
pub(super) fn block(entry: &Literal<'_>, column: usize, eol: &str) -> String {
    let indent = " ".repeat(column);
    let mut out = format!("{indent}- name: {}{eol}", scalar(entry.name));
    for (key, value) in [("image", &entry.image), ("worker_path", &entry.worker_path)] {
        if let Some(value) = value {
            out.push_str(&format!("{indent}  {key}: {}{eol}", scalar(value)));
        }
    }
    if !entry.exclude.is_empty() {
        out.push_str(&format!("{indent}  exclude: {}{eol}", entry.exclude_list()));
    }
    let resources = entry.resources();
    if !resources.is_empty() {
        out.push_str(&format!("{indent}  resources:{eol}"));
    }
    for (key, value) in resources {
        out.push_str(&format!("{indent}    {key}: {value}{eol}"));
    }
    if !entry.config.is_empty() {
        out.push_str(&format!("{indent}  config:{eol}"));
    }
    for (key, value) in &entry.config {
        out.push_str(&format!("{indent}    {}: {}{eol}", scalar(key), scalar(value)));
    }
    out
}

/// The same in one piece, for a list in brackets.
pub(super) fn flow(entry: &Literal<'_>) -> String {
    let mut fields = vec![format!("name: {}", scalar(entry.name))];
    for (key, value) in [("image", &entry.image), ("worker_path", &entry.worker_path)] {
        fields.extend(value.as_deref().map(|value| format!("{key}: {}", scalar(value))));
    }
    if !entry.exclude.is_empty() {
        fields.push(format!("exclude: {}", entry.exclude_list()));
    }
    let resources = entry.resources();
    if !resources.is_empty() {
        let pairs: Vec<String> = resources.iter().map(|(k, v)| format!("{k}: {v}")).collect();
        fields.push(format!("resources: {{{}}}", pairs.join(", ")));
    }
    if !entry.config.is_empty() {
        let pairs: Vec<String> =
            entry.config.iter().map(|(k, v)| format!("{}: {}", scalar(k), scalar(v))).collect();
        fields.push(format!("config: {{{}}}", pairs.join(", ")));
    }
    format!("{{{}}}", fields.join(", "))
}

/// `config:` as a value for yaml-edit.
pub(super) fn variables(config: &[(String, String)]) -> Result<Mapping, String> {
    mapping(config.iter().map(|(k, v)| format!("{}: {}", scalar(k), scalar(v))).collect())
}

/// `resources:` likewise.
pub(super) fn resources(entry: &Literal<'_>) -> Result<Mapping, String> {
    mapping(entry.resources().iter().map(|(k, v)| format!("{k}: {v}")).collect())
}

/// `exclude:` likewise.
pub(super) fn exclude(entry: &Literal<'_>) -> Result<Sequence, String> {
    let text = entry.exclude_list();
    let document: Document = text.parse().map_err(|e: yaml_edit::YamlError| e.to_string())?;
    document.as_sequence().ok_or_else(|| "the new entry has no list".to_owned())
}

fn mapping(lines: Vec<String>) -> Result<Mapping, String> {
    let document: Document = lines.join("\n").parse().map_err(|e: yaml_edit::YamlError| e.to_string())?;
    document.as_mapping().ok_or_else(|| "the new entry is not a mapping".to_owned())
}

/// Plain where nothing can be misread, else in double quotes.
fn scalar(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '_'))
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "._/:@+-".contains(c))
        && !text.ends_with(':')
        && !OLD_WORDS.contains(&text.to_ascii_lowercase().as_str())
        && Scalar { text: text.to_owned(), plain: true }.resolve().is_string();
    if plain {
        return text.to_owned();
    }
    // A JSON string is a double-quoted YAML scalar, but for the characters YAML wants escaped as well.
    let mut out = String::new();
    for c in serde_json::Value::from(text).to_string().chars() {
        match c {
            '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out
}
