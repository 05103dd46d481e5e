//! Building disks and reading them back.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::ops::{Bound, RangeBounds};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Output};

use erofs_rs::EroFS;
use erofs_rs::backend::Image;
use erofs_rs::types::Inode;
use iii::image::build::{BuildError, Compression, Layer, Limits, RootDisk, build_root_disk};
use tempfile::NamedTempFile;

/// An inode as it is found under one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// Type and permissions.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) links: u32,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) content: Content,
    /// Which inode; equal for hard links.
    pub(crate) inode: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Device(u32, u32),
    /// Of a folder or a fifo.
    Nothing,
}

/// All that a disk has, by path from the root (which is empty).
pub(crate) type Nodes = BTreeMap<Vec<u8>, Node>;

/// A finished disk.
pub(crate) struct Disk {
    pub(crate) file: NamedTempFile,
    pub(crate) built: RootDisk,
}

impl Disk {
    pub(crate) fn nodes(&self) -> Nodes {
        let nodes = nodes_in(&self.open());
        assert_eq!(
            nodes.values().map(|node| node.inode).collect::<std::collections::BTreeSet<_>>().len() as u64,
            self.built.entries
        );
        nodes
    }

    pub(crate) fn open(&self) -> EroFS<FileImage> {
        open(self.file.path())
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        fs::read(self.file.path()).unwrap()
    }

    pub(crate) fn fsck(&self) {
        fsck(self.file.path());
    }
}

/// A disk, through the independent reader.
pub(crate) fn open(path: &Path) -> EroFS<FileImage> {
    EroFS::new(FileImage(File::open(path).unwrap())).unwrap()
}

/// All that it finds there.
pub(crate) fn nodes_in(fs: &EroFS<FileImage>) -> Nodes {
    let root = fs.get_inode(fs.super_block().root_inode_id()).unwrap();
    let mut nodes = Nodes::from([(Vec::new(), node(fs, root))]);
    for entry in fs.walk_dir("/").unwrap() {
        let entry = entry.unwrap();
        let path = entry.dir_entry.path().as_bytes()[1..].to_vec();
        assert!(nodes.insert(path, node(fs, entry.inode)).is_none(), "one name twice");
    }
    nodes
}

/// Has `fsck.erofs` check it.
pub(crate) fn fsck(path: &Path) {
    let output = run("fsck.erofs", Command::new("fsck.erofs").arg(path));
    assert!(output.status.success(), "{}", text(&output));
}

fn node(fs: &EroFS<FileImage>, inode: Inode) -> Node {
    let content = if inode.is_file() {
        let mut bytes = Vec::new();
        fs.open_inode_file(inode).unwrap().read_to_end(&mut bytes).unwrap();
        Content::File(bytes)
    } else if inode.is_symlink() {
        Content::Symlink(fs.read_link_inode(inode).unwrap().as_bytes().to_vec())
    } else if let Some((major, minor)) = inode.device() {
        Content::Device(major, minor)
    } else {
        Content::Nothing
    };
    use std::os::unix::fs::PermissionsExt as _;
    Node {
        mode: inode.file_type().as_raw_mode() | inode.permissions().mode() & 0o7777,
        uid: inode.uid(),
        gid: inode.gid(),
        mtime: inode.modified_unix(),
        links: inode.nlink(),
        xattrs: fs.xattrs_inode(inode).unwrap(),
        content,
        inode: inode.id(),
    }
}

/// A disk read piece by piece. Pieces live as long as the test: they are few, and there is no other safe way
/// to hand them out.
pub(crate) struct FileImage(File);

impl Image for FileImage {
    fn get<R: RangeBounds<u64>>(&self, range: R) -> Option<&[u8]> {
        let start = match range.start_bound() {
            Bound::Included(&start) => start,
            Bound::Excluded(&start) => start + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(&end) => end + 1,
            Bound::Excluded(&end) => end,
            Bound::Unbounded => self.len(),
        };
        let mut bytes = vec![0; usize::try_from(end.checked_sub(start)?).ok()?];
        self.0.read_exact_at(&mut bytes, start).ok()?;
        Some(bytes.leak())
    }

    fn len(&self) -> u64 {
        self.0.metadata().unwrap().len()
    }
}

/// Builds a disk of plain tar streams, checks it and that a second time gives the same bytes.
pub(crate) fn build(layers: &[Vec<u8>]) -> Disk {
    let disk = try_build(layers, &Limits::default()).unwrap();
    disk.fsck();
    let again = try_build(layers, &Limits::default()).unwrap();
    assert!(disk.bytes() == again.bytes(), "the same layers gave two different disks");
    disk
}

/// What `build` gives, as nodes.
pub(crate) fn nodes_of(layers: &[Vec<u8>]) -> Nodes {
    build(layers).nodes()
}

/// Why a disk of one layer cannot be built.
pub(crate) fn refusal(items: impl IntoIterator<Item = crate::tarball::Item>) -> String {
    try_build(&[crate::tarball::layer(items)], &Limits::default()).err().unwrap().to_string()
}

pub(crate) fn try_build(layers: &[Vec<u8>], limits: &Limits) -> Result<Disk, BuildError> {
    let layers = layers.iter().map(|bytes| {
        Ok(Layer { compression: Compression::None, diff_id: None, reader: Box::new(&bytes[..]) })
    });
    build_of(layers, limits)
}

pub(crate) fn build_of<'a>(
    layers: impl IntoIterator<Item = std::io::Result<Layer<'a>>>,
    limits: &Limits,
) -> Result<Disk, BuildError> {
    let mut file = NamedTempFile::new().unwrap();
    let built = build_root_disk(layers, file.as_file_mut(), limits, &mut |_| ())?;
    assert_eq!(built.bytes, file.as_file().metadata().unwrap().len());
    Ok(Disk { file, built })
}

/// Runs a tool that the tests cannot do without.
pub(crate) fn run(tool: &str, command: &mut Command) -> Output {
    match command.output() {
        Ok(output) => output,
        Err(error) => panic!("{tool} does not run ({error}); install what the tests need with scripts/setup"),
    }
}

pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Bytes a file occupies on its disk.
pub(crate) fn occupied(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(path).unwrap().blocks() * 512
}
