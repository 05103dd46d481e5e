//! The same layers through umoci, an unpacker of the OCI's own: both trees must be alike.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::disk::{Content, Nodes, build, run, text};
use crate::tarball::{file, folder, hard_link, item, layer, symlink};

/// What both sides can say about a path.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    owner: Option<(u32, u32)>,
    /// Not of folders unless asked for: umoci does not set a folder's time back when it makes a missing
    /// folder in it.
    mtime: Option<(i64, u32)>,
    links: Option<u32>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    content: Content,
}

fn blob(layout: &Path, bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(layout.join("blobs/sha256").join(&hex), bytes).unwrap();
    format!("sha256:{hex}")
}

/// Writes an OCI image layout with one image, `layout:latest`.
fn write_layout(layout: &Path, layers: &[Vec<u8>]) {
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let digests: Vec<String> = layers.iter().map(|tar| blob(layout, tar)).collect();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": digests},
    })
    .to_string();
    let described: Vec<_> = layers
        .iter()
        .zip(&digests)
        .map(|(tar, digest)| {
            json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": tar.len()})
        })
        .collect();
    let manifest = json!({
        "schemaVersion": 2,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": blob(layout, config.as_bytes()),
            "size": config.len(),
        },
        "layers": described,
    })
    .to_string();
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": blob(layout, manifest.as_bytes()),
            "size": manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": "latest"},
        }],
    });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// What umoci makes of the layers.
fn unpacked(layers: &[Vec<u8>], timed: impl Fn(&[u8]) -> bool) -> BTreeMap<Vec<u8>, Seen> {
    let dir = tempfile::tempdir().unwrap();
    write_layout(&dir.path().join("layout"), layers);
    let rootfs = dir.path().join("rootfs");
    let mut command = Command::new("umoci");
    command.args(["raw", "unpack", "--image"]).arg(dir.path().join("layout:latest"));
    if !is_root() {
        command.arg("--rootless");
    }
    let output = run("umoci", command.arg(&rootfs));
    assert!(output.status.success(), "{}", text(&output));
    let mut seen = BTreeMap::new();
    walk(&rootfs, &rootfs, &timed, &mut seen);
    seen
}

fn walk(root: &Path, folder: &Path, timed: &impl Fn(&[u8]) -> bool, seen: &mut BTreeMap<Vec<u8>, Seen>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let meta = path.symlink_metadata().unwrap();
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        let content = if meta.is_file() {
            Content::File(fs::read(&path).unwrap())
        } else if meta.is_symlink() {
            Content::Symlink(fs::read_link(&path).unwrap().into_os_string().into_vec())
        } else if meta.mode() & 0o170_000 == 0o020_000 {
            let device = meta.rdev();
            Content::Device(nix::sys::stat::major(device) as u32, nix::sys::stat::minor(device) as u32)
        } else {
            Content::Nothing
        };
        let xattrs = xattr::list(&path)
            .unwrap()
            .filter(|name| name != "user.rootlesscontainers")
            .map(|name| (name.as_bytes().to_vec(), xattr::get(&path, &name).unwrap().unwrap()))
            .collect();
        let told = Seen {
            mode: meta.mode(),
            owner: is_root().then_some((meta.uid(), meta.gid())),
            mtime: timed(&name).then_some((meta.mtime(), meta.mtime_nsec() as u32)),
            // How a folder counts is the host file system's own matter.
            links: (!meta.is_dir()).then_some(meta.nlink() as u32),
            xattrs,
            content,
        };
        seen.insert(name, told);
        if meta.is_dir() {
            walk(root, &path, timed, seen);
        }
    }
}

/// What the root disk says in the same words.
fn ours(nodes: &Nodes, timed: impl Fn(&[u8]) -> bool) -> BTreeMap<Vec<u8>, Seen> {
    nodes
        .iter()
        .filter(|(path, _)| !path.is_empty())
        .map(|(path, node)| {
            let seen = Seen {
                mode: node.mode,
                owner: is_root().then_some((node.uid, node.gid)),
                mtime: timed(path).then_some(node.mtime),
                links: (node.mode & 0o170_000 != 0o040_000).then_some(node.links),
                xattrs: node.xattrs.clone(),
                content: node.content.clone(),
            };
            (path.clone(), seen)
        })
        .collect()
}

/// Compares path by path; the times of those folders, too, that `timed_folders` names.
fn assert_alike(layers: &[Vec<u8>], timed_folders: &[&str]) {
    let nodes = build(layers).nodes();
    let timed = |path: &[u8]| {
        timed_folders.iter().any(|folder| folder.as_bytes() == path)
            || nodes.get(path).is_some_and(|node| node.mode & 0o170_000 != 0o040_000)
    };
    let (ours, theirs) = (ours(&nodes, timed), unpacked(layers, timed));
    for path in ours.keys().chain(theirs.keys()) {
        assert_eq!(ours.get(path), theirs.get(path), "{}: ours, umoci's", path.escape_ascii());
    }
}

#[test]
fn an_image_like_a_distribution_is_the_same_as_unpacked_by_umoci() {
    let base = layer([
        folder("usr").mtime(11),
        folder("usr/bin").mtime(12),
        symlink("bin", "usr/bin"),
        folder("tmp").mode(0o1777),
        folder("etc").mode(0o750).owner(0, 42),
        file("etc/passwd", "root:x:0:0::/:/bin/sh\n"),
        file("etc/shadow", "secret").mode(0o640).owner(0, 42),
        file("usr/bin/busybox", vec![0x7f; 300_000]).mode(0o755),
        hard_link("usr/bin/sh", "usr/bin/busybox"),
        file("usr/bin/su", "su").mode(0o4755),
        folder("var/cache").mtime(13),
        file("var/cache/a", "1"),
        file("var/cache/deep/b", "2"),
        file(b"caf\xe9", "latin-1"),
        file("lib.so", vec![0; 70_000]),
    ]);
    let mut special = vec![
        item(b'6', "run/pipe").mode(0o600),
        file("var/cache/.wh.a", ""),
        file("etc/.wh.shadow", ""),
        file("bin/new", "through the link"),
        hard_link("usr/bin/ash", "usr/bin/busybox"),
        file("etc/passwd", "app:x:1000:1000::/:/bin/sh\n").xattr("user.note", [b'\n', 0, 255]),
        file("tmp2/x", "").pax("mtime", "1234567890.123456789"),
    ];
    if is_root() {
        special.push(item(b'3', "dev/null").device(1, 3).mode(0o666));
        special.push(
            file("usr/bin/ping", "p").xattr(
                "security.capability",
                [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            ),
        );
    }
    let last = layer([
        folder("var/cache"),
        file("var/cache/.wh..wh..opq", ""),
        file("var/cache/fresh", "3"),
        folder("lib.so"),
        file("usr/bin/su", "not setuid any more").mode(0o755),
    ]);
    assert_alike(&[base, layer(special), last], &["usr", "usr/bin", "tmp", "etc", "var/cache", "lib.so"]);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24,
        max_shrink_iters: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_stack_of_layers_is_the_same_as_unpacked_by_umoci(layers in crate::model::layers()) {
        assert_alike(&crate::model::tars_with_whiteouts_first(&layers), &[]);
    }
}
