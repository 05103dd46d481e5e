//! The guest's agent, carried inside this binary.

/// The static `iii-agent`, built by the build script.
pub(super) static AGENT: &[u8] = include_bytes!(env!("III_AGENT_PATH"));
