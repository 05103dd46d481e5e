use jiff::Timestamp;

use super::list::Listing;
use crate::cli::args::StatusArgs;
use crate::cli::context::Context;
use crate::cli::exit::Failure;
use crate::cli::output::{Printer, worker_details};

/// `iii worker status`.
pub async fn status(ctx: &Context, args: &StatusArgs, printer: &mut Printer) -> Result<(), Failure> {
    let listing = Listing::get(ctx).await?;
    let workers = &listing.list.workers;
    let Some(name) = &args.name else {
        if args.json {
            return listing.json(printer);
        }
        let show =
            |status| worker_details(status, listing.status_word(status), Timestamp::now(), printer.out_style);
        let all: Vec<_> = workers.iter().map(show).collect();
        if all.is_empty() {
            printer.say("no workers yet: `iii worker add REF` adds one");
        } else {
            printer.print(&all.join("\n\n"))?;
        }
        listing.remark(ctx, printer);
        return Ok(());
    };
    let Some(status) = workers.iter().find(|worker| worker.name == *name) else {
        let names: Vec<_> = workers.iter().map(|worker| worker.name.clone()).collect();
        return Err(ctx.unknown(name, &names));
    };
    if args.json {
        printer.json(status)?;
    } else {
        let details =
            worker_details(status, listing.status_word(status), Timestamp::now(), printer.out_style);
        printer.print(&details)?;
    }
    // A worker's object has no place for what is wrong with the file either.
    listing.remark(ctx, printer);
    Ok(())
}
