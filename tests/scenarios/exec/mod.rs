//! `iii worker exec`: what a person and a script may trust.

mod leftovers;
mod pipes;
mod signals;
mod terminal;

use super::bed::{Bed, Daemon};
use super::lifecycle;

/// The running worker `web`.
fn web() -> (Bed, Daemon) {
    let (bed, _, daemon) = lifecycle::web();
    (bed, daemon)
}
