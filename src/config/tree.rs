//! A YAML file as nodes that know their place: what validation and edits both work on.
//!
//! serde's data model forgets where a value stood and how it was written (`1.50` becomes 1.5), and both matter
//! here, so the tree is built from the events of the YAML parser under serde-saphyr.

use std::collections::{HashMap, HashSet};
use std::io::Read as _;
use std::path::Path;

use serde_json::Value as Json;
use serde_saphyr::granit_parser::{self as yaml, Event, Parser, ScalarStyle, StrInput, StructureStyle, Tag};

use super::error::Problem;
use crate::fsutil::PathError;

/// Most bytes the nodes may take with every alias written out: what stops "billion laughs" files.
const MAX_EXPANDED_BYTES: usize = 16 * 1024 * 1024;
/// What a node counts for besides its text, bytes.
const NODE_BYTES: usize = 64;
/// Deepest nesting of block and of flow collections.
const MAX_DEPTH: usize = 64;

/// A byte range of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub start: usize,
    pub end: usize,
}

impl Span {
    pub(crate) fn is_empty(&self) -> bool {
        self.start >= self.end
    }
}

/// A value and its place.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub value: Value,
    /// From its first to after its last character; of an alias, the alias itself.
    pub span: Span,
    /// What it and everything in it counts for, see [`MAX_EXPANDED_BYTES`].
    bytes: usize,
}

#[derive(Debug, Clone)]
pub(crate) enum Value {
    Scalar(Scalar),
    List { items: Vec<Node>, flow: bool },
    Map { entries: Vec<Entry>, flow: bool },
}

/// One `key: value`.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub key: String,
    pub key_span: Span,
    pub value: Node,
}

#[derive(Debug, Clone)]
pub(crate) struct Scalar {
    /// After quotes, escapes and folding; the text of a plain number is kept as written.
    pub text: String,
    /// Written plainly, so it may mean a number, a boolean or nothing; otherwise it is text.
    pub plain: bool,
}

impl Scalar {
    /// What it means by YAML 1.2's rules: `yes` and `1_000` are text.
    pub(crate) fn resolve(&self) -> Json {
        if !self.plain {
            return Json::String(self.text.clone());
        }
        let options = serde_saphyr::options! {
            strict_booleans: true,
            underscored_numbers_as_strings: true,
            leading_zero_numbers_as_strings: true,
            with_snippet: false,
        };
        // Not-a-number and infinity have no JSON form and stay text.
        match serde_saphyr::from_str_with_options(&self.text, options) {
            Ok(value @ (Json::Null | Json::Bool(_) | Json::Number(_))) => value,
            _ => Json::String(self.text.clone()),
        }
    }
}

impl Node {
    /// What an empty file says.
    pub(crate) fn empty_map() -> Node {
        let value = Value::Map { entries: Vec::new(), flow: false };
        Node { value, span: Span { start: 0, end: 0 }, bytes: 0 }
    }

    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(scalar) if scalar.resolve() == Json::Null)
    }

    /// The kind of value, for "expected ..., found ...".
    pub(crate) fn kind(&self) -> &'static str {
        match &self.value {
            Value::Scalar(scalar) => match scalar.resolve() {
                Json::Null => "nothing",
                Json::Bool(_) => "a boolean",
                Json::Number(_) => "a number",
                _ => "text",
            },
            Value::List { .. } => "a list",
            Value::Map { .. } => "a mapping",
        }
    }

    /// The value of a key, if this is a mapping that has it.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map { entries, .. } => entries.iter().find(|e| e.key == key).map(|e| &e.value),
            _ => None,
        }
    }

    /// The text, if this is a scalar.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar(scalar) => Some(&scalar.text),
            _ => None,
        }
    }

    /// Whether both say the same, wherever and however they are laid out.
    pub(crate) fn same(&self, other: &Node) -> bool {
        match (&self.value, &other.value) {
            (Value::Scalar(a), Value::Scalar(b)) => {
                a.text == b.text && (a.plain == b.plain || a.resolve() == b.resolve())
            }
            (Value::List { items: a, .. }, Value::List { items: b, .. }) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.same(b))
            }
            (Value::Map { entries: a, .. }, Value::Map { entries: b, .. }) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.key == b.key && a.value.same(&b.value))
            }
            _ => false,
        }
    }
}

