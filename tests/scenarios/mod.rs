//! What users see, told as scenarios: the same ones run with machines as plain processes (`tests/it`) and
//! with real microVMs (`tests/kvm`). Each scenario has its own home, registry and daemon.

mod adopt;
mod bed;
mod chaos;
mod clients;
mod commands;
mod cp;
mod daemon;
mod develop;
mod exec;
mod failures;
mod lifecycle;
mod logs;
mod network;
mod person;
mod power;
mod project;
mod project_disk;
mod project_files;
mod project_network;
mod reload;
mod restart;
mod terminal;

#[allow(unused_imports, reason = "two tiers share it, and each uses a part")]
pub use bed::{Bed, Daemon, Tier, shell_layer};
#[allow(unused_imports, reason = "likewise")]
pub use lifecycle::SERVE;
#[allow(unused_imports, reason = "likewise")]
pub use project::Local;
