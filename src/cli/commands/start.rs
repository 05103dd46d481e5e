use iii_protocol::api::StopRequest;

use super::post_and_await_start;
use crate::cli::args::StartArgs;
use crate::cli::context::Context;
use crate::cli::exit::Failure;
use crate::cli::output::Printer;

/// `iii worker start`: wants all of them first, then waits for each.
pub async fn start(ctx: &Context, args: &StartArgs, printer: &mut Printer) -> Result<(), Failure> {
    // The route takes no body; the default of any is `{}`.
    let body = StopRequest::default();
    post_and_await_start(ctx, &args.names, "start", &body, args.no_wait, printer).await
}
