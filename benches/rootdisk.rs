//! Building a root disk beside `umoci unpack` of the same image, in one run. `make bench` prints the table.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use iii::image::build::{Compression, Layer, Limits, build_root_disk};
use serde_json::json;
use sha2::{Digest as _, Sha256};

/// Folders of this machine that make up the image: many small files and some large ones.
const CONTENT: [&str; 3] = ["usr/share", "usr/lib/x86_64-linux-gnu", "usr/bin"];
/// Bytes of tar after which nothing more is packed, so that every machine measures about the same.
const MAX_TAR_BYTES: u64 = 400 * 1024 * 1024;
/// Repetitions; the fastest counts, as what else the machine did then counts least.
const ROUNDS: usize = 3;

fn main() {
    let dir = tempfile::tempdir().expect("a folder");
    let tar = dir.path().join("layer.tar");
    pack(&tar);
    let tar_bytes = fs::metadata(&tar).expect("the tar").len();
    println!("one layer of {} MiB, {} entries", tar_bytes >> 20, count(&tar));
    for (name, compression, command) in
        [("plain tar", Compression::None, None), ("gzip", Compression::Gzip, Some("gzip -1 -n -c"))]
    {
        let blob = dir.path().join(format!("blob.{}", name.replace(' ', "-")));
        match command {
            None => drop(fs::hard_link(&tar, &blob)),
            Some(command) => shell(&format!("{command} {} > {}", tar.display(), blob.display())),
        }
        let layout = dir.path().join(format!("layout-{}", name.replace(' ', "-")));
        write_layout(&layout, &blob, &tar, command.is_some());
        let ours = fastest(|| build(&blob, compression, dir.path()));
        let theirs = fastest(|| unpack(&layout, dir.path()));
        let speed = |took: Duration| (tar_bytes >> 20) as f64 / took.as_secs_f64();
        let ratio = speed(ours) / speed(theirs);
        let verdict = if ratio >= 3.0 { "met" } else { "MISSED" };
        println!(
            "{name:<10} build {:>5.0} MiB/s   umoci unpack {:>5.0} MiB/s   {ratio:.1} x   aim >= 3 x: {verdict}",
            speed(ours),
            speed(theirs)
        );
    }
}

fn fastest(mut run: impl FnMut() -> Duration) -> Duration {
    (0..ROUNDS).map(|_| run()).min().expect("at least one round")
}

fn shell(command: &str) {
    let status = Command::new("sh").args(["-c", command]).status().expect("a shell");
    assert!(status.success(), "{command}");
}

fn pack(tar: &Path) {
    let whole = Command::new("tar")
        .args(["--sort=name", "--format=posix", "--one-file-system", "-C", "/", "-cf"])
        .arg(tar)
        .args(CONTENT)
        .stderr(Stdio::null())
        .status()
        .expect("tar");
    assert!(whole.code().is_some(), "tar was killed");
    let file = File::options().write(true).open(tar).expect("the tar");
    if file.metadata().expect("the tar").len() > MAX_TAR_BYTES {
        cut(tar, &file);
    }
}

/// Ends the tar after the last entry that is whole within the limit.
fn cut(tar: &Path, file: &File) {
    let mut archive = tar::Archive::new(File::open(tar).expect("the tar"));
    let end = archive
        .entries_with_seek()
        .expect("entries")
        .map_while(Result::ok)
        // Where its body ends: the headers of the next one, of which there may be several, begin there.
        .map(|entry| entry.raw_file_position() + entry.size().next_multiple_of(512))
        .take_while(|end| *end <= MAX_TAR_BYTES)
        .last()
        .expect("an entry");
    file.set_len(end).expect("cut");
    file.set_len(end + 1024).expect("two empty blocks end a tar");
}

fn count(tar: &Path) -> usize {
    let mut archive = tar::Archive::new(File::open(tar).expect("the tar"));
    archive.entries_with_seek().expect("entries").count()
}

fn build(blob: &Path, compression: Compression, dir: &Path) -> Duration {
    let mut out = tempfile::tempfile_in(dir).expect("a file");
    let began = Instant::now();
    let reader = Box::new(File::open(blob).expect("the blob"));
    let layer = Layer { compression, diff_id: None, reader };
    build_root_disk([Ok(layer)], &mut out, &Limits::default(), &mut |_| {}).expect("a root disk");
    began.elapsed()
}

fn unpack(layout: &Path, dir: &Path) -> Duration {
    let target = dir.join("unpacked");
    let began = Instant::now();
    let output = Command::new("umoci")
        .args(["raw", "unpack", "--image"])
        .arg(format!("{}:latest", layout.display()))
        .arg(&target)
        .output()
        .expect("umoci: run scripts/setup");
    let took = began.elapsed();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::remove_dir_all(&target).expect("removed");
    took
}

fn hash(path: &Path) -> String {
    let mut hasher = Sha256::new();
    std::io::copy(&mut File::open(path).expect("a file"), &mut hasher).expect("read");
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn write_layout(layout: &Path, blob: &Path, tar: &Path, gzip: bool) {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("a folder");
    let layer = hash(blob);
    fs::hard_link(blob, blobs.join(&layer)).expect("the layer");
    let put = |value: serde_json::Value| -> (String, usize) {
        let text = value.to_string();
        let name: String = Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(blobs.join(&name), &text).expect("a blob");
        (name, text.len())
    };
    let (config, config_bytes) = put(json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", hash(tar))] },
    }));
    let media = if gzip {
        "application/vnd.oci.image.layer.v1.tar+gzip"
    } else {
        "application/vnd.oci.image.layer.v1.tar"
    };
    let (manifest, manifest_bytes) = put(json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": format!("sha256:{config}"), "size": config_bytes },
        "layers": [{ "mediaType": media, "digest": format!("sha256:{layer}"), "size": fs::metadata(blob).expect("the blob").len() }],
    }));
    let index = json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": format!("sha256:{manifest}"),
        "size": manifest_bytes, "annotations": { "org.opencontainers.image.ref.name": "latest" },
    }] });
    fs::write(layout.join("index.json"), index.to_string()).expect("the index");
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("the layout");
}
