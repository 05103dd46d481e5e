//! The image store as the supervisor tree sees it.

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use iii_protocol::api::{ErrorBody, ErrorCode, PullEvent};
use tokio::sync::mpsc;

use crate::actors::image_puller::ImageSource;
use crate::home::Home;
use crate::image::reference::Reference;
use crate::image::store::{ImageStore, PullPolicy, RegistrySettings};
use crate::image::types::Image;

/// Images of this home.
pub(super) struct StoreImages(ImageStore);

impl StoreImages {
    pub(super) fn new(home: &Home) -> StoreImages {
        StoreImages(ImageStore::new(home))
    }
}

impl ImageSource for StoreImages {
    fn ensure(
        &self,
        reference: &str,
        force: bool,
        insecure: Vec<String>,
        progress: mpsc::Sender<PullEvent>,
    ) -> BoxFuture<'static, Result<Image, ErrorBody>> {
        let (store, reference) = (self.0.clone(), reference.parse::<Reference>());
        async move {
            let reference = reference.map_err(|e| ErrorBody {
                code: ErrorCode::BadRequest,
                message: e.to_string(),
                hint: None,
            })?;
            let policy = if force { PullPolicy::Always } else { PullPolicy::IfMissing };
            let settings = RegistrySettings { insecure };
            store.ensure(&reference, policy, &settings, progress).await.map_err(|e| ErrorBody::from(&e))
        }
        .boxed()
    }

    fn lookup(&self, reference: &str) -> Option<Image> {
        let found = self.0.lookup(&reference.parse().ok()?);
        found
            .inspect_err(
                |e| tracing::warn!(reference, error = %e, "what is known of an image cannot be read"),
            )
            .ok()
            .flatten()
    }
}
