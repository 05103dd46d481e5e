//! The real source of images: the image store, and a process for each pull.

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use iii_protocol::api::{ErrorBody, ErrorCode, PullEvent};
use tokio::sync::mpsc;

use super::image_puller::ImageSource;
use crate::home::Home;
use crate::image::pull_in_process;
use crate::image::reference::{Reference, ReferenceError};
use crate::image::store::{ImageStore, PullPolicy, RegistrySettings};
use crate::image::types::Image;

/// The images of a home; what is not there is pulled by `iii __pull`.
#[derive(Debug, Clone)]
pub struct Images {
    home: Home,
    store: ImageStore,
}

impl Images {
    /// The images of `home`.
    pub fn new(home: &Home) -> Images {
        Images { home: home.clone(), store: ImageStore::new(home) }
    }
}

impl ImageSource for Images {
    fn ensure(
        &self,
        reference: &str,
        force: bool,
        registries: RegistrySettings,
        progress: mpsc::Sender<PullEvent>,
    ) -> BoxFuture<'static, Result<Image, ErrorBody>> {
        let (images, reference) = (self.clone(), reference.parse::<Reference>());
        let policy = if force { PullPolicy::Always } else { PullPolicy::IfMissing };
        async move {
            let reference = reference.map_err(|error| not_a_reference(&error))?;
            if policy == PullPolicy::IfMissing
                && let Some(image) = images.find(&reference)?
            {
                return Ok(image);
            }
            pull_in_process(&images.home, &reference, policy, &registries, progress).await?;
            images.find(&reference)?.ok_or_else(|| ErrorBody {
                code: ErrorCode::Image,
                message: format!("{reference} was pulled, and is gone again"),
                hint: Some("was the image folder emptied meanwhile? Try again".to_owned()),
            })
        }
        .boxed()
    }

    fn forget_if_damaged(&self, reference: &str) -> BoxFuture<'static, Result<bool, ErrorBody>> {
        let (store, reference) = (self.store.clone(), reference.parse::<Reference>());
        async move {
            let reference = reference.map_err(|error| not_a_reference(&error))?;
            store.forget_if_damaged(&reference).await.map_err(|error| ErrorBody::from(&error))
        }
        .boxed()
    }

    fn lookup(&self, reference: &str) -> Option<Image> {
        let parsed = reference.parse::<Reference>().ok()?;
        // A record that cannot be read is as good as none: pulling makes a new one, or says what is wrong.
        self.store.lookup(&parsed).unwrap_or_else(|error| {
            tracing::warn!("{reference}: {error}");
            None
        })
    }
}

impl Images {
    fn find(&self, reference: &Reference) -> Result<Option<Image>, ErrorBody> {
        self.store.lookup(reference).map_err(|error| ErrorBody::from(&error))
    }
}

fn not_a_reference(error: &ReferenceError) -> ErrorBody {
    ErrorBody {
        code: ErrorCode::BadRequest,
        message: error.to_string(),
        hint: Some("write it as for Docker: `redis:7`, `ghcr.io/org/worker:1.0`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_no_reference_is_the_users_error_and_what_is_not_here_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let images = Images::new(&Home::at(dir.path()));
        let (events, _seen) = mpsc::channel(1);
        let error =
            ImageSource::ensure(&images, "not a reference", false, RegistrySettings::default(), events)
                .await
                .unwrap_err();
        assert_eq!(error.code, ErrorCode::BadRequest);
        assert_eq!(ImageSource::lookup(&images, "localhost:1/x"), None);
        assert_eq!(ImageSource::lookup(&images, "not a reference"), None);
    }
}
