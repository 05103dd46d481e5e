//! `watch:` of a worker: whether an edit of its project restarts its workload.

use serde_json::Value as Json;

use super::error::Problem;
use super::fields::Fields;
use super::tree::Value;

/// Reads the key; `place` is where we are. Only a project has files to follow.
pub(super) fn watch(fields: &Fields<'_>, place: &str) -> Result<bool, Problem> {
    let Some(entry) = fields.present("watch") else { return Ok(false) };
    if fields.present("worker_path").is_none() {
        let message = format!("`watch` {place} has no project to follow");
        return Err(Problem::at(entry.key_span, message).hint("it belongs beside a `worker_path:`"));
    }
    match &entry.value.value {
        Value::Scalar(scalar) => match scalar.resolve() {
            Json::Bool(watch) => Ok(watch),
            _ => {
                let message = format!("`watch`: expected `true` or `false`, found `{}`", scalar.text);
                Err(Problem::at(entry.value.span, message))
            }
        },
        _ => {
            let message = format!("`watch`: expected `true` or `false`, found {}", entry.value.kind());
            Err(Problem::at(entry.value.span, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::load::parse;

    fn read(fields: &str) -> Result<bool, String> {
        let text = format!("workers: [{{name: a, {fields}}}]");
        let config = parse(&text, Path::new("config.yaml"), &|_| None);
        config.map(|config| config.workers[0].watch).map_err(|error| error.to_string())
    }

    #[test]
    fn a_project_is_watched_if_it_says_so() {
        assert_eq!(read("worker_path: ./x, watch: true"), Ok(true));
        for not in ["worker_path: ./x, watch: false", "worker_path: ./x, watch: ", "worker_path: ./x"] {
            assert_eq!(read(not), Ok(false), "{not}");
        }
    }

    #[test]
    fn what_is_no_boolean_or_no_project_is_an_error_that_says_so() {
        for (fields, told) in [
            ("image: x, watch: true", "has no project to follow"),
            ("worker_path: ./x, watch: \"true\"", "expected `true` or `false`"),
            ("worker_path: ./x, watch: 1", "expected `true` or `false`"),
            ("worker_path: ./x, watch: [src]", "expected `true` or `false`"),
        ] {
            let error = read(fields).unwrap_err();
            assert!(error.contains(told), "{fields}: {error}");
        }
    }
}
