//! The `iii` command: which of its processes is this one?

use std::path::Path;
use std::process::ExitCode;

use iii::cli::exit::Failure;
use iii::home::Home;
use iii::{cli, daemon, image, prepare, vm};

fn main() -> ExitCode {
    // Before any thread or parser: these must start from a bare process.
    match std::env::args_os().nth(1) {
        Some(arg) if arg == "__shim" => vm::run_shim(),
        Some(arg) if arg == "__vmm" => vm::run_vmm(),
        Some(arg) if arg == "__pull" => image::run_pull(),
        Some(arg) if arg == "__prepare" => prepare::run(),
        _ => cli::run(run_daemon),
    }
}

fn run_daemon(home: Home, config: &Path) -> Result<(), Failure> {
    daemon::run(home, config).map_err(|error| {
        let failure = if error.is_bad_input() { Failure::usage } else { Failure::failed };
        let failure = failure(error.to_string());
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    })
}
