//! Real microVMs: the scenarios of `tests/it` on libkrun, and what only a guest can tell.
//!
//! Needs a usable /dev/kvm, the release binary in III_BIN, and hosts outside in III_TEST_WORLD; `make test` sees to all.

use std::path::PathBuf;
use std::time::Duration;

#[path = "../rootdisk/disk.rs"]
#[allow(dead_code, reason = "two test binaries share it, and each uses a part")]
mod disk;
mod guest;
#[path = "../rootdisk/model.rs"]
#[allow(dead_code, reason = "likewise")]
mod model;
mod network;
mod processors;
mod projects;
mod rootdisk;
#[path = "../scenarios/mod.rs"]
#[allow(dead_code, unreachable_pub, reason = "two tiers share it, and each uses a part")]
mod scenarios;
mod sessions;
#[path = "../support/mod.rs"]
#[allow(unused_imports, unreachable_pub, reason = "all test binaries share it, and each uses a part")]
mod support;
#[path = "../rootdisk/tarball.rs"]
#[allow(dead_code, reason = "likewise")]
mod tarball;

/// This tier. The patience is for an emulated host, where a boot takes seconds.
const TIER: scenarios::Tier = scenarios::Tier {
    binary: || PathBuf::from(std::env::var_os("III_BIN").expect("III_BIN names no binary: use `make test`")),
    processes: false,
    patience: Duration::from_secs(120),
};
