//! One worker: an actor that keeps its machine as the user wants it.
//!
//! `state` says where a worker can be, `step` (pure) how it moves, `restart` (pure) when it comes back,
//! `plan` (pure) what its machine is made of, `durable` what outlives the daemon, `board` what others
//! see of it, `messages` what it is told, `project_watch` and `developers` when its project was edited, and who wants to
//! know. `actor` feeds `step` and performs its effects with the `tasks`; its handlers never wait.

pub mod actor;
pub mod board;
pub mod cause;
pub mod developers;
pub mod durable;
pub mod messages;
pub mod plan;
mod project_watch;
pub mod restart;
pub mod state;
mod step;
pub(super) mod tasks;
#[cfg(test)]
pub mod tests;
