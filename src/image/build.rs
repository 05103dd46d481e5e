//! From an image's layers to its root disk: one read-only EROFS file, without unpacking anything.
//!
//! A layer streams through four stages: its bytes are decompressed (and checked against the layer's
//! `diff_id`) on a thread of their own; `iii_archive::read` cuts the tar stream into entries; `layer` applies
//! each entry to the tree in memory, by the rules of the OCI image spec (`layer.md`), while the bodies of
//! files go straight to their final place in the disk; and when all layers are in, `erofs` writes inodes and
//! folders behind the bodies. The same layers give the same bytes: nothing depends on a clock, on the host
//! or on chance.
//!
//! What a hostile layer can reach is this tree and nothing else: no host path is ever made from a name. What
//! it can cost is bounded by [`Limits`].

mod error;

use std::fs::File;
use std::io::{self, Read};
use std::thread;

use iii_archive::read::Archive;

pub use self::error::{BuildError, EntryPath, LimitHit, Problem};
use super::erofs::{self, DataWriter};
use super::layer::stream::LayerStream;
use super::layer::{self, Fault, Usage};
use super::tree::{Kind, Tree};

/// How a layer's tar stream is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// A plain tar stream.
    None,
    /// gzip, also of several members (as pigz and eStargz write it).
    Gzip,
    /// Zstandard, also of several frames.
    Zstd,
}

impl Compression {
    /// What a layer's media type says (OCI image-spec `layer.md`, Docker image manifest v2.2); `None` for a
    /// type that is no layer or unknown.
    pub fn from_media_type(media_type: &str) -> Option<Compression> {
        match media_type {
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar" => Some(Compression::None),
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Some(Compression::Gzip),
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Some(Compression::Zstd),
            _ => None,
        }
    }

    /// What the first bytes of a layer say (RFC 1952; RFC 8878, also its skippable frames). Anything else is
    /// taken for a plain tar stream, whose own checksums then tell.
    pub fn from_magic(start: &[u8]) -> Compression {
        match start {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            _ => Compression::None,
        }
    }
}

/// One layer, ready to be read once.
pub struct Layer<'a> {
    /// How `reader`'s bytes are packed.
    pub compression: Compression,
    /// `sha256:<hex>` of the unpacked tar stream, as the image config's `rootfs.diff_ids` names it; checked
    /// when given. No other algorithm is known here.
    pub diff_id: Option<String>,
    /// The bytes as pulled.
    pub reader: Box<dyn Read + Send + 'a>,
}

impl std::fmt::Debug for Layer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Layer")
            .field("compression", &self.compression)
            .field("diff_id", &self.diff_id)
            .finish_non_exhaustive()
    }
}

/// How much an image may ask of the host that builds its root disk.
///
/// The defaults leave real images far behind; an image that meets one of them is refused with
/// [`BuildError::Limit`], which names the limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Number of layers.
    pub layers: usize,
    /// Bytes of all layers together after decompression.
    pub uncompressed_bytes: u64,
    /// How many times larger than its compressed bytes a layer may become, once the image as a whole has
    /// passed `expansion_free_bytes`: what makes a decompression bomb worth its name.
    pub expansion_ratio: u64,
    /// Decompressed bytes of the whole image below which `expansion_ratio` is not looked at: small layers
    /// of zeros pack very well and harm nobody.
    pub expansion_free_bytes: u64,
    /// Length of the finished disk in bytes, holes included.
    pub disk_bytes: u64,
    /// Size of one file in bytes, holes included.
    pub file_bytes: u64,
    /// Entries of all layers together, and folders made because an entry needed them.
    pub entries: u64,
    /// Character and block devices of all layers together. A machine mounts its disks `nodev`, so they open
    /// nothing; the limit keeps an image from being made of them.
    pub device_nodes: u64,
    /// Folders above an entry, symbolic links on its way followed.
    pub path_depth: u16,
    /// Steps that symbolic links add to the ways to entries, all layers together: looking them up takes time.
    pub link_steps: u64,
    /// Bytes of one name in a path; the format and Linux end at 255.
    pub name_bytes: usize,
    /// Bytes of names, link targets and extended attributes of all layers together: they are kept in memory.
    pub metadata_bytes: u64,
    /// Bytes of one entry's extension headers (PAX records, GNU long names, sparse maps).
    pub header_bytes: u64,
    /// Bytes of small files and of the ends of larger ones that are kept in memory to be packed beside their
    /// inodes. Past it the image is not refused: such ends get blocks of their own.
    pub inline_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        const MIB: u64 = 1 << 20;
        const GIB: u64 = 1 << 30;
        Limits {
            layers: 512,
            uncompressed_bytes: 64 * GIB,
            expansion_ratio: 200,
            expansion_free_bytes: GIB,
            disk_bytes: 256 * GIB,
            file_bytes: 128 * GIB,
            entries: 2_000_000,
            device_nodes: 4096,
            path_depth: 512,
            link_steps: 50_000_000,
            name_bytes: 255,
            metadata_bytes: 256 * MIB,
            header_bytes: MIB,
            inline_bytes: 64 * MIB,
        }
    }
}

