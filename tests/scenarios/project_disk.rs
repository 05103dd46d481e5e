//! The disk of a local project: as large as it is to be, and of one base image.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use iii_protocol::api::Phase;
use serde_json::json;

use super::bed::shell_layer;
use super::project::Local;
use crate::support::registry::{Packing, Tree, image, layer};

/// A file of the base image that a setup writes over, if it may.
const RELEASE: &str = "etc/base-release";

/// A base image that tells its name, by a variable and by a file.
fn push_base(local: &Local, reference: &str, name: &str) -> String {
    let tree = Tree::new().dir("etc").file(RELEASE, format!("{name}\n").as_bytes());
    let layers = [shell_layer(), layer(&tree.finish(), Packing::Gzip)];
    let config = json!({ "Env": [format!("FROM={name}")], "Cmd": ["/bin/sleep", "1000"] });
    local.bed.push(reference, &image(&layers, config))
}

fn manifest(local: &Local, base: &str, resources: &str) {
    // Long enough for everybody to see that it runs.
    let overwrites = match local.bed.is_process_tier() {
        true => String::new(),
        false => format!("; cat /{RELEASE} > seen; echo mine > /{RELEASE}"),
    };
    local.write(
        "iii.worker.yaml",
        &format!(
            "name: app\nruntime: {{kind: python, base_image: '{base}'}}\nresources: {{memory: 256, cpus: 1{resources}}}\n\
             scripts:\n  setup: echo set >> ran; sleep 0.5{overwrites}\n  install: echo installed >> ran\n  \
             start: exec sleep 1000\n"
        ),
    );
}

/// What the disk has now, and how often its scripts ran since it was looked at the last time.
struct Disk<'l> {
    local: &'l Local,
    events: usize,
}

impl Disk<'_> {
    fn assert_fresh(&mut self, name: &str) {
        let local = self.local;
        local.bed.wait_phase("app", Phase::Running);
        assert_eq!(
            local.sh("echo $FROM; cat ran greeting; test ! -e made || echo old"),
            format!("{name}\nset\ninstalled\nhello")
        );
        if !local.bed.is_process_tier() {
            assert_eq!(local.sh(&format!("cat seen /{RELEASE}")), format!("{name}\nmine\n"));
            assert_eq!(local.sh("test -e /var/of-the-old-base || echo gone"), "gone\n");
            local.sh("mkdir -p /var && touch /var/of-the-old-base");
        }
        local.sh("touch made");
        let new = self.new_events();
        let reasons: Vec<&str> = new.lines().filter_map(|line| Some(line.split_once(" runs (")?.1)).collect();
        assert!(
            reasons.len() == 2 && reasons.iter().all(|why| why.starts_with("the base image changed)")),
            "{new}"
        );
        assert!(
            new.contains("the base image changed: the project begins on a new disk, the old one is gone"),
            "{new}"
        );
    }

    fn new_events(&mut self) -> String {
        let events = self.local.events();
        events[std::mem::replace(&mut self.events, events.len())..].to_owned()
    }
}

#[test]
fn another_base_image_begins_on_a_new_disk_and_says_why() {
    let local = Local::new("  setup: ''\n  install: ''\n");
    let first = push_base(&local, "first", "first");
    manifest(&local, &first, "");
    let daemon = local.start();
    local.bed.wait_phase("app", Phase::Running);
    assert_eq!(local.sh("echo $FROM; cat ran; touch made"), "first\nset\ninstalled\n");
    let mut disk = Disk { local: &local, events: local.events().len() };

    // Another one in the manifest.
    let second = push_base(&local, "second", "second");
    manifest(&local, &second, "");
    let told = local.bed.iii(&["worker", "restart", "app"]).stderr;
    assert!(told.contains("app: booting, setup runs (the base image changed)\n"), "{told}");
    assert!(daemon.output().contains("app  setup runs (the base image changed)\n"), "{}", daemon.output());
    disk.assert_fresh("second");

    // The same name with another content, which the registry is asked for because of another worker.
    push_base(&local, "second", "third");
    local.bed.ok(&["worker", "add", &second, "--name", "other", "--force", "--no-wait"]);
    local.bed.ok(&["worker", "remove", "--yes", "other"]);
    assert_eq!(local.sh("echo $FROM; ls made"), "second\nmade\n", "what runs is left alone");
    local.restart();
    disk.assert_fresh("third");

    // Neither a start nor another daemon is a reason.
    local.restart();
    daemon.stop();
    let _daemon = local.bed.daemon();
    local.bed.wait_phase("app", Phase::Running);
    assert_eq!(local.sh("cat ran; ls made"), "set\ninstalled\nmade\n");
    assert!(!disk.new_events().contains("runs ("));
}

#[test]
fn a_base_image_that_cannot_be_had_loses_nothing() {
    let local = Local::new("  setup: ''\n  install: ''\n");
    let first = push_base(&local, "first", "first");
    manifest(&local, &first, "");
    let _daemon = local.start();
    local.bed.wait_phase("app", Phase::Running);
    local.sh("touch made");
    manifest(&local, &local.bed.registry.reference("missing:latest"), "");
    assert_eq!(local.bed.iii(&["worker", "restart", "app"]).code, Some(1));
    manifest(&local, &first, "");
    local.bed.ok(&["worker", "start", "app"]);
    local.bed.wait_phase("app", Phase::Running);
    assert_eq!(local.sh("cat ran; ls made"), "set\ninstalled\nmade\n");
}

#[test]
fn a_manifests_disk_is_made_so_large_grows_with_it_and_is_overruled_by_the_file() {
    const MIB: u64 = 1 << 20;
    let local = Local::new("  setup: ''\n  install: ''\n");
    let base = push_base(&local, "first", "first");
    manifest(&local, &base, ", disk: 128MiB");
    let _daemon = local.start();
    let path = local.bed.home().join("managed/app/scratch.ext4");
    let size = |mib: u64| {
        let status = local.bed.wait("app", "as large as that", |s| {
            s.phase == Phase::Running && s.resources.disk_bytes == mib * MIB
        });
        assert!(status.exits.iter().all(|exit| exit.requested), "{status:?}");
        assert_eq!(fs::metadata(&path).unwrap().size(), mib * MIB);
        if !local.bed.is_process_tier() {
            // In 1 KiB blocks, and less what the file system needs for itself.
            let free = local.sh("df -k / | sed -n 2p | tr -s ' ' | sed 's/ /\\n/g' | sed -n 2p");
            let shown: u64 = free.trim().parse().unwrap();
            assert!(shown > mib * 1024 * 3 / 4 && shown <= mib * 1024, "{shown} KiB of {mib} MiB");
        }
    };
    size(128);
    local.sh("touch made");
    manifest(&local, &base, ", disk: 256MiB");
    local.restart();
    size(256);
    local.configure_with("    resources: {disk: 384MiB}\n");
    size(384);
    assert_eq!(local.sh("cat ran; ls made"), "set\ninstalled\nmade\n", "what was on it is there");
}
