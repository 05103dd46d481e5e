use iii_protocol::api::StopRequest;

use super::{Tally, grace_ms, post_each, wait_stopped};
use crate::cli::args::StopArgs;
use crate::cli::context::Context;
use crate::cli::exit::Failure;
use crate::cli::output::Printer;

/// `iii worker stop`: asks all of them first, so that they end side by side.
pub async fn stop(ctx: &Context, args: &StopArgs, printer: &mut Printer) -> Result<(), Failure> {
    let mut tally = Tally::of(args.names.len());
    let body = StopRequest { grace_ms: grace_ms(args.timeout) };
    for accepted in post_each(ctx, &args.names, "stop", &body, printer, &mut tally).await {
        if args.no_wait {
            printer.say(&format!("{}: {}", accepted.name, accepted.phase));
            continue;
        }
        let answer = wait_stopped(&ctx.client(), &accepted.name, printer).await;
        let told = answer.map(|how| printer.say(&format!("{}: {how}", accepted.name)));
        tally.note(printer, told);
    }
    tally.result()
}
