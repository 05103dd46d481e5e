//! The command line: asks, prints, and returns how it went.

pub mod args;
pub mod client;
pub mod commands;
pub mod context;
pub mod copy;
pub mod exec_plan;
pub mod exit;
pub mod host_side;
pub mod loss;
pub mod offline;
pub mod output;
pub mod patience;
mod ports;
pub mod progress;
pub mod session;
pub mod signals;
pub mod stdio;
pub mod terminal;
pub mod wait;

use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use args::{Cli, Command, WorkerCommand};
use context::Context;
use exit::Failure;
use output::Printer;

use crate::home::Home;

/// Runs the daemon of this config file until its end: known to `main` only.
pub type RunDaemon = fn(Home, &Path) -> Result<(), Failure>;

/// The whole program but the hidden processes: reads the command line, does it, says how it went.
pub fn run(daemon: RunDaemon) -> ExitCode {
    // Ends the process itself for `--help` (0) and for what it does not understand (2).
    let cli = Cli::parse();
    let mut printer = Printer::std();
    let is_exec = matches!(&cli.command, Some(Command::Worker(WorkerCommand::Exec(_))));
    match dispatch(&cli, daemon, &mut printer) {
        Ok(()) => ExitCode::from(exit::OK),
        Err(failure) => {
            let failure = if is_exec { failure.of_session() } else { failure };
            printer.fail(&failure);
            ExitCode::from(&failure)
        }
    }
}

fn dispatch(cli: &Cli, daemon: RunDaemon, printer: &mut Printer) -> Result<(), Failure> {
    let command = match &cli.command {
        Some(Command::Completions { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "iii", &mut script);
            printer.write(&script)?;
            return Ok(printer.flush()?);
        }
        Some(Command::Worker(command)) => Some(command),
        None => None,
    };
    let ctx = Context::find(cli.config.as_deref())?;
    let Some(command) = command else { return commands::daemon(&ctx, daemon, printer) };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e: io::Error| Failure::failed(format!("cannot start: {e}")))?;
    runtime.block_on(worker(&ctx, command, printer))
}

/// One `iii worker ...` command.
pub async fn worker(ctx: &Context, command: &WorkerCommand, printer: &mut Printer) -> Result<(), Failure> {
    match command {
        WorkerCommand::Add(args) => commands::add(ctx, args, printer).await,
        WorkerCommand::Remove(args) => commands::remove(ctx, args, printer).await,
        WorkerCommand::List(args) => commands::list(ctx, args, printer).await,
        WorkerCommand::Start(args) => commands::start(ctx, args, printer).await,
        WorkerCommand::Stop(args) => commands::stop(ctx, args, printer).await,
        WorkerCommand::Restart(args) => commands::restart(ctx, args, printer).await,
        WorkerCommand::Status(args) => commands::status(ctx, args, printer).await,
        WorkerCommand::Dev(args) => commands::dev(ctx, args, printer).await,
        WorkerCommand::Logs(args) => commands::logs(ctx, args, printer).await,
        WorkerCommand::Exec(args) => commands::exec(ctx, args, printer).await,
        WorkerCommand::Cp(args) => commands::cp(ctx, args, printer).await,
    }
}
