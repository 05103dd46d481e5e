//! Reading the keys of one mapping: unknown keys, wrong types and variables, each error at its place.

use serde_json::Value as Json;

use super::error::Problem;
use super::expand::{ExpandError, expand};
use super::suggest::suggest;
use super::tree::{Entry, Node, Scalar, Span, Value};

/// Answers what an environment variable holds.
pub(crate) type Vars<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Keys that people look for in the wrong place of config.yaml, and where they are.
const MISPLACED: &[(&str, &str)] = &[
    ("env", "environment variables are written under `config:`"),
    ("environment", "environment variables are written under `config:`"),
    ("memory", "`memory` belongs under `resources:`"),
    ("cpus", "`cpus` belongs under `resources:`"),
    ("disk", "`disk` belongs under `resources:`"),
    ("egress", "`egress` belongs under `network:`"),
    ("allow", "`allow` belongs under `network:`, in `egress:`"),
    ("deny", "`deny` belongs under `network:`, in `egress:`"),
    ("ports", "`ports` belongs directly under the worker"),
    ("max_restarts", "`max_restarts` belongs under `restart:`"),
];

/// The entries of a mapping whose keys are all known.
pub(crate) struct Fields<'n> {
    entries: &'n [Entry],
}

impl<'n> Fields<'n> {
    /// Those of a mapping in config.yaml; `place` says where we are: `in worker ...`.
    pub(crate) fn of(node: &'n Node, place: &str, known: &[&str]) -> Result<Fields<'n>, Problem> {
        Fields::with(node, place, known, MISPLACED)
    }

    /// The same for another file, with the keys that belong elsewhere there.
    pub(crate) fn with(
        node: &'n Node,
        place: &str,
        known: &[&str],
        misplaced: &[(&str, &str)],
    ) -> Result<Fields<'n>, Problem> {
        let Value::Map { entries, .. } = &node.value else {
            return Err(Problem::at(node.span, format!("expected a mapping {place}, found {}", node.kind())));
        };
        match entries.iter().find(|e| !known.contains(&e.key.as_str())) {
            Some(entry) => Err(unknown_key(entry, place, known, misplaced)),
            None => Ok(Fields { entries }),
        }
    }

    /// The value of a key; one that is left empty counts as absent.
    pub(crate) fn get(&self, key: &str) -> Option<&'n Node> {
        self.present(key).map(|e| &e.value)
    }

    /// The entry of a key; one whose value is left empty counts as absent.
    pub(crate) fn present(&self, key: &str) -> Option<&'n Entry> {
        self.entry(key).filter(|e| !e.value.is_null())
    }

    pub(crate) fn entry(&self, key: &str) -> Option<&'n Entry> {
        self.entries.iter().find(|e| e.key == key)
    }
}

fn unknown_key(entry: &Entry, place: &str, known: &[&str], misplaced: &[(&str, &str)]) -> Problem {
    let message = format!("unknown key `{}` {place}", entry.key);
    let elsewhere = misplaced.iter().find(|(key, _)| *key == entry.key);
    match (elsewhere, suggest(&entry.key, known.iter().copied())) {
        (Some((_, place)), _) => Problem::at(entry.key_span, format!("{message}; {place}")),
        (None, Some(meant)) => Problem::at(entry.key_span, format!("{message}; did you mean `{meant}`?")),
        (None, None) => Problem::at(entry.key_span, message)
            .hint(format!("the keys known here are: {}", known.join(", "))),
    }
}

/// A variable that a value needs and that is not set.
#[derive(Debug, Clone)]
pub(crate) struct Missing {
    pub variable: String,
    pub span: Span,
    /// Which key needs it: `image`, `config.DB_URL`.
    pub key: String,
}

/// Reads values, expanding variables; remembers the unset ones instead of failing.
pub(crate) struct Values<'a> {
    pub vars: Vars<'a>,
    pub missing: Vec<Missing>,
}

