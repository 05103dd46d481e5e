use iii_protocol::api::StopRequest;

use super::{Tally, grace_ms, post_each, wait_until};
use crate::cli::args::StopArgs;
use crate::cli::context::Context;
use crate::cli::exit::Failure;
use crate::cli::output::Printer;
use crate::cli::wait::StartWait;

/// `iii worker restart`: asks all of them first, then waits until each runs again.
pub async fn restart(ctx: &Context, args: &StopArgs, printer: &mut Printer) -> Result<(), Failure> {
    let mut tally = Tally::of(args.names.len());
    let body = StopRequest { grace_ms: grace_ms(args.timeout) };
    for accepted in post_each(ctx, &args.names, "restart", &body, printer, &mut tally).await {
        if args.no_wait {
            printer.say(&format!("{}: {}", accepted.name, accepted.phase));
            continue;
        }
        let wait = StartWait::new(&accepted);
        let answer = wait_until(&ctx.client(), &accepted.name, printer, |status| wait.judge(status)).await;
        let told = answer.map(|how| printer.say(&format!("{}: {how}", accepted.name)));
        tally.note(printer, told);
    }
    tally.result()
}
