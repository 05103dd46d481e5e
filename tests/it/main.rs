//! The real binary with machines as plain processes: the whole product but the hardware boundary.

use std::path::PathBuf;
use std::time::Duration;

#[path = "../scenarios/mod.rs"]
mod scenarios;
#[path = "../support/mod.rs"]
mod support;

/// This tier.
const TIER: scenarios::Tier = scenarios::Tier {
    binary: || PathBuf::from(env!("CARGO_BIN_EXE_iii")),
    processes: true,
    patience: Duration::from_secs(30),
};
