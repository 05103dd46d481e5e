//! What the test binaries share; each uses the part it needs.
#![allow(dead_code, reason = "all test binaries share it, and each uses a part")]

pub(crate) mod registry;
