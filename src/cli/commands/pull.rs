//! The pull before a worker is added.

use iii_protocol::api::{ErrorBody, PullEvent, PullRequest, PulledImage};

use super::add::{Adding, parse};
use crate::cli::client::{Client, ClientError};
use crate::cli::context::Context;
use crate::cli::exit::Failure;
use crate::cli::output::Printer;
use crate::cli::progress::PullProgress;
use crate::config::load;
use crate::config::locate::STARTER;
use crate::image::store::{ImageStore, PullPolicy, RegistrySettings};

/// Brings an image here, by the daemon if there is one, and shows how far it is. A daemon will start the worker, so it
/// refuses at once where it cannot.
pub(super) async fn pull(
    adding: Adding<'_>,
    reference: &str,
    printer: &mut Printer,
) -> Result<PulledImage, Failure> {
    let request = PullRequest { reference: reference.to_owned(), force: adding.args.force, to_start: true };
    let mut progress = PullProgress::new(printer.err_style);
    let pulled = match adding.daemon {
        Some(daemon) => pull_there(daemon, &request, &mut progress, printer).await,
        None => pull_here(adding.ctx, request, &mut progress, printer).await,
    };
    progress.finish();
    pulled
}

async fn pull_there(
    daemon: &Client,
    request: &PullRequest,
    progress: &mut PullProgress,
    printer: &mut Printer,
) -> Result<PulledImage, Failure> {
    let mut events = daemon.post_lines("/v1/images/pull", request).await?;
    while let Some(event) = events.next_json::<PullEvent>().await? {
        progress.event(printer, &event);
        match event {
            PullEvent::Done { image } => return Ok(image),
            PullEvent::Failed { error } => return Err(error.into()),
            PullEvent::Resolved { .. }
            | PullEvent::Layer { .. }
            | PullEvent::Checking { .. }
            | PullEvent::Building { .. } => {}
        }
    }
    Err(ClientError::Gone("it ended during the pull".to_owned()).into())
}

async fn pull_here(
    ctx: &Context,
    request: PullRequest,
    progress: &mut PullProgress,
    printer: &mut Printer,
) -> Result<PulledImage, Failure> {
    // A file that is still to be written has its defaults and what the environment says.
    let config = match ctx.load_or_empty()? {
        Some(config) => config,
        None => load::parse(STARTER, &ctx.config, &|name| std::env::var(name).ok())
            .map_err(|e| Failure::from(ErrorBody::from(&e)))?,
    };
    let reference = parse(&request.reference)?;
    let policy = if request.force { PullPolicy::Always } else { PullPolicy::IfMissing };
    let mirrors = config.mirrors();
    let settings = RegistrySettings { insecure: config.insecure_registries, mirrors };
    let store = ImageStore::new(&ctx.home);
    let tell = |event| progress.event(printer, &event);
    let pulled = store.ensure_telling(&reference, policy, &settings, tell).await;
    let image = PulledImage::from(&pulled.map_err(|e| Failure::from(ErrorBody::from(&e)))?);
    progress.event(printer, &PullEvent::Done { image: image.clone() });
    Ok(image)
}
