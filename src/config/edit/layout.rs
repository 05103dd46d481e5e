//! Lines of a block list: where an item starts and ends, and which comments are its own.
//!
//! A comment line is an item's own when it follows the item and is indented deeper than the item's dash.

use crate::config::tree::Span;

/// Where an item's `-` stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dash {
    pub line_start: usize,
    /// Columns before it, from 0.
    pub column: usize,
}

/// The line ending the file uses.
pub(super) fn line_ending(text: &str) -> &'static str {
    match text.find('\n') {
        Some(at) if text[..at].ends_with('\r') => "\r\n",
        _ => "\n",
    }
}

/// The dash of the item whose content starts at `start`; it is on that line, or above it and after `lowest`.
pub(super) fn dash_of(text: &str, start: usize, lowest: usize) -> Option<Dash> {
    let mut line_start = start_of_line(text, start);
    while line_start > lowest {
        let line = &text[line_start..end_of_line(text, line_start)];
        let bare = line.trim_start_matches(' ');
        if bare == "-" || bare.starts_with("- ") || bare.starts_with("-\n") || bare.starts_with("-\r") {
            return Some(Dash { line_start, column: line.len() - bare.len() });
        }
        line_start = start_of_line(text, line_start - 1);
    }
    None
}

/// The end of the lines of an item that ends at `end` and starts at `column`, with its own comments.
pub(super) fn end_of_item(text: &str, end: usize, column: usize) -> usize {
    let at_line_start = end > 0 && text.as_bytes()[end - 1] == b'\n';
    let mut item_end = if at_line_start { end } else { end_of_line(text, end) };
    let mut at = item_end;
    while at < text.len() {
        let line_end = end_of_line(text, at);
        let line = &text[at..line_end];
        let bare = line.trim_start_matches(' ');
        if bare.starts_with('#') && line.len() - bare.len() > column {
            item_end = line_end;
        } else if !bare.trim().is_empty() {
            break;
        }
        at = line_end;
    }
    item_end
}

/// Whether a blank line is above an item and the comments right above it.
pub(super) fn is_set_apart(text: &str, line_start: usize) -> bool {
    let above = text[..line_start].lines().rev().find(|line| !line.trim_start().starts_with('#'));
    above.is_some_and(|line| line.trim().is_empty())
}

/// `lines` put in at `at`, the start of a line or the end of the text.
pub(super) fn insert_lines(text: &str, at: usize, lines: &str) -> String {
    let (before, after) = text.split_at(at);
    let eol = if before.is_empty() || before.ends_with('\n') { "" } else { line_ending(text) };
    format!("{before}{eol}{lines}{after}")
}

/// The text without `gone`; where that leaves two blank lines in a row, one of them goes too.
pub(super) fn without_lines(text: &str, gone: Span) -> String {
    let (before, mut after) = (&text[..gone.start], &text[gone.end..]);
    let blank = |line: &str| line.trim().is_empty();
    let above_is_blank = before.lines().next_back().is_none_or(blank);
    let first = &after[..end_of_line(after, 0)];
    if above_is_blank && first.ends_with('\n') && blank(first) {
        after = &after[first.len()..];
    }
    format!("{before}{after}")
}

/// The text without an item of a list in brackets and without the comma that goes with it.
pub(super) fn without_flow_item(text: &str, gone: Span) -> String {
    let (mut before, mut after) = (text[..gone.start].to_owned(), text[gone.end..].to_owned());
    match comma(&after) {
        Some(at) => drop(after.remove(at)),
        None if before.trim_end().ends_with(',') => {
            before.truncate(before.trim_end().len() - 1);
        }
        None => {}
    }
    let rest = after.trim_start_matches(' ');
    // A comment needs the space before it.
    if before.ends_with(['[', ' ']) && !rest.starts_with('#') {
        after = rest.to_owned();
    }
    before + &after
}

/// Where the next comma is, if only blanks and comments are before it.
fn comma(text: &str) -> Option<usize> {
    let mut comment = false;
    for (at, c) in text.char_indices() {
        match c {
            '\n' => comment = false,
            _ if comment => {}
            '#' => comment = true,
            ',' => return Some(at),
            c if c.is_whitespace() => {}
            _ => return None,
        }
    }
    None
}

/// The text with `[]` as the value of the key, if nothing but a comment follows the key on its line.
pub(super) fn with_empty_list(text: &str, key: Span) -> String {
    let line = &text[key.end..end_of_line(text, key.end)];
    match line.find(':') {
        Some(colon) if line[..colon].trim().is_empty() => {
            let rest = line[colon + 1..].trim();
            if rest.is_empty() || rest.starts_with('#') {
                let at = key.end + colon + 1;
                return format!("{} []{}", &text[..at], &text[at..]);
            }
            text.to_owned()
        }
        _ => text.to_owned(),
    }
}

/// The text with nothing as the value of the key; and a place on the key's line.
pub(super) fn without_value(text: &str, key: Span, value: Span) -> (String, usize) {
    if value.start < key.end || value.is_empty() {
        return (text.to_owned(), key.end);
    }
    let before = text[..value.start].trim_end_matches(' ');
    (format!("{before}{}", &text[value.end..]), key.end)
}

/// Characters before `at` on its line.
pub(super) fn column(text: &str, at: usize) -> usize {
    text[start_of_line(text, at)..at].chars().count()
}

fn start_of_line(text: &str, at: usize) -> usize {
    text[..at].rfind('\n').map_or(0, |newline| newline + 1)
}

/// After the line break, or the end of the text.
fn end_of_line(text: &str, at: usize) -> usize {
    text[at..].find('\n').map_or(text.len(), |newline| at + newline + 1)
}
