//! The supervisor tree as the daemon starts it: the real launcher, the real images, the real file.

use std::sync::Arc;

use iii_protocol::api::{ErrorBody, ErrorCode};
use tokio::sync::mpsc;

use super::{EVENT_QUEUE, Event, Project, Root};
use crate::actors::image_store::Images;
use crate::actors::supervisor::{RootArgs, load_file, start};
use crate::actors::worker::plan::HostLimits;
use crate::config::load;
use crate::host;
use crate::vm::ShimLauncher;

/// Reads the config file and starts the tree. A file that is wrong at the start is an error: there is no good
/// one to go on with.
pub(super) async fn start_root(project: Project) -> Result<Root, ErrorBody> {
    let Project { home, config: config_path, id } = project;
    let config = load::load(&config_path).map_err(|e| ErrorBody::from(&e))?;
    let (sender, events) = mpsc::channel(EVENT_QUEUE);
    let of_workers = sender.clone();
    let args = RootArgs {
        load: load_file(),
        launcher: Arc::new(ShimLauncher::new(&home, &id)),
        images: Arc::new(Images::new(&home)),
        host: HostLimits { cpus: host::cpus(), emulated: host::is_emulated() },
        // Full: a line is lost, the status itself is not.
        announce: Arc::new(move |status| {
            let _ = of_workers.try_send(Event::Worker(Box::new(status.clone())));
        }),
        announce_config: Arc::new(move |news| {
            let _ = sender.try_send(match news {
                Ok(changed) => Event::ConfigInForce { changed: changed.to_vec() },
                Err(error) => Event::ConfigRefused { error: error.to_owned() },
            });
        }),
        config_path,
        config,
        home,
    };
    let (supervisor, ended) = start(args).await.map_err(|e| ErrorBody {
        code: ErrorCode::Internal,
        message: format!("the supervisor tree did not start: {e}"),
        hint: None,
    })?;
    Ok(Root { supervisor, ended, events })
}
