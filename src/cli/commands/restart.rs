use iii_protocol::api::StopRequest;

use super::{grace_ms, post_and_await_start};
use crate::cli::args::StopArgs;
use crate::cli::context::Context;
use crate::cli::exit::Failure;
use crate::cli::output::Printer;

/// `iii worker restart`: asks all of them first, then waits until each runs again.
pub async fn restart(ctx: &Context, args: &StopArgs, printer: &mut Printer) -> Result<(), Failure> {
    let body = StopRequest { grace_ms: grace_ms(args.timeout) };
    post_and_await_start(ctx, &args.names, "restart", &body, args.no_wait, printer).await
}
