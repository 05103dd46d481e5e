//! Reading the keys of one mapping: unknown keys, wrong types and variables, each error at its place.

use serde_json::Value as Json;

use super::error::Problem;
use super::expand::{ExpandError, expand};
use super::suggest::suggest;
use super::tree::{Entry, Node, Scalar, Span, Value};

/// Answers what an environment variable holds.
pub(super) type Vars<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Keys that people look for in the wrong place, and where they are.
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
pub(super) struct Fields<'n> {
    entries: &'n [Entry],
}

impl<'n> Fields<'n> {
    /// `place` says where we are: `in worker ...`.
    pub(super) fn of(node: &'n Node, place: &str, known: &[&str]) -> Result<Fields<'n>, Problem> {
        let Value::Map { entries, .. } = &node.value else {
            return Err(Problem::at(node.span, format!("expected a mapping {place}, found {}", node.kind())));
        };
        match entries.iter().find(|e| !known.contains(&e.key.as_str())) {
            Some(entry) => Err(unknown_key(entry, place, known)),
            None => Ok(Fields { entries }),
        }
    }

    /// The value of a key; one that is left empty counts as absent.
    pub(super) fn get(&self, key: &str) -> Option<&'n Node> {
        self.entry(key).map(|e| &e.value).filter(|v| !v.is_null())
    }

    pub(super) fn entry(&self, key: &str) -> Option<&'n Entry> {
        self.entries.iter().find(|e| e.key == key)
    }
}

fn unknown_key(entry: &Entry, place: &str, known: &[&str]) -> Problem {
    let message = format!("unknown key `{}` {place}", entry.key);
    let elsewhere = MISPLACED.iter().find(|(key, _)| *key == entry.key);
    match (elsewhere, suggest(&entry.key, known.iter().copied())) {
        (Some((_, place)), _) => Problem::at(entry.key_span, format!("{message}; {place}")),
        (None, Some(meant)) => Problem::at(entry.key_span, format!("{message}; did you mean `{meant}`?")),
        (None, None) => Problem::at(entry.key_span, message)
            .hint(format!("the keys known here are: {}", known.join(", "))),
    }
}

/// A variable that a value needs and that is not set.
#[derive(Debug, Clone)]
pub(super) struct Missing {
    pub variable: String,
    pub span: Span,
    /// Which key needs it: `image`, `config.DB_URL`.
    pub key: String,
}

/// Reads values, expanding variables; remembers the unset ones instead of failing.
pub(super) struct Values<'a> {
    pub vars: Vars<'a>,
    pub missing: Vec<Missing>,
}

impl<'a> Values<'a> {
    pub(super) fn new(vars: Vars<'a>) -> Values<'a> {
        Values { vars, missing: Vec::new() }
    }

    /// A scalar's text after expansion; `None` when it needs a variable that is not set.
    pub(super) fn scalar(
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

    /// A value that has to be text: a number or boolean has to be quoted to be taken for one.
    pub(super) fn text(&mut self, node: &Node, key: &str) -> Result<Option<String>, Problem> {
        match &node.value {
            Value::Scalar(scalar) if matches!(scalar.resolve(), Json::String(_)) => {
                let text = self.scalar(scalar, node.span, key)?;
                if text.as_deref().is_some_and(|t| t.is_empty() || t.contains('\0')) {
                    return Err(Problem::at(
                        node.span,
                        format!("`{key}` may not be empty or contain a NUL character"),
                    ));
                }
                Ok(text)
            }
            Value::Scalar(scalar) => {
                let message = format!("`{key}`: expected text, found {}", node.kind());
                Err(Problem::at(
                    node.span,
                    format!("{message}; if it is meant, quote it: \"{}\"", scalar.text),
                ))
            }
            _ => Err(Problem::at(node.span, format!("`{key}`: expected text, found {}", node.kind()))),
        }
    }

    /// Any scalar but a boolean, read by `read`; errors of `read` say what was expected and what was found.
    pub(super) fn parsed<T>(
        &mut self,
        node: &Node,
        key: &str,
        expected: &str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, Problem> {
        let scalar = match &node.value {
            Value::Scalar(scalar) if !matches!(scalar.resolve(), Json::Bool(_)) => scalar,
            _ => {
                let message = format!("`{key}`: expected {expected}, found {}", node.kind());
                return Err(Problem::at(node.span, message));
            }
        };
        match self.scalar(scalar, node.span, key)? {
            None => Ok(None),
            Some(text) => match read(&text) {
                Ok(value) => Ok(Some(value)),
                Err(message) => Err(Problem::at(node.span, format!("`{key}`: {message}"))),
            },
        }
    }
}
