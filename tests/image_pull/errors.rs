//! What a user is told when a pull cannot work, and how soon.

use std::time::{Duration, Instant};

use iii::image::error::ImageError;
use iii::image::store::{ImageStore, PullPolicy};
use iii_protocol::api::{ErrorBody, ErrorCode};
use serde_json::json;
use tokio::sync::mpsc;

use crate::support::registry::{image, layer_of};
use crate::{World, disk_has, ensure};

/// "At once", on a loaded machine.
const AT_ONCE: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_missing_tag_is_told_at_once() {
    let world = World::new();
    world.registry.push("x", "1", &image(&[], json!({})));
    let error = world.pull("x:2").await.unwrap_err();
    let address = world.registry.address();
    assert_eq!(error.to_string(), format!("there is no image {address}/x:2"));
    assert_eq!(world.registry.requests("/manifests/"), 1, "an answer is not asked for again");
    let body = ErrorBody::from(&error);
    assert_eq!(body.code, ErrorCode::Image);
    assert!(body.hint.unwrap().contains("tag"));
}

#[tokio::test]
async fn a_registry_that_is_down_is_told_at_once() {
    let world = World::new();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // The product's own limits: the waiting of retries would show.
    let store = ImageStore::new(&world.home);
    let reference = format!("{free}/x:1").parse().unwrap();
    let (events, _) = mpsc::channel(1);
    let before = Instant::now();
    let error = ensure(&store, &reference, PullPolicy::IfMissing, events).await.unwrap_err();
    assert!(matches!(error, ImageError::Refused { .. }), "{error}");
    assert!(before.elapsed() < AT_ONCE, "{:?}", before.elapsed());
    assert_eq!(error.to_string(), format!("cannot connect to {free}: connection refused"));
    assert!(error.hint().unwrap().contains("is the registry running?"));
}

#[tokio::test]
async fn a_registry_that_hiccups_is_asked_again() {
    let world = World::new();
    let built = image(&[layer_of(&[("f", b"after all")])], json!({}));
    world.registry.push("x", "1", &built);
    world.registry.fail_next("/v2/x/manifests/1", &[503, 500, 429]);
    world.registry.fail_next(&format!("/v2/x/blobs/{}", built.layers[0].digest()), &[502]);
    assert!(disk_has(&world.pull("x:1").await.unwrap(), b"after all"));
    assert_eq!(world.registry.requests("/manifests/"), 4);
}

#[tokio::test]
async fn a_registry_that_stays_broken_is_named_with_its_status() {
    let world = World::new();
    world.registry.fail_next("/v2/x/manifests/1", &[500; 20]);
    let error = world.pull("x:1").await.unwrap_err();
    let address = world.registry.address();
    let expected =
        format!("{address} answered the request for the manifest with an error: status 500: told to fail");
    assert_eq!(error.to_string(), expected);
    assert_eq!(world.registry.requests("/manifests/"), 5, "one attempt and four more");
}

#[tokio::test]
async fn a_layer_that_the_registry_lost_is_not_called_a_missing_image() {
    let world = World::new();
    let built = image(&[layer_of(&[("f", b"x")])], json!({}));
    world.registry.push("x", "1", &built);
    world.registry.remove_blob(&built.layers[0].digest());
    let error = world.pull("x:1").await.unwrap_err();
    assert!(error.to_string().contains("though the manifest names it"), "{error}");
    assert_eq!(world.blob_requests(&built.layers[0].digest()), 1);
}

#[tokio::test]
async fn a_manifest_that_is_not_what_was_asked_for_is_refused() {
    let world = World::new();
    let built = image(&[], json!({}));
    let wrong = format!("sha256:{}", "1".repeat(64));
    world.registry.push_manifest("x", &wrong, &built.media_type, built.manifest.clone());
    let error = world.pull(&format!("x@{wrong}")).await.unwrap_err();
    assert!(matches!(error, ImageError::DigestMismatch { .. }), "{error}");
}

#[tokio::test]
async fn a_home_that_cannot_be_written_is_named() {
    let world = World::new();
    world.registry.push("x", "1", &image(&[], json!({})));
    std::fs::write(world.home.root(), b"a file, not a folder").unwrap();
    let error = world.pull("x:1").await.unwrap_err();
    assert!(error.to_string().contains(&world.home.root().display().to_string()), "{error}");
    assert_eq!(ErrorBody::from(&error).code, ErrorCode::Host);
}
