//! What a registry may hold: packings, media types, indexes, tokens.

use iii::image::error::ImageError;
use iii::image::store::PullPolicy;
use iii_protocol::api::PullEvent;
use serde_json::json;
use tokio::sync::mpsc;

use crate::support::registry::{
    Packing, Tree, digest, docker_media_types, host_architecture, image, image_for, layer, layer_of,
    manifest_media_type, noise,
};
use crate::{World, disk_has, ensure};

#[tokio::test]
async fn gzip_zstd_and_plain_layers_make_one_disk() {
    let world = World::new();
    let layers = [
        layer(&Tree::new().dir("a").file("a/plain", b"in a plain layer").finish(), Packing::Plain),
        layer(&Tree::new().file("a/gzip", b"in a gzip layer").finish(), Packing::Gzip),
        layer(&Tree::new().file("a/zstd", b"in a zstd layer").finish(), Packing::Zstd),
    ];
    let config = json!({"Entrypoint": ["/a/plain"], "Cmd": null, "Env": ["A=b"], "WorkingDir": "/a",
                        "User": "1:2", "StopSignal": "SIGQUIT", "Labels": null});
    world.registry.push("org/worker", "1.0", &image(&layers, config));

    let pulled = world.pull("org/worker:1.0").await.unwrap();
    for body in ["in a plain layer", "in a gzip layer", "in a zstd layer"] {
        assert!(disk_has(&pulled, body.as_bytes()), "{body}");
    }
    assert_eq!(pulled.config.entrypoint, ["/a/plain"]);
    assert!(pulled.config.cmd.is_empty());
    assert_eq!(pulled.config.env, ["A=b"]);
    assert_eq!((pulled.config.working_dir.as_str(), pulled.config.user.as_str()), ("/a", "1:2"));
    assert_eq!(pulled.config.stop_signal, "SIGQUIT");
}

#[tokio::test]
async fn images_with_docker_media_types_are_images() {
    let world = World::new();
    let built = docker_media_types(&image(&[layer_of(&[("f", b"from docker")])], json!({})));
    world.registry.push("x", "1", &built);
    assert!(disk_has(&world.pull("x:1").await.unwrap(), b"from docker"));
}

#[tokio::test]
async fn an_image_without_layers_is_an_image() {
    let world = World::new();
    world.registry.push("scratch", "1", &image(&[], json!({"Cmd": ["/x"]})));
    let pulled = world.pull("scratch:1").await.unwrap();
    assert!(pulled.root_disk.exists());
}

#[tokio::test]
async fn one_layer_may_be_used_twice() {
    let world = World::new();
    let twice = layer_of(&[("f", b"twice")]);
    world.registry.push(
        "x",
        "1",
        &image(&[twice.clone(), layer_of(&[("g", b"once")]), twice.clone()], json!({})),
    );
    assert!(disk_has(&world.pull("x:1").await.unwrap(), b"twice"));
    assert_eq!(world.blob_requests(&twice.digest()), 1);
}

#[tokio::test]
async fn an_index_gives_the_image_for_this_machine() {
    let world = World::new();
    let ours = image(&[layer_of(&[("f", b"for this machine")])], json!({}));
    let other = image_for("s390x", &[layer_of(&[("f", b"for another")])], json!({}));
    let platform = format!("linux/{}", host_architecture());
    let index = world.registry.push_index("x", "1", &[("linux/s390x", &other), (&platform, &ours)]);
    let pulled = world.pull("x:1").await.unwrap();
    assert!(disk_has(&pulled, b"for this machine"));

    let by_digest = world.pull(&format!("x@{index}")).await.unwrap();
    assert_eq!(by_digest.digest, pulled.digest, "the digest of an index names the same image");
}

#[tokio::test]
async fn an_image_for_other_machines_only_is_refused_with_what_there_is() {
    let world = World::new();
    let other = image_for("s390x", &[layer_of(&[("f", b"x")])], json!({}));
    world.registry.push_index("x", "1", &[("linux/s390x", &other), ("unknown/unknown", &other)]);
    let error = world.pull("x:1").await.unwrap_err().to_string();
    let expected = format!("x:1 has no image for linux/{}; it has linux/s390x", host_architecture());
    assert!(error.ends_with(&expected), "{error}");

    world.registry.push("single", "1", &other);
    let error = world.pull("single:1").await.unwrap_err().to_string();
    assert!(error.ends_with("it has linux/s390x"), "{error}");
    assert_eq!(world.blob_requests(&other.layers[0].digest()), 0, "nothing was downloaded for it");
}

#[tokio::test]
async fn a_registry_with_tokens_gives_us_one() {
    let world = World::new();
    world.registry.require_token();
    let layers = [layer_of(&[("f", b"one")]), layer_of(&[("g", b"two")])];
    world.registry.push("x", "1", &image(&layers, json!({})));
    assert!(disk_has(&world.pull("x:1").await.unwrap(), b"two"));
    assert_eq!(world.registry.tokens_issued(), 1, "one token serves a whole pull");
}

#[tokio::test]
async fn a_token_that_runs_out_on_the_way_is_replaced() {
    let world = World::new();
    world.registry.require_token();
    let built = image(&[layer_of(&[("f", b"with a new token")])], json!({}));
    world.registry.push("x", "1", &built);
    let gate = world.registry.gate(&digest(&built.config));
    let revoking = async {
        gate.arrived().await;
        world.registry.revoke_tokens();
        gate.open();
    };
    let (pulled, ()) = tokio::join!(world.pull("x:1"), revoking);
    assert!(disk_has(&pulled.unwrap(), b"with a new token"));
    assert_eq!(world.registry.tokens_issued(), 2);
}

