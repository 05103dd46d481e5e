//! config.yaml: what it says, where it is wrong, how it is edited, and what an edit changes.
//!
//! ```text
//! text --tree--> positioned nodes --load--> Config --diff--> Changes
//!   ^                                 |
//!   +---- edit (text in, text out) ---+--> ConfigError with line and caret
//! ```

pub mod diff;
pub mod edit;
pub mod engine;
mod env;
pub mod error;
pub mod expand;
mod fields;
pub mod load;
pub mod locate;
mod network;
mod ports;
mod resources;
mod rules;
pub mod schema;
pub mod suggest;
mod tree;
mod units;
