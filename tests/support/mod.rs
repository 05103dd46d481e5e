//! What the test binaries share; each uses the part it needs.
#![expect(dead_code, reason = "every test binary uses another part of this module")]

pub(crate) mod registry;
