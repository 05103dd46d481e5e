//! `iii worker exec`: what a person and a script may trust.

mod leftovers;
mod pipes;
mod signals;
mod terminal;

use iii_protocol::api::Phase;

use super::bed::{Bed, Daemon};
use super::lifecycle::SERVE;

/// The running worker `web`.
fn web() -> (Bed, Daemon) {
    let bed = Bed::new();
    let reference = bed.script_image("web", SERVE);
    bed.configure(&[bed.entry("web", &reference, &[])]);
    let daemon = bed.daemon();
    bed.wait_phase("web", Phase::Running);
    (bed, daemon)
}
