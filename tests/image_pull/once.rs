//! Side by side where that helps, once where once is enough.

use iii::image::store::{ImageStore, PullPolicy};
use serde_json::json;
use tokio::sync::mpsc;

use crate::support::registry::{image, layer_of};
use crate::{World, disk_has, ensure, limits};

#[tokio::test]
async fn layers_are_fetched_side_by_side() {
    let world = World::new();
    let layers = [layer_of(&[("f", b"left")]), layer_of(&[("g", b"right")])];
    world.registry.push("x", "1", &image(&layers, json!({})));
    let gates = layers.each_ref().map(|layer| world.registry.gate(&layer.digest()));
    let both = async {
        // Neither is answered before both have been asked for.
        gates[0].arrived().await;
        gates[1].arrived().await;
        gates.iter().for_each(|gate| gate.open());
    };
    let (pulled, ()) = tokio::join!(world.pull("x:1"), both);
    let pulled = pulled.unwrap();
    assert!(disk_has(&pulled, b"left") && disk_has(&pulled, b"right"));
}

#[tokio::test]
async fn two_workers_of_one_image_pull_and_build_it_once() {
    let world = World::new();
    let built = image(&[layer_of(&[("f", b"shared")])], json!({}));
    world.registry.push("x", "1", &built);
    let gate = world.registry.gate(&built.layers[0].digest());
    // Two stores, as two daemons have; locks on files do not know processes apart from open files.
    let other = ImageStore::with_limits(&world.home, limits());
    let reference = world.reference("x:1");
    let (events, _) = mpsc::channel(1);
    let opening = async {
        gate.arrived().await;
        gate.open();
    };
    let (one, two, ()) =
        tokio::join!(world.pull("x:1"), ensure(&other, &reference, PullPolicy::IfMissing, events), opening);
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(one, two);
    assert!(disk_has(&one, b"shared"));
    assert_eq!(world.blob_requests(&built.layers[0].digest()), 1);
    let config = crate::support::registry::digest(&built.config);
    assert_eq!(world.blob_requests(&config), 1);
}

#[tokio::test]
async fn two_images_with_a_common_layer_fetch_it_once() {
    let world = World::new();
    let common = layer_of(&[("f", b"common")]);
    world.registry.push("x", "1", &image(&[common.clone(), layer_of(&[("x", b"of x")])], json!({})));
    world.registry.push("y", "1", &image(&[common.clone(), layer_of(&[("y", b"of y")])], json!({})));
    let gate = world.registry.gate(&common.digest());
    let opening = async {
        gate.arrived().await;
        gate.open();
    };
    let (x, y, ()) = tokio::join!(world.pull("x:1"), world.pull("y:1"), opening);
    let (x, y) = (x.unwrap(), y.unwrap());
    assert!(disk_has(&x, b"of x") && disk_has(&y, b"of y") && disk_has(&y, b"common"));
    assert_eq!(world.blob_requests(&common.digest()), 1);
}
