//! A mirror is asked in the place of a registry, and what happens when it has nothing or does not answer.

use std::net::TcpListener;

use iii::image::error::ImageError;
use iii::image::reference::Reference;
use iii::image::store::{PullPolicy, RegistrySettings};
use iii::image::types::Image;
use iii_protocol::api::{ErrorBody, ErrorCode};
use serde_json::json;
use tokio::sync::mpsc;

use crate::support::registry::{Registry, image, layer_of};
use crate::{PATIENCE, World, disk_has};

async fn pull(world: &World, reference: &str, mirror: (&str, &str)) -> Result<Image, ImageError> {
    let mirrors = [(mirror.0.to_owned(), mirror.1.to_owned())].into();
    let settings = RegistrySettings { mirrors, ..RegistrySettings::default() };
    let reference: Reference = reference.parse().unwrap();
    let (events, _) = mpsc::channel(1);
    let ensured = world.store.ensure(&reference, PullPolicy::Always, &settings, events);
    tokio::time::timeout(PATIENCE, ensured).await.expect("the pull hangs")
}

#[tokio::test]
async fn a_mirror_gives_the_images_of_its_registry_under_their_own_names() {
    let world = World::new();
    world.registry.require_token();
    let built = image(&[layer_of(&[("f", b"from the mirror")])], json!({}));
    let digest = world.registry.push("library/redis", "7", &built);
    for name in ["docker.io", "index.docker.io"] {
        let mirror = (name, &*world.registry.address());
        assert!(disk_has(&pull(&world, "redis:7", mirror).await.unwrap(), b"from the mirror"));
    }
    pull(&world, &format!("redis@{digest}"), ("docker.io", &world.registry.address())).await.unwrap();
    let known = |reference: &str| world.store.lookup(&reference.parse().unwrap()).unwrap().is_some();
    assert!(known("docker.io/library/redis:7"));
    assert!(!known(&world.registry.reference("library/redis:7")), "the mirror's name is not the image's");
}

#[tokio::test]
async fn an_image_that_the_mirror_lacks_comes_from_its_registry() {
    let world = World::new();
    let mirror = Registry::start();
    let built = image(&[layer_of(&[("f", b"the original")])], json!({}));
    world.registry.push("x", "1", &built);
    let own = world.registry.address();
    let pulled = pull(&world, &world.registry.reference("x:1"), (&own, &mirror.address())).await.unwrap();
    assert!(disk_has(&pulled, b"the original"));
    assert_eq!(mirror.requests("/v2/x/manifests/1"), 1, "the mirror was asked first");
    assert_eq!(mirror.requests("/blobs/"), 0, "layers come from where the manifest came from");
}

#[tokio::test]
async fn when_both_fail_both_are_told() {
    let world = World::new();
    let mirror = Registry::start();
    let own = world.registry.address();
    let reference = world.registry.reference("x:1");
    let error = pull(&world, &reference, (&own, &mirror.address())).await.unwrap_err();
    let expected = format!(
        "the mirror {} has no {reference}, and {own} itself fails: there is no image {reference}",
        mirror.address()
    );
    assert_eq!(error.to_string(), expected);
    assert!(error.hint().unwrap().contains("tag"), "{error:?}");

    world.registry.fail_next("/v2/x/manifests/1", &[500; 20]);
    let error = pull(&world, &reference, (&own, &mirror.address())).await.unwrap_err();
    assert!(error.to_string().contains("status 500"), "{error}");
}

#[tokio::test]
async fn a_mirror_that_is_down_is_told_and_not_gone_round() {
    let world = World::new();
    world.registry.push("x", "1", &image(&[], json!({})));
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let own = world.registry.address();
    let error = pull(&world, &world.registry.reference("x:1"), (&own, &free)).await.unwrap_err();
    let expected = format!("the mirror of {own} fails: cannot connect to {free}: connection refused");
    assert_eq!(error.to_string(), expected);
    let body = ErrorBody::from(&error);
    assert_eq!(body.code, ErrorCode::Image);
    assert!(body.hint.unwrap().ends_with("the mirror is named under `registries:` in config.yaml"));
    assert_eq!(world.registry.requests("/v2/"), 0);
}

#[tokio::test]
async fn registries_without_a_mirror_are_asked_themselves() {
    let world = World::new();
    world.registry.push("x", "1", &image(&[], json!({})));
    pull(&world, &world.registry.reference("x:1"), ("docker.io", "localhost:1")).await.unwrap();
}
