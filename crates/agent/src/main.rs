//! `iii-agent`: the guest's first process. It mounts, runs the workload, and reports how it ended.
//!
//! | file | what |
//! |---|---|
//! | `agent` | the life from Hello to the acknowledged Exit |
//! | `guest/`, `surroundings` | the two platforms: a microVM's PID 1, and a plain process for tests |
//! | `workload`, `launch`, `fork`, `user`, `explain` | from a plan to a running process |
//! | `engine` | the way of the guest's programs to their engine |
//! | `reaper`, `output`, `stop`, `link` | what happens while it runs |
//!
//! Threads and no async runtime: it is small, and it blocks in four places (link, pipes, children, events).

mod agent;
mod console;
mod copy;
mod engine;
mod error;
mod explain;
mod fork;
mod guest;
mod launch;
mod link;
mod output;
mod platform;
mod reaper;
mod session;
mod stop;
mod surroundings;
mod sys;
mod tagged;
mod user;
mod workload;

use std::process::ExitCode;

use crate::platform::Platform;
use crate::surroundings::Surroundings;

fn main() -> ExitCode {
    // Only the first process of a guest may touch the machine; its environment is not looked at.
    if std::process::id() == 1 {
        return live(&mut guest::Guest::default());
    }
    match Surroundings::from_env() {
        Some(mut surroundings) => live(&mut surroundings),
        None => {
            console::say(format_args!("this is the first process of an iii machine, not a command"));
            ExitCode::from(2)
        }
    }
}

fn live(platform: &mut dyn Platform) -> ExitCode {
    let result = agent::run(platform);
    if let Err(error) = &result {
        console::say(format_args!("{error}"));
    }
    platform.power_off();
    if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
