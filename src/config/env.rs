//! `config:` as environment variables: nested keys joined with `_` and upper-cased, lists as JSON text.

use std::collections::HashMap;

use serde_json::Value as Json;

use super::error::Problem;
use super::fields::Values;
use super::tree::{Entry, Node, Span, Value};

/// The variables of a `config:` mapping, in its order; a later entry replaces an earlier one of the same name.
pub(super) fn flatten(config: &Node, values: &mut Values<'_>) -> Result<Vec<(String, String)>, Problem> {
    let Value::Map { entries, .. } = &config.value else {
        return Err(Problem::at(
            config.span,
            format!("`config`: expected a mapping, found {}", config.kind()),
        ));
    };
    let mut out = Variables::default();
    for entry in entries {
        let name = upper(&entry.key);
        add(entry, &name, &format!("config.{}", entry.key), values, &mut out)?;
        // Programs that look for `http_proxy` do not find HTTP_PROXY.
        if name != entry.key
            && let Some(value) = out.get(&name)
            && !matches!(entry.value.value, Value::Map { .. })
        {
            out.set(&entry.key, value);
        }
    }
    Ok(out.list)
}

/// The names that [`flatten`] gives, whatever the values.
pub(super) fn names(config: &Node) -> Vec<String> {
    fn collect(prefix: &str, node: &Node, names: &mut Vec<String>) {
        if let Value::Map { entries, .. } = &node.value {
            for entry in entries {
                let name = format!("{prefix}{}", upper(&entry.key));
                if prefix.is_empty() {
                    names.push(entry.key.clone());
                }
                match entry.value.value {
                    Value::Map { .. } => collect(&format!("{name}_"), &entry.value, names),
                    _ => names.push(name),
                }
            }
        }
    }
    let mut found = Vec::new();
    collect("", config, &mut found);
    found
}

/// Where the variable `name` is written in a `config:` mapping; the mapping itself if that is nowhere.
pub(super) fn place(config: &Node, name: &str) -> Span {
    fn find(prefix: &str, node: &Node, wanted: &str) -> Option<Span> {
        let Value::Map { entries, .. } = &node.value else { return None };
        // A later one replaces an earlier one.
        entries.iter().rev().find_map(|entry| {
            let name = format!("{prefix}{}", upper(&entry.key));
            match entry.value.value {
                Value::Map { .. } => find(&format!("{name}_"), &entry.value, wanted),
                _ => (name == wanted).then_some(entry.key_span),
            }
        })
    }
    find("", config, name).unwrap_or(config.span)
}

fn upper(key: &str) -> String {
    key.to_ascii_uppercase()
}

fn add(
    entry: &Entry,
    name: &str,
    path: &str,
    values: &mut Values<'_>,
    out: &mut Variables,
) -> Result<(), Problem> {
    if entry.key.is_empty() || entry.key.contains(['=', '\0']) {
        let message =
            "a key of `config` names an environment variable: it may not be empty or contain `=` or NUL";
        return Err(Problem::at(entry.key_span, message));
    }
    let value = match &entry.value.value {
        Value::Scalar(scalar) if entry.value.is_null() && scalar.plain => Some(String::new()),
        Value::Scalar(scalar) => values.scalar(scalar, entry.value.span, path)?,
        Value::List { .. } => json(&entry.value, path, values)?.map(|json| json.to_string()),
        Value::Map { entries, .. } => {
            for inner in entries {
                let name = format!("{name}_{}", upper(&inner.key));
                add(inner, &name, &format!("{path}.{}", inner.key), values, out)?;
            }
            return Ok(());
        }
    };
    if value.as_deref().is_some_and(|v| v.contains('\0')) {
        return Err(Problem::at(entry.value.span, format!("`{path}` contains a NUL character")));
    }
    // An unset variable has been noted; the place in the order does not matter any more.
    out.set(name, value.unwrap_or_default());
    Ok(())
}

/// A list, or what is in one; `None` when some value needs a variable that is not set.
fn json(node: &Node, path: &str, values: &mut Values<'_>) -> Result<Option<Json>, Problem> {
    match &node.value {
        Value::Scalar(scalar) => Ok(match scalar.resolve() {
            Json::String(_) => values.scalar(scalar, node.span, path)?.map(Json::String),
            other => Some(other),
        }),
        Value::List { items, .. } => {
            let items: Vec<_> =
                items.iter().map(|item| json(item, path, values)).collect::<Result<_, _>>()?;
            Ok(items.into_iter().collect::<Option<Vec<Json>>>().map(Json::Array))
        }
        Value::Map { entries, .. } => {
            let pairs: Vec<_> = entries
                .iter()
                .map(|e| Ok(json(&e.value, path, values)?.map(|value| (e.key.clone(), value))))
                .collect::<Result<_, Problem>>()?;
            Ok(pairs.into_iter().collect::<Option<serde_json::Map<_, _>>>().map(Json::Object))
        }
    }
}

/// Ordered, with unique names.
#[derive(Default)]
struct Variables {
    list: Vec<(String, String)>,
    index: HashMap<String, usize>,
}

impl Variables {
    fn set(&mut self, name: &str, value: String) {
        match self.index.get(name) {
            Some(&at) => self.list[at].1 = value,
            None => {
                self.index.insert(name.to_owned(), self.list.len());
                self.list.push((name.to_owned(), value));
            }
        }
    }

    fn get(&self, name: &str) -> Option<String> {
        self.index.get(name).map(|&at| self.list[at].1.clone())
    }
}
