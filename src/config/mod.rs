//! config.yaml: what it says, where it is wrong, how it is edited, and what an edit changes.

pub mod schema;