#[tokio::test]
async fn a_private_repository_is_told_from_a_missing_one() {
    let world = World::new();
    world.registry.refuse_tokens();
    let error = world.pull("x:1").await.unwrap_err();
    assert!(matches!(error, ImageError::Unauthorized { .. }), "{error}");
    assert!(error.hint().unwrap().contains("without credentials"));
    assert_eq!(world.registry.requests("/token"), 1, "a refusal is not asked again");
}

#[tokio::test]
async fn a_known_image_is_found_without_the_registry() {
    let world = World::new();
    let first = image(&[layer_of(&[("f", b"first")])], json!({}));
    let digest = world.registry.push("x", "1", &first);
    assert_eq!(world.store.lookup(&world.reference("x:1")).unwrap(), None);
    let pulled = world.pull("x:1").await.unwrap();
    assert_eq!(pulled.digest, digest);

    let asked = world.registry.requests("/");
    assert_eq!(world.store.lookup(&world.reference("x:1")).unwrap(), Some(pulled.clone()));
    assert_eq!(world.store.lookup(&world.reference(&format!("x@{digest}"))).unwrap(), Some(pulled.clone()));
    assert_eq!(world.pull("x:1").await.unwrap(), pulled);
    assert_eq!(world.registry.requests("/"), asked, "nobody was asked");

    // The tag moves on: only `Always` notices.
    world.registry.push("x", "1", &image(&[layer_of(&[("f", b"second")])], json!({})));
    assert_eq!(world.pull("x:1").await.unwrap(), pulled);
    let newer = world.ensure("x:1", PullPolicy::Always).await.unwrap();
    assert!(disk_has(&newer, b"second"));
    assert_eq!(world.store.lookup(&world.reference("x:1")).unwrap(), Some(newer));
}

#[tokio::test]
async fn asking_again_fetches_nothing_that_is_here() {
    let world = World::new();
    let built = image(&[layer_of(&[("f", b"x")])], json!({}));
    world.registry.push("x", "1", &built);
    let pulled = world.pull("x:1").await.unwrap();
    assert_eq!(world.ensure("x:1", PullPolicy::Always).await.unwrap(), pulled);
    assert_eq!(world.blob_requests(&built.layers[0].digest()), 1);

    // Another image with the same layer fetches only what is new.
    let shared = image(&[built.layers[0].clone(), layer_of(&[("g", b"new")])], json!({}));
    world.registry.push("y", "1", &shared);
    assert!(disk_has(&world.pull("y:1").await.unwrap(), b"new"));
    assert_eq!(world.blob_requests(&built.layers[0].digest()), 1);
}

#[tokio::test]
async fn a_disk_that_is_gone_is_built_again_without_downloads() {
    let world = World::new();
    let built = image(&[layer_of(&[("f", b"again")])], json!({}));
    world.registry.push("x", "1", &built);
    let pulled = world.pull("x:1").await.unwrap();
    std::fs::remove_file(&pulled.root_disk).unwrap();
    assert_eq!(world.store.lookup(&world.reference("x:1")).unwrap(), None);
    assert_eq!(world.pull("x:1").await.unwrap(), pulled);
    assert!(disk_has(&pulled, b"again"));
    assert_eq!(world.blob_requests(&built.layers[0].digest()), 1);
}

#[tokio::test]
async fn progress_tells_the_digest_the_bytes_and_the_build() {
    let world = World::new();
    let big = layer(&Tree::new().file("big", &noise(1 << 20, 1)).finish(), Packing::Gzip);
    let digest = world.registry.push("x", "1", &image(std::slice::from_ref(&big), json!({})));
    let (sender, mut receiver) = mpsc::channel(1000);
    // On another task, as the daemon does it.
    let (store, reference) = (world.store.clone(), world.reference("x:1"));
    let pulling =
        tokio::spawn(async move { ensure(&store, &reference, PullPolicy::IfMissing, sender).await });
    let mut events = Vec::new();
    while let Some(event) = receiver.recv().await {
        events.push(event);
    }
    pulling.await.unwrap().unwrap();
    let total = big.blob.len() as u64;
    assert_eq!(events[0], PullEvent::Resolved { digest, layers: 1, total_bytes: total });
    let done: Vec<u64> = events
        .iter()
        .filter_map(|event| match event {
            PullEvent::Layer { digest, done_bytes, total_bytes, cached: false } => {
                assert_eq!((digest, *total_bytes), (&big.digest(), total));
                Some(*done_bytes)
            }
            _ => None,
        })
        .collect();
    assert!(done.is_sorted() && done.len() >= 3 && done.len() <= 7, "{done:?}");
    assert_eq!(done.last(), Some(&total));
}

#[tokio::test]
async fn what_is_not_an_image_is_named() {
    let world = World::new();
    let chart = json!({
        "schemaVersion": 2,
        "mediaType": manifest_media_type(),
        "config": {"mediaType": "application/vnd.cncf.helm.config.v1+json", "size": 2,
                   "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"},
        "layers": [],
    });
    world.registry.push_manifest("chart", "1", manifest_media_type(), chart.to_string().into_bytes());
    let error = world.pull("chart:1").await.unwrap_err().to_string();
    assert!(
        error.ends_with("is not a container image but application/vnd.cncf.helm.config.v1+json"),
        "{error}"
    );

    let mut odd = layer_of(&[("f", b"x")]);
    odd.media_type = "application/vnd.in-toto+json".to_owned();
    world.registry.push("odd", "1", &image(&[odd], json!({})));
    let error = world.pull("odd:1").await.unwrap_err().to_string();
    assert!(error.ends_with("has a layer of the unsupported type application/vnd.in-toto+json"), "{error}");
}
