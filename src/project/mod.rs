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

use std::path::Path;

use error::ProjectError;
use scripts::{Inputs, Plan};

/// Reads a project: what would be run, and why. `name` is what the user calls it, if he does.
pub fn read(folder: &Path, name: Option<&str>) -> Result<Plan, ProjectError> {
    let evidence = detect::look(folder)?;
    let manifest = manifest::read(folder)?;
    scripts::plan(Inputs { folder, name, manifest: manifest.as_ref(), evidence: &evidence })
}
