use std::fs::File;
use std::io::{ErrorKind, Write as _};

use crate::cli::RunDaemon;
use crate::cli::context::Context;
use crate::cli::exit::Failure;
use crate::cli::output::Printer;
use crate::config::locate::STARTER;
use crate::fsutil::PathError;

/// `iii`: sees to it that there is a config file, then runs the daemon.
pub fn daemon(ctx: &Context, run: RunDaemon, printer: &mut Printer) -> Result<(), Failure> {
    let path = ctx.config.display();
    if !ctx.config.exists() {
        if printer.interactive && !printer.confirm(&format!("there is no {path}; create it?"))? {
            return Err(Failure::failed(format!("there is no {path}"))
                .hint("name the config file with `iii -c FILE`, or go to its folder"));
        }
        create_starter(ctx)?;
        printer.say(&format!("created {path}; `iii worker add REF` adds a worker to it"));
    }
    run(ctx.home.clone(), &ctx.config)
}

fn create_starter(ctx: &Context) -> Result<(), Failure> {
    match File::create_new(&ctx.config) {
        Ok(mut file) => {
            Ok(file.write_all(STARTER.as_bytes()).map_err(PathError::new("write", &ctx.config))?)
        }
        // Somebody was faster: that file is as good.
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(PathError::new("create", &ctx.config)(e).into()),
    }
}