/// The text of a file, or its beginning if that is more than [`parse`] takes with the same limit.
pub(crate) fn read(path: &Path, max_bytes: usize) -> Result<String, PathError> {
    let read = || {
        let mut bytes = Vec::new();
        // One byte more, so that a file that is too long is seen as such.
        std::fs::File::open(path)?.take(max_bytes as u64 + 1).read_to_end(&mut bytes)?;
        match String::from_utf8(bytes) {
            Ok(text) => Ok(text),
            // The cut may have gone through a character.
            Err(e) if e.as_bytes().len() > max_bytes => {
                Ok(String::from_utf8_lossy(e.as_bytes()).into_owned())
            }
            Err(e) => Err(std::io::Error::new(std::io::ErrorKind::InvalidData, e.utf8_error())),
        }
    };
    read().map_err(PathError::new("read", path))
}

/// The document's root; `None` for a file with no content but comments.
pub(crate) fn parse(text: &str, max_bytes: usize) -> Result<Option<Node>, Problem> {
    if text.len() > max_bytes {
        return Err(Problem::unplaced(format!("the file has more than the limit of {max_bytes} bytes")));
    }
    let mut options = yaml::options! { block_nesting_limit: MAX_DEPTH, flow_nesting_limit: MAX_DEPTH };
    options.set_emit_comments(false);
    let parser = Parser::new_from_str_with_options(text, options);
    Builder { parser, text, anchors: HashMap::new(), bytes: 0, last_end: 0 }.document()
}

/// The comments of the text, in order, each with its byte range (from the `#`, without the line break).
pub(crate) fn comments(text: &str) -> Result<Vec<(Span, String)>, Problem> {
    let mut options = yaml::options! {
        block_nesting_limit: MAX_DEPTH,
        flow_nesting_limit: MAX_DEPTH,
        // The file's length is the limit.
        max_buffered_comment_events: usize::MAX,
    };
    options.set_emit_comments(true);
    let mut found = Vec::new();
    for event in Parser::new_from_str_with_options(text, options) {
        if let (Event::Comment(comment, _), span) = event.map_err(|e| scan_problem(&e, text))? {
            found.push((byte_span(&span), comment.trim_end().to_owned()));
        }
    }
    Ok(found)
}

struct Builder<'t> {
    parser: Parser<'t, StrInput<'t>>,
    text: &'t str,
    anchors: HashMap<usize, Node>,
    bytes: usize,
    /// End of the last token that has a width: block collections have no end of their own.
    last_end: usize,
}

impl<'t> Builder<'t> {
    fn document(mut self) -> Result<Option<Node>, Problem> {
        let mut root = None;
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => return Ok(root),
                (Event::DocumentStart(..), span) => {
                    if root.is_some() {
                        let message = "a second document starts here; the file has to be one document";
                        return Err(Problem::at(span, message));
                    }
                    let first = self.next()?;
                    root = Some(self.node(first)?);
                }
                _ => {}
            }
        }
    }

    fn next(&mut self) -> Result<(Event<'t>, Span), Problem> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => {
                let span = byte_span(&span);
                if span.end > span.start {
                    self.last_end = self.last_end.max(span.end);
                }
                Ok((event, span))
            }
            Some(Err(error)) => Err(scan_problem(&error, self.text)),
            None => Ok((Event::StreamEnd, Span { start: self.text.len(), end: self.text.len() })),
        }
    }

    fn node(&mut self, (event, span): (Event<'t>, Span)) -> Result<Node, Problem> {
        let before = self.bytes;
        self.charge(NODE_BYTES, span)?;
        let (anchor, value, end) = match event {
            Event::Alias(id) => {
                let Some(target) = self.anchors.get(&id) else {
                    return Err(Problem::at(span, "this alias refers to something it is part of"));
                };
                let (value, bytes) = (target.value.clone(), target.bytes);
                self.charge(bytes, span)?;
                (0, value, span.end)
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.charge(text.len(), span)?;
                // The parser reports an absent value as `~`.
                let text = if span.start == span.end { String::new() } else { text.into_owned() };
                let plain = style == ScalarStyle::Plain && !is_text_tag(tag.as_deref(), span)?;
                let block = matches!(style, ScalarStyle::Literal | ScalarStyle::Folded);
                let end = if block { end_of_last_line(self.text, span) } else { span.end };
                (anchor, Value::Scalar(Scalar { text, plain }), end)
            }
            Event::SequenceStart(style, anchor, tag) => {
                is_text_tag(tag.as_deref(), span)?;
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => break,
                        item => items.push(self.node(item)?),
                    }
                }
                let flow = style == StructureStyle::Flow;
                let end =
                    if flow { self.last_end } else { items.last().map_or(span.end, |item| item.span.end) };
                (anchor, Value::List { items, flow }, end)
            }
            Event::MappingStart(style, anchor, tag) => {
                is_text_tag(tag.as_deref(), span)?;
                let entries = self.entries()?;
                let flow = style == StructureStyle::Flow;
                let last = entries.last().map_or(span.end, |e| e.key_span.end.max(e.value.span.end));
                let end = if flow { self.last_end } else { last };
                (anchor, Value::Map { entries: merge(entries)?, flow }, end)
            }
            _ => return Err(Problem::at(span, "a value was expected here")),
        };
        let node = Node { value, span: Span { start: span.start, end }, bytes: self.bytes - before };
        if anchor != 0 {
            self.charge(node.bytes, span)?;
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn entries(&mut self) -> Result<Vec<Entry>, Problem> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut seen: HashMap<String, Span> = HashMap::new();
        loop {
            let first = self.next()?;
            if matches!(first.0, Event::MappingEnd) {
                return Ok(entries);
            }
            let node = self.node(first)?;
            let Value::Scalar(Scalar { text: key, .. }) = node.value else {
                return Err(Problem::at(node.span, "a key has to be text, not a list or a mapping"));
            };
            if let Some(earlier) = seen.insert(key.clone(), node.span) {
                let message = format!("the key `{key}` is there twice");
                return Err(Problem::at(node.span, message).also(earlier, "first here"));
            }
            let value = self.next()?;
            let value = self.node(value)?;
            entries.push(Entry { key, key_span: node.span, value });
        }
    }

    fn charge(&mut self, bytes: usize, span: Span) -> Result<(), Problem> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > MAX_EXPANDED_BYTES {
            return Err(Problem::at(span, "the file is too large with its aliases written out"));
        }
        Ok(())
    }
}

