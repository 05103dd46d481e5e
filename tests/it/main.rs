//! The real binary with machines as plain processes: the whole product but the hardware boundary.

use std::path::PathBuf;
use std::time::Duration;

#[path = "../compare/mod.rs"]
mod compare;
#[path = "../scenarios/mod.rs"]
#[allow(dead_code, unreachable_pub, reason = "two tiers share it, and each uses a part")]
mod scenarios;
#[path = "../support/mod.rs"]
#[allow(unused_imports, unreachable_pub, reason = "all test binaries share it, and each uses a part")]
mod support;
mod tls;

/// This tier.
const TIER: scenarios::Tier = scenarios::Tier {
    binary: || PathBuf::from(env!("CARGO_BIN_EXE_iii")),
    processes: true,
    patience: Duration::from_secs(30),
};
