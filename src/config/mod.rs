//! config.yaml: what it says, where it is wrong, how it is edited, and what an edit changes.
//!
//! ```text
//! text --tree--> positioned nodes --load--> Config --diff--> Changes
//!   ^                                 |
//!   +---- edit (text in, text out) ---+--> ConfigError with line and caret
//! ```
//!
//! `tree`, `fields`, `error` and `suggest` read any YAML file this way; `iii.worker.yaml` is the other one.

pub mod diff;
pub mod edit;
pub mod engine;
mod env;
pub mod error;
mod exclude;
pub mod expand;
pub(crate) mod fields;
pub mod load;
pub mod locate;
mod network;
mod ports;
pub mod registries;
pub mod resources;
mod rules;
pub mod schema;
pub mod suggest;
pub(crate) mod tree;
mod units;
mod watch;
