//! Connections that break, processes that die, blobs that are wrong.

use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use iii::fsutil::LockFile;
use iii::image::error::ImageError;
use iii::image::store::{PullPolicy, TransferLimits};
use iii_protocol::api::PullEvent;
use serde_json::json;
use tokio::sync::mpsc;

use crate::support::registry::{Packing, TestLayer, Tree, image, layer, layer_of, noise};
use crate::{World, disk_has, ensure, limits, names};

const MIB: usize = 1024 * 1024;
const HALF: u64 = 512 * 1024;

/// A layer of about two MiB whose blob is as long as its tar.
fn big_layer() -> TestLayer {
    layer(&Tree::new().file("big", &noise(2 * MIB, 7)).file("end", b"the last file").finish(), Packing::Plain)
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_broke() {
    let world = World::new();
    let big = big_layer();
    world.registry.push("x", "1", &image(std::slice::from_ref(&big), json!({})));
    world.registry.break_after(&big.digest(), &[MIB, MIB / 2, 100]);
    assert!(disk_has(&world.pull("x:1").await.unwrap(), b"the last file"));
    assert_eq!(world.blob_requests(&big.digest()), 4);
    assert_eq!(
        world.registry.bytes_served(&big.digest()),
        big.blob.len() as u64,
        "no byte was fetched twice"
    );
}

#[tokio::test]
async fn a_registry_that_cannot_resume_is_asked_from_the_start() {
    let world = World::new();
    let big = big_layer();
    world.registry.push("x", "1", &image(std::slice::from_ref(&big), json!({})));
    world.registry.ignore_range();
    world.registry.break_after(&big.digest(), &[MIB]);
    assert!(disk_has(&world.pull("x:1").await.unwrap(), b"the last file"));
    assert_eq!(world.registry.bytes_served(&big.digest()), (MIB + big.blob.len()) as u64);
}

#[tokio::test]
async fn a_download_that_always_breaks_is_given_up_and_its_bytes_are_kept() {
    let world = World::new();
    let big = big_layer();
    world.registry.push("x", "1", &image(std::slice::from_ref(&big), json!({})));
    world.registry.break_after(&big.digest(), &[1000; 5]);
    let error = world.pull("x:1").await.unwrap_err();
    assert!(matches!(error, ImageError::Interrupted { .. }), "{error}");
    assert_eq!(world.blob_requests(&big.digest()), 5, "one attempt and four more");
    assert_eq!(std::fs::metadata(world.partial(&big.digest())).unwrap().len(), 5000);

    assert!(disk_has(&world.pull("x:1").await.unwrap(), b"the last file"));
    assert_eq!(world.registry.bytes_served(&big.digest()), big.blob.len() as u64);
    assert!(!world.partial(&big.digest()).exists());
}

#[tokio::test]
async fn a_silent_connection_is_left_and_taken_up_again() {
    let world = World::with_limits(TransferLimits { stall_timeout: Duration::from_secs(1), ..limits() });
    let big = big_layer();
    world.registry.push("x", "1", &image(std::slice::from_ref(&big), json!({})));
    // Never opened: each connection falls silent after a MiB.
    let _gate = world.registry.gate_after(&big.digest(), MIB);
    assert!(disk_has(&world.pull("x:1").await.unwrap(), b"the last file"));
    assert_eq!(world.registry.offsets(&big.digest()), [0, MIB, 2 * MIB]);
}

#[tokio::test]
async fn what_a_killed_process_had_is_not_fetched_again() {
    let world = World::new();
    let big = big_layer();
    world.registry.push("x", "1", &image(std::slice::from_ref(&big), json!({})));
    std::fs::create_dir_all(world.home.blobs()).unwrap();
    std::fs::write(world.partial(&big.digest()), &big.blob[..MIB]).unwrap();
    assert!(disk_has(&world.pull("x:1").await.unwrap(), b"the last file"));
    assert_eq!(world.registry.bytes_served(&big.digest()), (big.blob.len() - MIB) as u64);
}

#[tokio::test]
async fn a_finished_but_unpublished_blob_needs_no_request() {
    let world = World::new();
    let big = big_layer();
    world.registry.push("x", "1", &image(std::slice::from_ref(&big), json!({})));
    std::fs::create_dir_all(world.home.blobs()).unwrap();
    std::fs::write(world.partial(&big.digest()), &big.blob).unwrap();
    assert!(disk_has(&world.pull("x:1").await.unwrap(), b"the last file"));
    assert_eq!(world.blob_requests(&big.digest()), 0);
}

#[tokio::test]
async fn garbage_in_a_partial_file_costs_one_full_download() {
    let world = World::new();
    let big = big_layer();
    world.registry.push("x", "1", &image(std::slice::from_ref(&big), json!({})));
    std::fs::create_dir_all(world.home.blobs()).unwrap();
    for garbage in [MIB, big.blob.len(), 3 * MIB] {
        std::fs::write(world.partial(&big.digest()), vec![b'x'; garbage]).unwrap();
        assert!(disk_has(&world.pull("x:1").await.unwrap(), b"the last file"), "{garbage}");
        std::fs::remove_dir_all(world.home.images()).unwrap();
        std::fs::remove_file(world.blob(&big.digest())).unwrap();
    }
}

#[tokio::test]
async fn an_abandoned_pull_leaves_what_it_has_for_the_next_one() {
    let world = World::new();
    let big = big_layer();
    world.registry.push("x", "1", &image(std::slice::from_ref(&big), json!({})));
    let gate = world.registry.gate_after(&big.digest(), MIB);
    let (sender, mut events) = mpsc::channel(1000);
    {
        let reference = world.reference("x:1");
        let pulling = ensure(&world.store, &reference, PullPolicy::IfMissing, sender);
        let half = async {
            while let Some(event) = events.recv().await {
                if matches!(event, PullEvent::Layer { done_bytes, .. } if done_bytes >= HALF) {
                    break;
                }
            }
        };
        tokio::select! {
            ended = pulling => panic!("{ended:?}"),
            () = half => {}
        }
    }
    gate.open();
    assert!(disk_has(&world.pull("x:1").await.unwrap(), b"the last file"));
    let offsets = world.registry.offsets(&big.digest());
    assert!(offsets.len() == 2 && offsets[1] as u64 >= HALF, "{offsets:?}");
    assert!(names(&world.home.images()).iter().all(|name| !name.ends_with(".tmp")));
}

#[tokio::test]
async fn a_corrupt_layer_is_refused_and_not_kept() {
    let world = World::new();
    let big = big_layer();
    world.registry.push("x", "1", &image(std::slice::from_ref(&big), json!({})));
    let mut corrupt = big.blob.clone();
    corrupt[MIB] ^= 1;
    world.registry.replace_blob(&big.digest(), Some(corrupt));
    let error = world.pull("x:1").await.unwrap_err();
    assert!(matches!(error, ImageError::DigestMismatch { .. }), "{error}");
    assert_eq!(world.blob_requests(&big.digest()), 1);
    assert!(!world.blob(&big.digest()).exists() && !world.partial(&big.digest()).exists());
    assert_eq!(world.store.lookup(&world.reference("x:1")).unwrap(), None);

    world.registry.replace_blob(&big.digest(), None);
    assert!(disk_has(&world.pull("x:1").await.unwrap(), b"the last file"));
}

#[tokio::test]
async fn a_layer_longer_than_announced_is_refused_at_once() {
    let world = World::new();
    let big = big_layer();
    world.registry.push("x", "1", &image(std::slice::from_ref(&big), json!({})));
    let longer = [big.blob.as_slice(), &[0; 10 * MIB]].concat();
    world.registry.replace_blob(&big.digest(), Some(longer));
    let error = world.pull("x:1").await.unwrap_err();
    assert!(matches!(error, ImageError::TooLong { .. }), "{error}");
    assert_eq!(world.blob_requests(&big.digest()), 1);
}

#[tokio::test]
async fn a_layer_shorter_than_announced_is_refused() {
    let world = World::new();
    let big = big_layer();
    world.registry.push("x", "1", &image(std::slice::from_ref(&big), json!({})));
    world.registry.replace_blob(&big.digest(), Some(big.blob[..MIB].to_vec()));
    world.pull("x:1").await.unwrap_err();
    assert!(!world.blob(&big.digest()).exists());
}

#[tokio::test]
async fn a_layer_damaged_on_this_disk_is_fetched_again() {
    let world = World::new();
    let built = image(&[layer_of(&[("f", b"good again")]), layer_of(&[("g", b"other")])], json!({}));
    world.registry.push("x", "1", &built);
    let pulled = world.pull("x:1").await.unwrap();
    let damaged = built.layers[0].digest();
    let mut bytes = std::fs::read(world.blob(&damaged)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    std::fs::write(world.blob(&damaged), bytes).unwrap();
    std::fs::remove_file(&pulled.root_disk).unwrap();

    assert!(disk_has(&world.pull("x:1").await.unwrap(), b"good again"));
    assert_eq!(world.blob_requests(&damaged), 2);
    assert_eq!(world.blob_requests(&built.layers[1].digest()), 1);
}

/// Zeroes the head of a root disk; what it was.
fn damage(disk: &Path) -> Vec<u8> {
    let good = std::fs::read(disk).unwrap();
    std::fs::set_permissions(disk, std::fs::Permissions::from_mode(0o600)).unwrap();
    let file = std::fs::File::options().write(true).open(disk).unwrap();
    file.write_all_at(&[0; 4096], 0).unwrap();
    good
}

#[tokio::test]
async fn a_root_disk_that_was_damaged_is_built_again_by_a_forced_pull() {
    let world = World::new();
    let built = image(&[layer_of(&[("f", b"good again")])], json!({}));
    world.registry.push("x", "1", &built);
    let pulled = world.pull("x:1").await.unwrap();
    let good = damage(&pulled.root_disk);
    let of_a_machine = std::fs::File::open(&pulled.root_disk).unwrap();
    // Nothing is looked at without need: that would make each start wait.
    assert_eq!(world.pull("x:1").await.unwrap(), pulled);
    assert_ne!(std::fs::read(&pulled.root_disk).unwrap(), good);

    let (events, mut seen) = mpsc::channel(64);
    let again = ensure(&world.store, &world.reference("x:1"), PullPolicy::Always, events).await.unwrap();
    assert_eq!(again, pulled);
    assert_eq!(std::fs::read(&pulled.root_disk).unwrap(), good);
    assert!(matches!(seen.recv().await, Some(PullEvent::Resolved { .. })));
    assert!(matches!(seen.recv().await, Some(PullEvent::Checking { done_bytes: 0, .. })));
    // The layers were here; and a machine that runs keeps the file that it has.
    assert_eq!(world.blob_requests(&built.layers[0].digest()), 1);
    let mut head = [1; 4096];
    of_a_machine.read_exact_at(&mut head, 0).unwrap();
    assert_eq!(head, [0; 4096]);

    // One that is well is not written again.
    let before = std::fs::metadata(&pulled.root_disk).unwrap().ino();
    world.ensure("x:1", PullPolicy::Always).await.unwrap();
    assert_eq!(std::fs::metadata(&pulled.root_disk).unwrap().ino(), before);
}

#[tokio::test]
async fn an_image_whose_root_disk_was_damaged_is_forgotten_when_it_is_looked_at() {
    let world = World::new();
    let built = image(&[layer_of(&[("f", b"good again")])], json!({}));
    world.registry.push("x", "1", &built);
    let reference = world.reference("x:1");
    assert!(!world.store.forget_if_damaged(&reference).await.unwrap(), "it is not here");
    let pulled = world.pull("x:1").await.unwrap();
    assert!(!world.store.forget_if_damaged(&reference).await.unwrap(), "it is well");
    let good = damage(&pulled.root_disk);
    std::fs::remove_file(world.blob(&built.layers[0].digest())).unwrap();
    assert!(world.store.forget_if_damaged(&reference).await.unwrap());
    assert_eq!(world.store.lookup(&reference).unwrap(), None);
    assert!(pulled.root_disk.exists(), "machines run from it");
    assert!(!world.store.forget_if_damaged(&reference).await.unwrap(), "it is forgotten already");
    assert_eq!(world.pull("x:1").await.unwrap(), pulled);
    assert_eq!(std::fs::read(&pulled.root_disk).unwrap(), good);
    assert_eq!(world.blob_requests(&built.layers[0].digest()), 2);
}

#[tokio::test]
async fn an_image_that_is_wrong_in_itself_is_refused_without_downloading_it_twice() {
    let world = World::new();
    let mut lying = layer_of(&[("f", b"x")]);
    lying.diff_id = format!("sha256:{}", "0".repeat(64));
    world.registry.push("x", "1", &image(std::slice::from_ref(&lying), json!({})));
    let error = world.pull("x:1").await.unwrap_err();
    assert!(matches!(error, ImageError::Build { .. }), "{error}");
    assert_eq!(world.blob_requests(&lying.digest()), 1);
    assert!(names(&world.home.images()).iter().all(|name| name.ends_with(".lock") || name == "refs"));
}

#[tokio::test]
async fn what_dead_processes_left_half_written_is_cleared_away() {
    let world = World::new();
    let digest = world.registry.push("x", "1", &image(&[layer_of(&[("f", b"whole")])], json!({})));
    let images = world.home.images();
    std::fs::create_dir_all(images.join("refs")).unwrap();
    let own = &digest["sha256:".len()..];
    let (other, busy) = ("0".repeat(64), "1".repeat(64));
    let _held = LockFile::try_acquire(&images.join(format!("{busy}.lock"))).unwrap();
    let half = |hex: &str| {
        [images.join(format!("{hex}.erofs.tmp")), images.join(format!(".tmp-{hex}-Ab12cd"))]
            .map(|path| std::fs::write(&path, b"half").map(|()| path).unwrap())
    };
    let reference = images.join("refs").join(".tmp-Ab12cd");
    std::fs::write(&reference, b"half").unwrap();
    let left = [half(own), half(&other)].concat();
    let being_written = half(&busy);

    let pulled = world.pull("x:1").await.unwrap();
    assert!(disk_has(&pulled, b"whole"));
    for path in left.iter().chain([&reference]) {
        assert!(!path.exists(), "{}", path.display());
    }
    for path in &being_written {
        assert!(path.exists(), "{}", path.display());
    }
}

#[tokio::test]
async fn a_disk_without_its_record_or_of_an_older_builder_is_built_anew() {
    let world = World::new();
    let digest = world.registry.push("x", "1", &image(&[layer_of(&[("f", b"anew")])], json!({})));
    let pulled = world.pull("x:1").await.unwrap();
    let record = world.home.images().join(format!("{}.json", &digest["sha256:".len()..]));
    let text = std::fs::read_to_string(&record).unwrap();
    for stale in [
        text.replace("\"builder\": 1", "\"builder\": 0"),
        text.replace("\"version\": 3", "\"version\": 2"),
        "{".into(),
    ] {
        assert_ne!(stale, text);
        std::fs::write(&record, stale).unwrap();
        std::fs::write(&pulled.root_disk, vec![0; pulled.root_disk_bytes as usize]).unwrap();
        assert_eq!(world.store.lookup(&world.reference("x:1")).unwrap(), None);
        assert!(disk_has(&world.pull("x:1").await.unwrap(), b"anew"));
    }
}

#[tokio::test]
async fn a_slow_reader_of_progress_does_not_slow_the_pull() {
    let world = World::new();
    let big = big_layer();
    world.registry.push("x", "1", &image(std::slice::from_ref(&big), json!({})));
    let (sender, receiver) = mpsc::channel(1);
    ensure(&world.store, &world.reference("x:1"), PullPolicy::IfMissing, sender).await.unwrap();
    drop(receiver);
}
