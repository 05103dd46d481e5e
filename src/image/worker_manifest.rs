//! `/iii/worker.yaml` of an image: what its maker says about the machine it wants.
//!
//! ```yaml
//! resources:
//!   memory: 512 # MiB
//!   cpus: 1
//! ```
//!
//! Other keys are for others and are skipped. Nothing in it can keep an image from being used: what cannot be
//! understood is said to the user and left out.

use iii_protocol::api::ResourceHints;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Most characters of a parser's message, or of a value, that are shown.
const MAX_SHOWN: usize = 120;

/// A manifest as it was understood; the default is that of an image without one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerManifest {
    /// `resources:`.
    pub resources: ResourceHints,
    /// What cannot be used, and why; each a line without control characters.
    pub problems: Vec<String>,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    resources: Option<Resources>,
}

#[derive(Deserialize)]
struct Resources {
    #[serde(default)]
    memory: Option<Value>,
    #[serde(default)]
    cpus: Option<Value>,
}

impl WorkerManifest {
    /// Reads the content of the file.
    pub fn parse(content: &[u8]) -> WorkerManifest {
        // The text comes from the image: no piece of it that spans lines is shown. The parser's own budget
        // stops aliases that multiply.
        let options = serde_saphyr::options! {
            with_snippet: false,
            // A key that is for others may have any value.
            non_finite_float_policy: serde_saphyr::options::NonFiniteFloatPolicy::AsString,
        };
        let file = match serde_saphyr::from_slice_with_options::<Option<File>>(content, options) {
            Ok(file) => file,
            Err(error) => {
                let problem =
                    format!("`/iii/worker.yaml` of the image is ignored: {}", shown(&error.to_string()));
                return WorkerManifest { problems: vec![problem], ..WorkerManifest::default() };
            }
        };
        let Some(resources) = file.and_then(|file| file.resources) else { return WorkerManifest::default() };
        let mut problems = Vec::new();
        let resources = ResourceHints {
            memory_mib: number("memory", "number of MiB", resources.memory.as_ref(), &mut problems),
            cpus: number("cpus", "number", resources.cpus.as_ref(), &mut problems),
        };
        WorkerManifest { resources, problems }
    }
}

/// A whole number that fits.
fn number<T: TryFrom<u64>>(
    key: &str,
    expected: &str,
    value: Option<&Value>,
    problems: &mut Vec<String>,
) -> Option<T> {
    let value = value.filter(|value| !value.is_null())?;
    let number = value.as_u64().and_then(|number| T::try_from(number).ok());
    if number.is_none() {
        problems.push(format!(
            "`resources.{key}` in `/iii/worker.yaml` of the image is ignored: expected a whole {expected}, found {}",
            shown(&value.to_string())
        ));
    }
    number
}

/// One line of at most [`MAX_SHOWN`] characters that does nothing to a terminal.
fn shown(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let mut out: String = line.chars().filter(|c| !c.is_control()).take(MAX_SHOWN).collect();
    if line.chars().count() > MAX_SHOWN {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hints(memory_mib: Option<u32>, cpus: Option<u8>) -> ResourceHints {
        ResourceHints { memory_mib, cpus }
    }

    #[test]
    fn hints_are_found_among_keys_that_are_for_others() {
        for (text, expected) in [
            ("resources: {memory: 512, cpus: 1}", hints(Some(512), Some(1))),
            (
                "1: x\nname: w\nscripts: {start: [a, {b: .nan}]}\nresources:\n  disk: 1\n  cpus: 4\n",
                hints(None, Some(4)),
            ),
            ("resources:\n", hints(None, None)),
            ("resources: {memory: ~}", hints(None, None)),
            ("{\"resources\": {\"memory\": 64}}", hints(Some(64), None)),
            ("name: w", hints(None, None)),
            ("# nothing", hints(None, None)),
            ("", hints(None, None)),
        ] {
            let manifest = WorkerManifest::parse(text.as_bytes());
            assert_eq!(
                (manifest.resources, manifest.problems.is_empty()),
                (expected, true),
                "{text}: {manifest:?}"
            );
        }
    }

    #[test]
    fn what_cannot_be_understood_is_said_and_left_out() {
        let manifest = WorkerManifest::parse(b"resources: {memory: 1.5, cpus: 2}");
        assert_eq!(manifest.resources, hints(None, Some(2)));
        assert_eq!(
            manifest.problems,
            [
                "`resources.memory` in `/iii/worker.yaml` of the image is ignored: expected a whole number of MiB, found 1.5"
            ]
        );
        for text in [
            "resources: {cpus: 256}",
            "resources: {cpus: -1}",
            "resources: {memory: [1]}",
            "resources: {memory: \"\\e[31m\"}",
            "resources: 5",
            "- a",
            "a: [",
            "\u{1b}[31m: [",
            "a: &a [x,x]\nb: *c",
        ] {
            let manifest = WorkerManifest::parse(text.as_bytes());
            assert!(manifest.resources.is_empty(), "{text}: {manifest:?}");
            let [problem] = &manifest.problems[..] else { panic!("{text}: {manifest:?}") };
            assert!(!problem.contains(char::is_control), "{problem}");
        }
        let bytes = WorkerManifest::parse(&[0xff, 0xfe, 0x00]);
        assert!(bytes.resources.is_empty() && bytes.problems.len() == 1, "{bytes:?}");
    }

    #[test]
    fn a_manifest_made_to_be_costly_is_refused_quickly() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..12 {
            let of = format!("*a{}", n - 1);
            text += &format!("a{n}: &a{n} [{}]\n", vec![of; 10].join(", "));
        }
        assert_eq!(WorkerManifest::parse(text.as_bytes()).problems.len(), 1);
        let deep = "[".repeat(60_000);
        assert_eq!(WorkerManifest::parse(deep.as_bytes()).problems.len(), 1);
    }
}
