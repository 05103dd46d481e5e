//! `exclude:` of a worker: what of its project is not copied.

use ignore::gitignore::GitignoreBuilder;

use super::error::Problem;
use super::fields::{Fields, Values};
use super::tree::Value;

/// Most patterns of one worker: each file of the project is held against all of them.
const MAX_PATTERNS: usize = 1024;

/// Reads the key; `place` is where we are. Only a project has files to leave out.
pub(super) fn exclude(
    fields: &Fields<'_>,
    place: &str,
    values: &mut Values<'_>,
) -> Result<Vec<String>, Problem> {
    let Some(entry) = fields.present("exclude") else { return Ok(Vec::new()) };
    if fields.present("worker_path").is_none() {
        let message = format!("`exclude` {place} has no project to leave something out of");
        return Err(Problem::at(entry.key_span, message).hint("it belongs beside a `worker_path:`"));
    }
    let Value::List { items, .. } = &entry.value.value else {
        let message = format!("`exclude`: expected a list, found {}", entry.value.kind());
        return Err(Problem::at(entry.value.span, message).hint("such as `exclude: [\"*.log\", docs/]`"));
    };
    if items.len() > MAX_PATTERNS {
        let message =
            format!("`exclude` has {} patterns, more than the {MAX_PATTERNS} it may have", items.len());
        return Err(Problem::at(entry.value.span, message));
    }
    let mut patterns = Vec::with_capacity(items.len());
    for item in items {
        // With an unset variable the worker fails by that.
        if let Some(pattern) = values.text(item, "exclude")? {
            check(&pattern).map_err(|message| Problem::at(item.span, format!("`exclude`: {message}")))?;
            patterns.push(pattern);
        }
    }
    Ok(patterns)
}

fn check(pattern: &str) -> Result<(), String> {
    GitignoreBuilder::new("").add_line(None, pattern).map(drop).map_err(|error| {
        let reason = match error {
            ignore::Error::Glob { err, .. } => err,
            error => error.to_string(),
        };
        format!("`{}` is not a pattern: {reason}", pattern.escape_debug())
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::load::parse;
    use crate::config::schema::Source;

    fn read(fields: &str) -> Result<Source, String> {
        let vars = |name: &str| (name == "SET").then(|| "tmp".to_owned());
        let text = format!("workers: [{{name: w, {fields}}}]");
        match parse(&text, Path::new("c.yaml"), &vars) {
            Ok(mut config) => Ok(config.workers.remove(0).source),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn patterns_are_read_beside_a_path() {
        for (fields, patterns) in [
            ("worker_path: /p", &[][..]),
            ("worker_path: /p, exclude: ", &[]),
            ("worker_path: /p, exclude: []", &[]),
            (
                "worker_path: /p, image: x, exclude: ['*.log', docs/, '!dist/', \"${SET}/x\"]",
                &["*.log", "docs/", "!dist/", "tmp/x"],
            ),
        ] {
            let exclude = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
            assert_eq!(read(fields).unwrap(), Source::Local { path: "/p".into(), exclude }, "{fields}");
        }
        assert_eq!(read("image: x, exclude: ~").unwrap(), Source::Oci { image: "x".to_owned() });
    }

    #[test]
    fn what_is_wrong_is_shown_at_its_place() {
        for (fields, fault) in [
            ("image: x, exclude: [a]", "c.yaml:1:31: `exclude` in worker `w` has no project"),
            ("exclude: [a]", "c.yaml:1:21: `exclude` in worker `w` has no project"),
            ("worker_path: , exclude: [a]", "`exclude` in worker `w` has no project"),
            ("worker_path: /p, exclude: a", "c.yaml:1:47: `exclude`: expected a list, found text"),
            ("worker_path: /p, exclude: [a, 1]", "c.yaml:1:51: `exclude`: expected text, found a number"),
            ("worker_path: /p, exclude: ['']", "`exclude` may not be empty"),
            ("worker_path: /p, exclude: [x, '[z-a]']", "c.yaml:1:51: `exclude`: `[z-a]` is not a pattern: "),
        ] {
            let error = read(fields).expect_err(fields);
            assert!(error.contains(fault), "{fields}: {error}");
        }
        let error = read("image: x, exclude: [a]").unwrap_err();
        assert!(error.ends_with("                              ^^^^^^^"), "{error}");
        assert!(read(&format!("worker_path: /p, exclude: [{}]", "a,".repeat(1025))).is_err());
    }
}
