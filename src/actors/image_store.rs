//! The real source of images: the image store.

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use iii_protocol::api::{ErrorBody, ErrorCode, PullEvent};
use tokio::sync::mpsc;

use super::image_puller::ImageSource;
use crate::image::reference::{Reference, ReferenceError};
use crate::image::store::{ImageStore, PullPolicy, RegistrySettings};
use crate::image::types::Image;

impl ImageSource for ImageStore {
    fn ensure(
        &self,
        reference: &str,
        force: bool,
        insecure: Vec<String>,
        progress: mpsc::Sender<PullEvent>,
    ) -> BoxFuture<'static, Result<Image, ErrorBody>> {
        let (store, reference) = (self.clone(), reference.parse::<Reference>());
        let policy = if force { PullPolicy::Always } else { PullPolicy::IfMissing };
        async move {
            let reference = reference.map_err(|error| not_a_reference(&error))?;
            let settings = RegistrySettings { insecure };
            let image = ImageStore::ensure(&store, &reference, policy, &settings, progress).await;
            image.map_err(|error| ErrorBody::from(&error))
        }
        .boxed()
    }

    fn lookup(&self, reference: &str) -> Option<Image> {
        let parsed = reference.parse::<Reference>().ok()?;
        // A record that cannot be read is as good as none: pulling makes a new one, or says what is wrong.
        ImageStore::lookup(self, &parsed).unwrap_or_else(|error| {
            tracing::warn!("{reference}: {error}");
            None
        })
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
    use crate::home::Home;

    #[tokio::test]
    async fn what_is_no_reference_is_the_users_error_and_what_is_not_here_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::new(&Home::at(dir.path()));
        let (events, _seen) = mpsc::channel(1);
        let error =
            ImageSource::ensure(&store, "not a reference", false, Vec::new(), events).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::BadRequest);
        assert_eq!(ImageSource::lookup(&store, "localhost:1/x"), None);
        assert_eq!(ImageSource::lookup(&store, "not a reference"), None);
    }
}
