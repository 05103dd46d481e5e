//! The command line: asks, prints, and returns how it went.

pub mod args;
pub mod client;
pub mod exit;
pub mod output;
pub mod progress;
mod wait;
