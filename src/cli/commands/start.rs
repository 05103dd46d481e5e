use iii_protocol::api::StopRequest;

use super::{Tally, post_each, wait_until};
use crate::cli::args::StartArgs;
use crate::cli::context::Context;
use crate::cli::exit::Failure;
use crate::cli::output::Printer;
use crate::cli::wait::StartWait;

/// `iii worker start`: wants all of them first, then waits for each.
pub async fn start(ctx: &Context, args: &StartArgs, printer: &mut Printer) -> Result<(), Failure> {
    let mut tally = Tally::of(args.names.len());
    // The route takes no body; the default of any is `{}`.
    let body = StopRequest::default();
    for accepted in post_each(ctx, &args.names, "start", &body, printer, &mut tally).await {
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
