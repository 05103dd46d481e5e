//! The `iii` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args_os().nth(1) {
        Some(arg) if arg == "__vmm" => iii::vm::run_vmm(),
        Some(arg) if arg == "__shim" => iii::vm::run_shim(),
        _ => ExitCode::FAILURE,
    }
}
