//! Why a folder cannot be a worker: what, where, and what to do next.

use std::path::PathBuf;

use iii_protocol::api::{ErrorBody, ErrorCode};

use super::kind::Kind;
use super::manifest::MANIFEST_FILE;
use crate::config::error::ConfigError;
use crate::fsutil::PathError;

/// Everything that can be wrong with a project.
#[derive(Debug, thiserror::Error)]
pub enum ProjectError {
    /// No such folder.
    #[error("there is no folder {}", path.display())]
    Missing {
        /// What was looked for.
        path: PathBuf,
    },
    /// A file, or something else.
    #[error("{} is not a folder", path.display())]
    NotAFolder {
        /// What it is about.
        path: PathBuf,
    },
    /// Something in it cannot be read.
    #[error(transparent)]
    Path(#[from] PathError),
    /// Neither a manifest nor a file that shows what it is.
    #[error(
        "{} is no project that iii knows: it has no {MANIFEST_FILE}, package.json, Cargo.toml, pyproject.toml or \
         requirements.txt", path.display()
    )]
    Unknown {
        /// The folder.
        path: PathBuf,
    },
    /// The manifest is wrong.
    #[error(transparent)]
    Manifest(Box<ConfigError>),
    /// A file of the project's own tools that is needed cannot be understood.
    #[error("{} cannot be understood: {reason}", path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// What its parser says.
        reason: String,
    },
    /// The folder's name cannot be a worker's.
    #[error("the folder's name does not do for the worker: {reason}")]
    Name {
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing says how the worker is started.
    #[error("nothing says how {} is started: {looked_for}", path.display())]
    NoStart {
        /// The folder.
        path: PathBuf,
        /// What kind of project it is.
        kind: Kind,
        /// What was looked for in vain, or is there twice.
        looked_for: String,
    },
    /// A line of `.iiiignore`, or a value of `--exclude`.
    #[error("{place}: `{pattern}` is not a pattern: {reason}")]
    Pattern {
        /// `--exclude`, or file and line.
        place: String,
        /// What is written.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Larger than a project can be.
    #[error("{} has {what}", path.display())]
    TooLarge {
        /// The project, or a folder in it.
        path: PathBuf,
        /// Which limit it exceeds.
        what: String,
    },
}

impl ProjectError {
    /// What the user can do next, if there is something.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            ProjectError::Manifest(error) => return error.hint().map(str::to_owned),
            ProjectError::NotAFolder { .. } => "name the folder the project is in".to_owned(),
            ProjectError::Unknown { .. } => format!(
                "write a {MANIFEST_FILE} into it:\n\n  name: my-worker\n  runtime:\n    kind: python\n  scripts:\n    \
                 start: \"python3 worker.py\""
            ),
            ProjectError::Name { .. } => {
                format!("choose another one with `--name`, or with `name:` in a {MANIFEST_FILE}")
            }
            ProjectError::NoStart { kind, .. } => {
                let entry = if *kind == Kind::Python { "worker.py" } else { "src/index.ts" };
                format!(
                    "say it in {MANIFEST_FILE}: `entry: {entry}` under `runtime:`, or the whole command as \
                     `start:` under `scripts:`"
                )
            }
            ProjectError::TooLarge { .. } => {
                "leave out what the worker does not need with `.iiiignore` or `--exclude`".to_owned()
            }
            ProjectError::Missing { .. }
            | ProjectError::Path(_)
            | ProjectError::Malformed { .. }
            | ProjectError::Pattern { .. } => return None,
        })
    }
}

impl From<&ProjectError> for ErrorBody {
    fn from(error: &ProjectError) -> ErrorBody {
        let code = match error {
            ProjectError::Path(_) => ErrorCode::Host,
            ProjectError::Manifest(_) | ProjectError::Malformed { .. } => ErrorCode::BadConfig,
            ProjectError::Missing { .. }
            | ProjectError::NotAFolder { .. }
            | ProjectError::Unknown { .. }
            | ProjectError::Name { .. }
            | ProjectError::NoStart { .. }
            | ProjectError::Pattern { .. }
            | ProjectError::TooLarge { .. } => ErrorCode::BadRequest,
        };
        ErrorBody { code, message: error.to_string(), hint: error.hint() }
    }
}
