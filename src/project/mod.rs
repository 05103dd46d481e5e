//! A local project folder: what it is, what is run, what of it is copied. The guest has no part in this module.
//!
//! ```text
//!   folder ──detect──▶ evidence ─┐
//!          ──manifest──▶ manifest ┴─scripts──▶ Plan (each value with its origin) ──▶ install_key
//!          ──files──▶ list of files ──sync, against the index of what the guest has──▶ what to send and delete
//! ```

mod commands;
pub mod detect;
pub mod error;
pub mod files;
pub mod index;
pub mod install_key;
pub mod kind;
mod links;
pub mod manifest;
pub mod scripts;
pub mod sync;

use std::path::{Path, PathBuf};

use error::ProjectError;
use kind::Kind;
use scripts::{Inputs, Plan};
use serde::{Deserialize, Serialize};

/// Where a project's files are in its machine, and where its scripts are run.
pub const WORKSPACE: &str = "/workspace";

/// What a machine's disk must have before its workload can run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProjectSpec {
    /// The project's folder.
    pub folder: PathBuf,
    /// Further patterns of what is not copied.
    pub exclude: Vec<String>,
    /// Decides which files an install depends on; `None` if nothing tells the kind, so that any of them may count.
    pub kind: Option<Kind>,
    /// Digest of the machine's image.
    pub base_image: String,
    /// Run once per disk.
    pub setup: Option<String>,
    /// Run when what it depends on has changed.
    pub install: Option<String>,
}

/// Reads a project: what would be run, and why. `name` is what the user calls it, if he does.
pub fn read(folder: &Path, name: Option<&str>) -> Result<Plan, ProjectError> {
    let evidence = detect::look(folder)?;
    let manifest = manifest::read(folder, name.is_some())?;
    scripts::plan(Inputs { folder, name, manifest: manifest.as_ref(), evidence: &evidence })
}