/// Puts what `<<: *other` refers to in its place; keys written in the mapping itself win.
fn merge(entries: Vec<Entry>) -> Result<Vec<Entry>, Problem> {
    if entries.iter().all(|e| e.key != "<<") {
        return Ok(entries);
    }
    // What is written here, and then also what was inherited earlier.
    let mut taken: HashSet<String> = entries.iter().map(|e| e.key.clone()).collect();
    let mut merged: Vec<Entry> = Vec::new();
    for entry in entries {
        if entry.key != "<<" {
            merged.push(entry);
            continue;
        }
        let span = entry.value.span;
        let sources = match entry.value.value {
            Value::List { items, .. } => items,
            _ => vec![entry.value],
        };
        for source in sources {
            let Value::Map { entries, .. } = source.value else {
                return Err(Problem::at(span, "`<<` takes a mapping or a list of mappings"));
            };
            for inherited in entries {
                if taken.insert(inherited.key.clone()) {
                    merged.push(inherited);
                }
            }
        }
    }
    Ok(merged)
}

/// Whether a tag makes plain text out of what looks like a number; tags beyond YAML's own are refused.
fn is_text_tag(tag: Option<&Tag>, span: Span) -> Result<bool, Problem> {
    match tag {
        None => Ok(false),
        Some(tag) if tag.original() == "!" => Ok(true),
        Some(tag) => match tag.core_suffix() {
            Some(suffix) => Ok(suffix == "str"),
            None => Err(Problem::at(span, format!("the tag `{}` means nothing here", tag.original()))),
        },
    }
}

/// A block scalar's range runs on into the indentation of what follows it.
fn end_of_last_line(text: &str, span: Span) -> usize {
    match text[span.start..span.end].rfind('\n') {
        Some(newline) if text[span.start + newline..span.end].trim().is_empty() => span.start + newline + 1,
        _ => span.end,
    }
}

fn byte_span(span: &yaml::Span) -> Span {
    // Always known, since the input is a string.
    span.byte_range().map_or(Span { start: 0, end: 0 }, |r| Span { start: r.start, end: r.end })
}

fn scan_problem(error: &yaml::ScanError, text: &str) -> Problem {
    let at = error.marker().byte_offset().unwrap_or(text.len()).min(text.len());
    Problem::at(Span { start: at, end: at }, error.info())
        .hint("this is not YAML: look at the indentation, quotes and brackets here and on the line before")
}
