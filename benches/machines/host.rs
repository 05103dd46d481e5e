//! What `scripts/bench` gives to the benchmarks that run machines, and how they all run them.

use std::path::PathBuf;
use std::time::Duration;

use crate::bed::Tier;

/// How machines run here.
pub(crate) const TIER: Tier = Tier { binary, processes: false, patience: Duration::from_secs(120) };
/// Memory of every machine here, MiB; as the peer's default.
pub(crate) const MEMORY_MIB: u32 = 512;

/// `iii` as it is shipped.
pub(crate) fn binary() -> PathBuf {
    environment("III_BIN")
}

/// A path that `scripts/bench` names.
pub(crate) fn environment(name: &str) -> PathBuf {
    PathBuf::from(std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set: use `make bench`")))
}
