//! The guarantee: an edited text says what was wanted, and everything else as before.

use std::borrow::Cow;

use super::render::Literal;
use super::{Workers, tree};
use crate::config::env;
use crate::config::tree::{Node, Span, Value};

/// What an addition was meant to do.
pub(super) enum Wanted {
    /// One more item.
    Added,
    /// Changes within this item; no comment goes.
    Updated(usize),
    /// A new item in place of this one; the comments in the range go with the old one.
    Rewritten(usize, Span),
}

pub(super) fn added(
    old: &Workers<'_>,
    edited: &str,
    entry: &Literal<'_>,
    wanted: Wanted,
) -> Result<(), String> {
    let new = reread(edited)?;
    let index = new.find(entry.name).ok_or("the new item is not found in it")?;
    let (replaced, gone) = match wanted {
        Wanted::Added => (None, None),
        Wanted::Updated(index) => (Some(index), None),
        Wanted::Rewritten(index, gone) => (Some(index), Some(gone)),
    };
    same_elsewhere(old, &new, replaced, Some(index))?;
    same_comments(old.text, edited, gone)?;
    let item = &new.items[index];
    let says =
        |key: &str, value: Option<&str>| value.is_none() || item.get(key).and_then(Node::text) == value;
    let before = replaced.filter(|_| gone.is_none()).map(|index| &old.items[index]);
    let complete = says("image", entry.image.as_deref())
        && says("worker_path", entry.worker_path.as_deref())
        && (entry.exclude.is_empty() || says_all(item.get("exclude"), &entry.exclude))
        && entry.stale_keys().iter().all(|key| item.get(key).is_none())
        && variables_arrived(before.and_then(|b| b.get("config")), item.get("config"), &entry.config)
        && (before.is_some_and(|before| before.get("resources").is_some())
            || resources_arrived(item.get("resources"), entry))
        && before.is_none_or(|before| others_kept(before, item, entry));
    if complete { Ok(()) } else { Err("the item would not say what it should".to_owned()) }
}

pub(super) fn removed(old: &Workers<'_>, edited: &str, index: usize, gone: Span) -> Result<(), String> {
    let new = reread(edited)?;
    same_elsewhere(old, &new, Some(index), None)?;
    same_comments(old.text, edited, Some(gone))
}

fn reread(edited: &str) -> Result<Workers<'_>, String> {
    Workers::read(edited).map_err(|e| format!("the result would not parse: {e}"))
}

/// Every key but the list, and every item but the one in question, in the same order.
fn same_elsewhere(
    old: &Workers<'_>,
    new: &Workers<'_>,
    old_item: Option<usize>,
    new_item: Option<usize>,
) -> Result<(), String> {
    fn others<'n>(file: &'n Workers<'_>) -> Vec<(&'n str, &'n Node)> {
        match file.root.as_ref().map(|root| &root.value) {
            Some(Value::Map { entries, .. }) => {
                entries.iter().filter(|e| e.key != file.key).map(|e| (e.key.as_str(), &e.value)).collect()
            }
            _ => Vec::new(),
        }
    }
    fn rest<'n>(file: &'n Workers<'_>, without: Option<usize>) -> Vec<&'n Node> {
        file.items.iter().enumerate().filter(|(i, _)| Some(*i) != without).map(|(_, item)| item).collect()
    }
    let (a, b) = (others(old), others(new));
    let same_keys = a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| a.0 == b.0 && a.1.same(b.1));
    let (a, b) = (rest(old, old_item), rest(new, new_item));
    let same_items = a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| a.same(b));
    if same_keys && same_items { Ok(()) } else { Err("something else in it would change".to_owned()) }
}

fn same_comments(old: &str, new: &str, gone: Option<Span>) -> Result<(), String> {
    let comments = |text: &str, gone: Option<Span>| -> Result<Vec<String>, String> {
        let found = tree::comments(text).map_err(|p| p.to_string())?;
        let kept = |at: &Span| gone.is_none_or(|gone| at.start < gone.start || at.start >= gone.end);
        Ok(found.into_iter().filter(|(at, _)| kept(at)).map(|(_, comment)| comment).collect())
    };
    let (before, after) = (comments(old, gone)?, comments(new, None)?);
    if before == after { Ok(()) } else { Err("a comment would be lost or moved".to_owned()) }
}

/// Old variables are as they were, and new ones are there unless an old one has the name.
fn variables_arrived(before: Option<&Node>, after: Option<&Node>, new: &[(String, String)]) -> bool {
    let entries = |node: Option<&Node>| match node.map(|n| &n.value) {
        Some(Value::Map { entries, .. }) => entries.clone(),
        _ => Vec::new(),
    };
    let known = before.map(env::names).unwrap_or_default();
    let (old, now) = (entries(before), entries(after));
    let kept = old.iter().all(|e| now.iter().any(|n| n.key == e.key && n.value.same(&e.value)));
    let arrived = new
        .iter()
        .filter(|(key, _)| !known.contains(key))
        .all(|(key, value)| now.iter().any(|n| n.key == *key && n.value.text() == Some(value)));
    let no_more =
        now.iter().all(|n| old.iter().any(|e| e.key == n.key) || new.iter().any(|(key, _)| *key == n.key));
    kept && arrived && no_more
}

/// Whether a list has these texts, and no more.
pub(super) fn says_all(list: Option<&Node>, texts: &[Cow<'_, str>]) -> bool {
    match list.map(|node| &node.value) {
        Some(Value::List { items, .. }) => {
            items.len() == texts.len()
                && items.iter().zip(texts).all(|(item, text)| item.text() == Some(text.as_ref()))
        }
        _ => false,
    }
}

/// All that is wanted of `resources:` is there, and no more.
fn resources_arrived(now: Option<&Node>, entry: &Literal<'_>) -> bool {
    let wanted = entry.resources();
    match now.map(|node| &node.value) {
        None => wanted.is_empty(),
        Some(Value::Map { entries, .. }) => {
            entries.len() == wanted.len()
                && wanted.iter().all(|(key, value)| {
                    entries.iter().any(|e| e.key == *key && e.value.text() == Some(value.as_str()))
                })
        }
        Some(_) => false,
    }
}

/// The keys of an updated item that the update is not about.
fn others_kept(before: &Node, after: &Node, entry: &Literal<'_>) -> bool {
    let stale = |key: &str| entry.stale_keys().contains(&key);
    let touched = |key: &str| match key {
        "config" => true,
        "resources" => before.get("resources").is_none(),
        "image" => entry.image.is_some() || stale("image"),
        "worker_path" => entry.worker_path.is_some() || stale("worker_path"),
        "exclude" => !entry.exclude.is_empty() || stale("exclude"),
        "watch" => stale("watch"),
        _ => false,
    };
    let rest = |node: &Node| match &node.value {
        Value::Map { entries, .. } => entries.iter().filter(|e| !touched(&e.key)).cloned().collect(),
        _ => Vec::new(),
    };
    let (a, b) = (rest(before), rest(after));
    a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| a.key == b.key && a.value.same(&b.value))
}
