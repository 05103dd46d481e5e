//! `insecure_registries:` and `registries:`: which servers are asked for images, and how.

use std::collections::BTreeMap;

use super::error::Problem;
use super::fields::{Fields, Values, Vars};
use super::schema::RegistryConfig;
use super::tree::{Node, Value};

/// Comma list of registries spoken to over plain http, besides those in the file.
pub const INSECURE_REGISTRIES_ENV: &str = "III_INSECURE_REGISTRIES";

pub(super) const REGISTRY_KEYS: &[&str] = &["mirror"];

pub(super) fn insecure(node: &Node, values: &mut Values<'_>) -> Result<Vec<String>, Problem> {
    let Value::List { items, .. } = &node.value else {
        let message = format!("`insecure_registries`: expected a list, found {}", node.kind());
        return Err(Problem::at(node.span, message));
    };
    let mut registries = Vec::new();
    for item in items {
        if let Some(name) = values.text(item, "insecure_registries")? {
            check_registry(&name).map_err(|message| Problem::at(item.span, message))?;
            push_new(&mut registries, name);
        }
    }
    Ok(registries)
}

pub(super) fn insecure_of_environment(vars: Vars<'_>, into: &mut Vec<String>) -> Result<(), Problem> {
    let list = vars(INSECURE_REGISTRIES_ENV).unwrap_or_default();
    for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        check_registry(name)
            .map_err(|e| Problem::unplaced(format!("the variable {INSECURE_REGISTRIES_ENV}: {e}")))?;
        push_new(into, name.to_owned());
    }
    Ok(())
}

pub(super) fn registries(
    node: &Node,
    values: &mut Values<'_>,
) -> Result<BTreeMap<String, RegistryConfig>, Problem> {
    let Value::Map { entries, .. } = &node.value else {
        let message = format!("`registries`: expected a mapping, found {}", node.kind());
        return Err(Problem::at(node.span, message).hint("such as `docker.io: {mirror: localhost:5050}`"));
    };
    let mut registries = BTreeMap::new();
    for entry in entries {
        let name = &entry.key;
        check_registry(name).map_err(|message| Problem::at(entry.key_span, message))?;
        let fields = Fields::of(&entry.value, &format!("under `registries` for `{name}`"), REGISTRY_KEYS)?;
        let mirror = match fields.get("mirror") {
            Some(node) => {
                let mirror = values.text(node, &format!("registries.{name}.mirror"))?;
                if let Some(mirror) = &mirror {
                    check_registry(mirror).map_err(|message| Problem::at(node.span, message))?;
                    if mirror.eq_ignore_ascii_case(name) {
                        return Err(Problem::at(node.span, format!("`{name}` cannot be its own mirror")));
                    }
                }
                mirror
            }
            None => None,
        };
        registries.insert(name.clone(), RegistryConfig { mirror });
    }
    Ok(registries)
}

fn check_registry(name: &str) -> Result<(), String> {
    let bare = name.split_once("://").map_or(name, |(_, rest)| rest);
    let bare = bare.split('/').next().unwrap_or(bare);
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
    if name == bare && !name.is_empty() && name.chars().all(allowed) {
        return Ok(());
    }
    let message = format!("`{}` is not a registry: expected `host` or `host:port`", name.escape_debug());
    if bare != name && !bare.is_empty() && bare.chars().all(allowed) {
        return Err(format!("{message}; did you mean `{bare}`?"));
    }
    Err(message)
}

fn push_new(list: &mut Vec<String>, name: String) {
    if !list.contains(&name) {
        list.push(name);
    }
}
