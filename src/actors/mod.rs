//! The supervisor tree: a root, one actor per worker, an image puller and a config watcher.
//!
//! ```text
//! supervisor (root) --- config_watcher    reads config.yaml when it changes
//!    |        |
//!    |        +--------- image_puller     one pull per reference at a time
//!    +------------------ worker × N       keeps one machine as the user wants it
//! ```
//!
//! Two failures stay apart. A machine that ends is an event for its worker's state machine. An actor
//! that panics is a defect: the root starts it anew, and a worker's new actor takes its machine over.

pub mod config_watcher;
mod file_events;
pub mod image_puller;
pub mod image_store;
pub mod messages;
pub mod progress;
pub mod supervisor;
pub mod worker;
