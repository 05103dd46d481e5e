//! What is wrong with config.yaml, shown at its place.

use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};

use iii_protocol::api::{ErrorBody, ErrorCode};

use super::tree::Span;
use crate::fsutil::PathError;

/// Widest piece of a source line that is shown, characters.
const MAX_SHOWN_CHARS: usize = 100;

/// Something wrong with the text, before the text and its path are known to the message.
/// Displays without its place.
#[derive(Debug)]
pub(crate) struct Problem {
    message: String,
    hint: Option<String>,
    span: Option<Span>,
    also: Option<(Span, &'static str)>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Problem {
    pub(crate) fn at(span: Span, message: impl Into<String>) -> Problem {
        Problem { message: message.into(), hint: None, span: Some(span), also: None }
    }

    /// Not tied to a place in the text.
    pub(crate) fn unplaced(message: impl Into<String>) -> Problem {
        Problem { message: message.into(), hint: None, span: None, also: None }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Problem {
        self.hint = Some(hint.into());
        self
    }

    /// A second place that is shown below the first.
    pub(crate) fn also(mut self, span: Span, label: &'static str) -> Problem {
        self.also = Some((span, label));
        self
    }

    pub(crate) fn in_file(self, text: &str, path: &Path) -> ConfigError {
        let mut marks = Vec::new();
        marks.extend(self.span.map(|span| Mark::new(text, span, "")));
        marks.extend(self.also.map(|(span, label)| Mark::new(text, span, label)));
        let kind = Kind::Text { path: path.to_owned(), message: self.message, hint: self.hint, marks };
        ConfigError(Box::new(kind))
    }
}

/// Why there is no [`super::schema::Config`].
///
/// Displays as `path:line:column: what is wrong`, followed by the source line with a caret.
#[derive(Debug)]
pub struct ConfigError(Box<Kind>);

#[derive(Debug)]
enum Kind {
    File(PathError),
    Text { path: PathBuf, message: String, hint: Option<String>, marks: Vec<Mark> },
}

impl ConfigError {
    /// Whether the file is not there, as opposed to wrong or unreadable.
    pub fn is_missing(&self) -> bool {
        matches!(&*self.0, Kind::File(e) if e.source.kind() == std::io::ErrorKind::NotFound)
    }

    /// What to do next, where the message itself does not say it.
    pub fn hint(&self) -> Option<&str> {
        match &*self.0 {
            Kind::File(_) => None,
            Kind::Text { hint, .. } => hint.as_deref(),
        }
    }

    /// Line and column of the fault, from 1; columns count characters.
    pub fn position(&self) -> Option<(usize, usize)> {
        match &*self.0 {
            Kind::File(_) => None,
            Kind::Text { marks, .. } => marks.first().map(|m| (m.line, m.column)),
        }
    }

    /// The same error about a text that turned out to be the content of `path`.
    pub(crate) fn renamed(mut self, to: &Path) -> ConfigError {
        if let Kind::Text { path, .. } = &mut *self.0 {
            *path = to.to_owned();
        }
        self
    }
}

impl From<PathError> for ConfigError {
    fn from(error: PathError) -> ConfigError {
        ConfigError(Box::new(Kind::File(error)))
    }
}

impl From<&ConfigError> for ErrorBody {
    fn from(error: &ConfigError) -> ErrorBody {
        let hint = error.hint().map(str::to_owned);
        ErrorBody { code: ErrorCode::BadConfig, message: error.to_string(), hint }
    }
}

impl std::error::Error for ConfigError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &*self.0 {
            // The message of the I/O error is already part of this one's.
            Kind::File(error) => std::error::Error::source(error),
            Kind::Text { .. } => None,
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, message, marks) = match &*self.0 {
            Kind::File(error) => return error.fmt(f),
            Kind::Text { path, message, marks, .. } => (path, message, marks),
        };
        write!(f, "{}:", path.display())?;
        if let Some(mark) = marks.first() {
            write!(f, "{}:{}:", mark.line, mark.column)?;
        }
        write!(f, " {message}")?;
        let width = marks.iter().map(|m| m.line.to_string().len()).max().unwrap_or(0);
        for mark in marks {
            mark.show(f, width)?;
        }
        Ok(())
    }
}

/// A place in the text with the line it is on, cut to what fits.
#[derive(Debug)]
struct Mark {
    line: usize,
    column: usize,
    /// The piece of the line that is shown.
    source: String,
    /// Characters before the caret in `source`.
    indent: usize,
    /// Number of carets.
    carets: usize,
    label: &'static str,
}

impl Mark {
    fn new(text: &str, span: Span, label: &'static str) -> Mark {
        let start = floor_boundary(text, span.start);
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        let before = text[line_start..start].chars().count();
        let end = floor_boundary(text, span.end.clamp(start, line_end));
        let carets = text[start..end].trim_end().chars().count().max(1);
        // Tabs would shift the caret and control characters would reach the terminal.
        let line: Vec<char> = text[line_start..line_end]
            .trim_end()
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let from = if before + carets.min(MAX_SHOWN_CHARS / 2) <= MAX_SHOWN_CHARS {
            0
        } else {
            before - MAX_SHOWN_CHARS / 2
        };
        let source: String = line.iter().skip(from).take(MAX_SHOWN_CHARS).collect();
        let carets = carets.min(MAX_SHOWN_CHARS.saturating_sub(before - from).max(1));
        let line_number = text[..line_start].matches('\n').count() + 1;
        Mark { line: line_number, column: before + 1, source, indent: before - from, carets, label }
    }

    fn show(&self, f: &mut fmt::Formatter<'_>, width: usize) -> fmt::Result {
        let mut under = " ".repeat(self.indent);
        under.extend(std::iter::repeat_n('^', self.carets));
        if !self.label.is_empty() {
            write!(under, " {}", self.label)?;
        }
        write!(f, "\n{:width$} |\n{} | {}\n{:width$} | {under}", "", pad(self.line, width), self.source, "")
    }
}

fn pad(line: usize, width: usize) -> String {
    format!("{line:>width$}")
}

/// The nearest character boundary at or before `at`.
fn floor_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// The line of a byte offset, from 1.
pub(crate) fn line_of(text: &str, at: usize) -> usize {
    text[..floor_boundary(text, at)].matches('\n').count() + 1
}