/// Where an image says what it wants of its machine.
const WORKER_MANIFEST: [&[u8]; 2] = [b"iii", b"worker.yaml"];
/// Largest such file that is looked at, bytes.
const MAX_WORKER_MANIFEST_BYTES: u64 = 64 * 1024;

/// A finished root disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootDisk {
    /// Length of the file, a whole number of 4096-byte blocks; it occupies less where it has holes.
    pub bytes: u64,
    /// Files, folders and other inodes in it.
    pub entries: u64,
    /// What is in its `/iii/worker.yaml`, if that is a regular file of at most 64 KiB.
    pub worker_manifest: Option<Vec<u8>>,
}

/// Applies `layers`, bottom first, and writes the root disk they make to `out`.
///
/// `out` is a file of the caller's, open for reading and writing, whose content is replaced; making the result
/// durable and giving it its name is the caller's, as is removing it after an error. `progress` is told, as
/// it grows, how many bytes of all layers together have been read as pulled.
///
/// An error of the iterator is reported like one of the layer's reader, so that layers can be opened as they
/// are needed. Blocks the calling thread: not for async code.
pub fn build_root_disk<'a>(
    layers: impl IntoIterator<Item = Result<Layer<'a>, io::Error>>,
    out: &mut File,
    limits: &Limits,
    progress: &mut dyn FnMut(u64),
) -> Result<RootDisk, BuildError> {
    out.set_len(0).map_err(|source| BuildError::Write { source })?;
    let mut usage = Usage::new(limits);
    let mut tree = Tree::new(limits);
    let mut data = DataWriter::new(out, limits);
    let mut last = 0;
    for (index, layer) in layers.into_iter().enumerate() {
        let layer = layer.map_err(|source| BuildError::Read { layer: index, source })?;
        if index >= limits.layers {
            return Err(BuildError::Limit {
                layer: index,
                entry: None,
                hit: LimitHit { limit: "layers", at_most: limits.layers as u64 },
            });
        }
        last = index;
        tree.begin_layer(index as u32);
        apply_layer(index, layer, &mut tree, &mut data, &mut usage, progress)?;
    }
    let disk = erofs::finish(&tree, data).map_err(|fault| BuildError::new(last, Vec::new(), fault))?;
    Ok(RootDisk { worker_manifest: worker_manifest(&mut tree, out)?, ..disk })
}

/// The manifest as the layers together have it. An image owes us none, so anything else in its place is as good as
/// nothing; only a disk that does not give back what was written is an error.
fn worker_manifest(tree: &mut Tree, disk: &File) -> Result<Option<Vec<u8>>, BuildError> {
    let Ok(inode) = tree.link_target(&WORKER_MANIFEST) else { return Ok(None) };
    match &tree.inode(inode).kind {
        Kind::File(body) if body.size <= MAX_WORKER_MANIFEST_BYTES => {
            body.read(disk).map(Some).map_err(|source| BuildError::Write { source })
        }
        _ => Ok(None),
    }
}

/// Streams one layer into the tree and checks that it was the right one.
fn apply_layer(
    index: usize,
    layer: Layer<'_>,
    tree: &mut Tree,
    data: &mut DataWriter<'_>,
    usage: &mut Usage<'_>,
    progress: &mut dyn FnMut(u64),
) -> Result<(), BuildError> {
    let expected = layer.diff_id.clone();
    let digest = thread::scope(|scope| {
        let stream = LayerStream::spawn(scope, layer, usage, progress);
        let mut archive = Archive::new(stream);
        let result = layer::apply(&mut archive, tree, data);
        let place = archive.place().to_vec();
        match result {
            Ok(()) => Ok(archive.into_source().finish()),
            Err(fault) => Err(BuildError::new(index, place, fault)),
        }
    })?;
    match (expected, digest) {
        (Some(expected), Some(actual)) if expected != actual => {
            Err(BuildError::WrongDigest { layer: index, expected, actual })
        }
        _ => Ok(()),
    }
}

impl BuildError {
    /// Says where a fault was met; an empty `place` means between two entries.
    fn new(layer: usize, place: Vec<u8>, fault: Fault) -> BuildError {
        let entry = (!place.is_empty()).then_some(EntryPath(place));
        match fault {
            Fault::Read(source) => BuildError::Read { layer, source },
            Fault::Write(source) => BuildError::Write { source },
            Fault::Problem(problem) => BuildError::Refused { layer, entry, problem },
            Fault::Limit(hit) => BuildError::Limit { layer, entry, hit },
        }
    }
}