impl<'a> Values<'a> {
    pub(crate) fn new(vars: Vars<'a>) -> Values<'a> {
        Values { vars, missing: Vec::new() }
    }

    /// A scalar's text after expansion; `None` when it needs a variable that is not set.
    pub(crate) fn scalar(
        &mut self,
        scalar: &Scalar,
        span: Span,
        key: &str,
    ) -> Result<Option<String>, Problem> {
        match expand(&scalar.text, self.vars) {
            Ok(text) => Ok(Some(text.into_owned())),
            Err(ExpandError::Unset(variable)) => {
                self.missing.push(Missing { variable, span, key: key.to_owned() });
                Ok(None)
            }
            Err(error) => Err(Problem::at(span, format!("{error} in `{key}`"))
                .hint("write `${VAR}` or `${VAR:-default}`, or `$${` for the two characters `${`")),
        }
    }

    /// A value that has to be text with something in it, see [`text`].
    pub(crate) fn text(&mut self, node: &Node, key: &str) -> Result<Option<String>, Problem> {
        let text = self.scalar(string(node, key)?, node.span, key)?;
        if let Some(text) = &text {
            refuse_unusable(text, node.span, key)?;
        }
        Ok(text)
    }

    /// Any scalar but a boolean, see [`parsed`].
    pub(crate) fn parsed<T>(
        &mut self,
        node: &Node,
        key: &str,
        expected: &str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Problem> {
        match self.scalar(readable(node, key, expected)?, node.span, key)? {
            None => Ok(None),
            Some(text) => read_as(&text, node.span, key, read).map(Some),
        }
    }
}

/// A value that has to be text with something in it, as it is written.
pub(crate) fn text<'n>(node: &'n Node, key: &str) -> Result<&'n Scalar, Problem> {
    let scalar = string(node, key)?;
    refuse_unusable(&scalar.text, node.span, key)?;
    Ok(scalar)
}

/// A value that has to be text, as it is written: a number or boolean has to be quoted to be taken for one.
pub(crate) fn string<'n>(node: &'n Node, key: &str) -> Result<&'n Scalar, Problem> {
    match &node.value {
        Value::Scalar(scalar) if matches!(scalar.resolve(), Json::String(_)) => Ok(scalar),
        Value::Scalar(_) if node.is_null() => {
            let message = format!("`{key}`: expected text, found nothing; write \"\" for empty text");
            Err(Problem::at(node.span, message))
        }
        Value::Scalar(scalar) => {
            let message = format!("`{key}`: expected text, found {}", node.kind());
            Err(Problem::at(node.span, format!("{message}; if it is meant, quote it: \"{}\"", scalar.text)))
        }
        _ => Err(Problem::at(node.span, format!("`{key}`: expected text, found {}", node.kind()))),
    }
}

/// Any scalar but a boolean, as it is written, read by `read`; errors of `read` say what was expected and what
/// was found.
pub(crate) fn parsed<T>(
    node: &Node,
    key: &str,
    expected: &str,
    read: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, Problem> {
    read_as(&readable(node, key, expected)?.text, node.span, key, read)
}

fn refuse_unusable(text: &str, span: Span, key: &str) -> Result<(), Problem> {
    if text.is_empty() || text.contains('\0') {
        return Err(Problem::at(span, format!("`{key}` may not be empty or contain a NUL character")));
    }
    Ok(())
}

fn readable<'n>(node: &'n Node, key: &str, expected: &str) -> Result<&'n Scalar, Problem> {
    match &node.value {
        Value::Scalar(scalar) if !matches!(scalar.resolve(), Json::Bool(_)) => Ok(scalar),
        _ => {
            let message = format!("`{key}`: expected {expected}, found {}", node.kind());
            Err(Problem::at(node.span, message))
        }
    }
}

fn read_as<T>(
    text: &str,
    span: Span,
    key: &str,
    read: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, Problem> {
    read(text).map_err(|message| Problem::at(span, format!("`{key}`: {message}")))
}
