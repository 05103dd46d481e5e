//! Images for tests: tar streams, packed layers, configs, manifests and indexes.

use std::io::Write as _;

use serde_json::{Value, json};

use super::digest;

const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// How a layer is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    /// As it is.
    Plain,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// A tar stream in the making.
pub(crate) struct Tree {
    tar: tar::Builder<Vec<u8>>,
}

impl Default for Tree {
    fn default() -> Tree {
        Tree::new()
    }
}

impl Tree {
    /// Nothing in it yet.
    pub(crate) fn new() -> Tree {
        Tree { tar: tar::Builder::new(Vec::new()) }
    }

    /// Adds a folder of root's, mode 0755.
    pub(crate) fn dir(self, path: &str) -> Tree {
        self.entry(tar::EntryType::Directory, path, 0o755, b"")
    }

    /// Adds a file of root's, mode 0644.
    pub(crate) fn file(self, path: &str, body: &[u8]) -> Tree {
        self.entry(tar::EntryType::Regular, path, 0o644, body)
    }

    /// Adds a program of root's, mode 0755.
    pub(crate) fn program(self, path: &str, body: &[u8]) -> Tree {
        self.entry(tar::EntryType::Regular, path, 0o755, body)
    }

    /// Adds a symbolic link.
    pub(crate) fn symlink(mut self, path: &str, target: &str) -> Tree {
        let mut header = header(tar::EntryType::Symlink, 0o777, 0);
        self.tar.append_link(&mut header, path, target).expect("tar in memory");
        self
    }

    /// Adds an entry of root's of any kind.
    pub(crate) fn entry(mut self, kind: tar::EntryType, path: &str, mode: u32, body: &[u8]) -> Tree {
        let mut header = header(kind, mode, body.len() as u64);
        self.tar.append_data(&mut header, path, body).expect("tar in memory");
        self
    }

    /// The tar stream.
    pub(crate) fn finish(self) -> Vec<u8> {
        self.tar.into_inner().expect("tar in memory")
    }
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_size(size);
    header
}

/// One layer, packed.
#[derive(Debug, Clone)]
pub(crate) struct TestLayer {
    /// The media type that its descriptor shows.
    pub(crate) media_type: String,
    /// The bytes as a registry holds them.
    pub(crate) blob: Vec<u8>,
    /// `sha256:...` of the tar stream.
    pub(crate) diff_id: String,
}

impl TestLayer {
    /// `sha256:...` of the blob.
    pub(crate) fn digest(&self) -> String {
        digest(&self.blob)
    }
}

/// Packs a tar stream, with OCI media types.
pub(crate) fn layer(tar: &[u8], packing: Packing) -> TestLayer {
    let (suffix, blob) = match packing {
        Packing::Plain => ("", tar.to_vec()),
        Packing::Gzip => {
            let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packer.write_all(tar).expect("gzip in memory");
            ("+gzip", packer.finish().expect("gzip in memory"))
        }
        Packing::Zstd => ("+zstd", zstd::encode_all(tar, 1).expect("zstd in memory")),
    };
    TestLayer {
        media_type: format!("application/vnd.oci.image.layer.v1.tar{suffix}"),
        blob,
        diff_id: digest(tar),
    }
}

/// A gzip layer of a few files.
pub(crate) fn layer_of(files: &[(&str, &[u8])]) -> TestLayer {
    let tree = files.iter().fold(Tree::new(), |tree, (path, body)| tree.file(path, body));
    layer(&tree.finish(), Packing::Gzip)
}

/// An image as a registry holds it.
#[derive(Debug, Clone)]
pub(crate) struct TestImage {
    /// The manifest's media type.
    pub(crate) media_type: String,
    /// The manifest's bytes.
    pub(crate) manifest: Vec<u8>,
    /// The config's bytes.
    pub(crate) config: Vec<u8>,
    /// Bottom first.
    pub(crate) layers: Vec<TestLayer>,
}

/// The OCI name of this machine's architecture.
pub(crate) fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The media type of OCI image manifests.
pub(crate) fn manifest_media_type() -> &'static str {
    OCI_MANIFEST
}

/// An image for this machine. `config` is what goes into the config blob's `config`: `Cmd`, `Env`...
pub(crate) fn image(layers: &[TestLayer], config: Value) -> TestImage {
    image_for(host_architecture(), layers, config)
}

/// An image for another architecture.
pub(crate) fn image_for(architecture: &str, layers: &[TestLayer], config: Value) -> TestImage {
    let config = json!({
        "os": "linux",
        "architecture": architecture,
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|l| &l.diff_id).collect::<Vec<_>>()},
    });
    let config = serde_json::to_vec(&config).expect("JSON in memory");
    let descriptors: Vec<Value> = layers
        .iter()
        .map(|layer| json!({"mediaType": layer.media_type, "digest": layer.digest(), "size": layer.blob.len()}))
        .collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": digest(&config), "size": config.len()},
        "layers": descriptors,
    });
    TestImage {
        media_type: OCI_MANIFEST.to_owned(),
        manifest: serde_json::to_vec(&manifest).expect("JSON in memory"),
        config,
        layers: layers.to_vec(),
    }
}

/// The same image as Docker's older tools push it (image manifest version 2, schema 2).
pub(crate) fn docker_media_types(image: &TestImage) -> TestImage {
    let docker = |text: &str| {
        text.replace(OCI_MANIFEST, "application/vnd.docker.distribution.manifest.v2+json")
            .replace(OCI_CONFIG, "application/vnd.docker.container.image.v1+json")
            .replace(
                "application/vnd.oci.image.layer.v1.tar+gzip",
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
            )
    };
    let manifest = docker(std::str::from_utf8(&image.manifest).expect("JSON is text"));
    TestImage { media_type: docker(OCI_MANIFEST), manifest: manifest.into_bytes(), ..image.clone() }
}

/// An index over images: its media type and bytes.
pub(crate) fn index(images: &[(&str, &TestImage)]) -> (String, Vec<u8>) {
    let manifests: Vec<Value> = images
        .iter()
        .map(|(platform, image)| {
            let mut parts = platform.split('/');
            let mut described = json!({"os": parts.next(), "architecture": parts.next()});
            if let Some(variant) = parts.next() {
                described["variant"] = variant.into();
            }
            json!({
                "mediaType": image.media_type,
                "digest": digest(&image.manifest),
                "size": image.manifest.len(),
                "platform": described,
            })
        })
        .collect();
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
    (OCI_INDEX.to_owned(), serde_json::to_vec(&index).expect("JSON in memory"))
}
