//! From a reference to a root disk: resolve, pull, verify, build.
//!
//! `reference` and `registry` speak to the outside, `layer` and `tree` apply layers in memory, `erofs`
//! writes the root disk, `store` keeps blobs and disks and lets one process do each job.

pub mod build;
mod detached;
pub mod digest;
mod erofs;
pub mod error;
mod layer;
mod pull_process;
pub mod reference;
mod registry;
pub mod store;
mod tree;
pub mod types;
pub mod worker_manifest;

pub use pull_process::{pull as pull_in_process, run as run_pull};
