//! `iii` keeps workers alive: each one an OCI image or a project folder, in its own libkrun microVM.
//!
//! ARCHITECTURE.md tells how the processes fit together; `tests/architecture.rs` holds the import rules.

pub mod actors;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod fsutil;
pub mod home;
pub mod host;
pub mod image;
pub mod logs;
pub mod prepare;
pub mod project;
pub mod session;
pub mod units;
pub mod vm;
