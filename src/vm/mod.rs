//! Machines: what one is made of, how it is launched, watched and ended.
//!
//! `launcher` is what the actors see; `shim` is the process that owns one machine; `krun` enters libkrun.

pub mod agent_binary;
pub mod launcher;
pub mod spec;
