//! Machines: what one is made of, how it is launched, watched and ended.
//!
//! `launcher` is what the actors see and `shim_launcher` the real one; `shim` is the process that owns
//! one machine, `vmm` the process that becomes it, `jail` what that one gives up, `krun` enters libkrun.

mod agent_binary;
mod jail;
mod krun;
pub mod launcher;
mod link;
#[cfg(feature = "process-launcher")]
mod process;
pub mod scratch;
mod shim;
mod shim_launcher;
pub mod spec;
mod vmm;
mod wire;

pub use shim::{CONSOLE_NAME, SESSION_SOCKET, SHIM_LOCK, run as run_shim};
pub use shim_launcher::ShimLauncher;
pub use vmm::run as run_vmm;
