//! Compressions, digests, sparse and huge files.

use std::io::Write as _;
use std::os::unix::fs::FileExt as _;

use iii::image::build::{BuildError, Compression, Layer, Limits, build_root_disk};
use sha2::{Digest as _, Sha256};
use tar::Header;

use crate::disk::{Content, Disk, build, build_of, nodes_of, occupied, try_build};
use crate::tarball::{file, hard_link, item, layer};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn diff_id(tar: &[u8]) -> String {
    let hex: String = Sha256::digest(tar).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

#[test]
fn gzip_zstd_and_plain_layers_make_the_same_disk() {
    let tar = layer([file("a", vec![5; 700_000]), file("b", "small")]);
    let (first, second) = tar.split_at(100_000);
    let packed = [
        (Compression::None, tar.clone()),
        (Compression::Gzip, gzip(&tar)),
        // Of several members or frames.
        (Compression::Gzip, [gzip(first), gzip(second)].concat()),
        (Compression::Zstd, zstd::bulk::compress(&tar, 3).unwrap()),
        (Compression::Zstd, [first, second].map(|part| zstd::bulk::compress(part, 3).unwrap()).concat()),
    ];
    let plain = build(std::slice::from_ref(&tar)).bytes();
    for (compression, bytes) in packed {
        assert_eq!(Compression::from_magic(&bytes), compression);
        let mut told = Vec::new();
        let mut out = tempfile::tempfile().unwrap();
        let source = Layer { compression, diff_id: Some(diff_id(&tar)), reader: Box::new(&bytes[..]) };
        let built =
            build_root_disk([Ok(source)], &mut out, &Limits::default(), &mut |n| told.push(n)).unwrap();
        let mut disk = vec![0; built.bytes as usize];
        out.read_exact_at(&mut disk, 0).unwrap();
        assert!(disk == plain, "{compression:?}");
        assert!(told.is_sorted());
        assert_eq!(told.last(), Some(&(bytes.len() as u64)));
    }
}

#[test]
fn a_layer_that_is_not_the_named_one_is_refused() {
    let tar = layer([file("a", "1")]);
    let expected = diff_id(b"something else");
    let source =
        Layer { compression: Compression::None, diff_id: Some(expected.clone()), reader: Box::new(&tar[..]) };
    match build_of([Ok(source)], &Limits::default()).err().unwrap() {
        BuildError::WrongDigest { layer: 0, expected: told, actual } => {
            assert_eq!((told, actual), (expected, diff_id(&tar)));
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_damaged_or_misnamed_compression_is_a_read_error() {
    let mut cut = gzip(&layer([file("a", vec![3; 100_000])]));
    cut.truncate(cut.len() - 20);
    for (compression, bytes) in
        [(Compression::Gzip, cut), (Compression::Zstd, vec![1; 100]), (Compression::Gzip, vec![1; 100])]
    {
        let source = Layer { compression, diff_id: None, reader: Box::new(&bytes[..]) };
        let error = build_of([Ok(source)], &Limits::default()).err().unwrap();
        assert!(matches!(error, BuildError::Read { layer: 0, .. }), "{error}");
    }
}

#[test]
fn media_types_name_their_compression() {
    for (name, compression) in [
        ("application/vnd.oci.image.layer.v1.tar", Some(Compression::None)),
        ("application/vnd.oci.image.layer.v1.tar+gzip", Some(Compression::Gzip)),
        ("application/vnd.oci.image.layer.v1.tar+zstd", Some(Compression::Zstd)),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", Some(Compression::Gzip)),
        ("application/vnd.oci.image.config.v1+json", None),
    ] {
        assert_eq!(Compression::from_media_type(name), compression, "{name}");
    }
}

/// An entry of GNU's own sparse type with `segments` of `(offset, data)`.
fn gnu_sparse(name: &str, size: u64, segments: &[(u64, &[u8])]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.as_old_mut().linkflag = [b'S'];
    header.set_path(name).unwrap();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    let body: Vec<u8> = segments.iter().flat_map(|(_, data)| data.iter().copied()).collect();
    header.set_size(body.len() as u64);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(size);
    gnu.set_is_extended(segments.len() > 4);
    for (slot, (offset, data)) in gnu.sparse.iter_mut().zip(segments) {
        slot.set_offset(*offset);
        slot.set_length(data.len() as u64);
    }
    header.set_cksum();
    let mut out = header.as_bytes().to_vec();
    let mut rest = segments.get(4..).unwrap_or_default().chunks(21).peekable();
    while let Some(chunk) = rest.next() {
        let mut extension = tar::GnuExtSparseHeader::new();
        for (slot, (offset, data)) in extension.sparse_mut().iter_mut().zip(chunk) {
            slot.set_offset(*offset);
            slot.set_length(data.len() as u64);
        }
        extension.set_is_extended(rest.peek().is_some());
        out.extend_from_slice(extension.as_bytes());
    }
    out.extend_from_slice(&body);
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

/// What a file of `size` bytes with `segments` holds.
fn expanded(size: usize, segments: &[(u64, &[u8])]) -> Vec<u8> {
    let mut whole = vec![0; size];
    for (offset, data) in segments {
        whole[*offset as usize..][..data.len()].copy_from_slice(data);
    }
    whole
}

#[test]
fn sparse_files_of_every_kind_come_back_whole() {
    let (a, b, c) = ([1; 1000], [2; 513], [3; 7]);
    let segments: Vec<(u64, &[u8])> = vec![(0, &a), (50_000, &b), (99_993, &c)];
    let whole = expanded(100_000, &segments);
    let body = [&a[..], &b, &c].concat();
    let old = gnu_sparse("gnu", 100_000, &segments);

    let mut repeated = file("0.0", &body).pax("GNU.sparse.size", "100000").pax("GNU.sparse.numblocks", "3");
    for (offset, data) in &segments {
        repeated = repeated
            .pax("GNU.sparse.offset", offset.to_string())
            .pax("GNU.sparse.numbytes", data.len().to_string());
    }
    let list = file("GNUSparseFile.0/0.1", &body)
        .pax("GNU.sparse.size", "100000")
        .pax("GNU.sparse.name", "0.1")
        .pax("GNU.sparse.map", "0,1000,50000,513,99993,7");
    let mut with_map = b"3\n0\n1000\n50000\n513\n99993\n7\n".to_vec();
    with_map.resize(512, 0);
    with_map.extend_from_slice(&body);
    let in_body = file("GNUSparseFile.0/1.0", with_map)
        .pax("GNU.sparse.major", "1")
        .pax("GNU.sparse.minor", "0")
        .pax("GNU.sparse.name", "1.0")
        .pax("GNU.sparse.realsize", "100000");
    let nodes = nodes_of(&[[old, layer([repeated, list, in_body])].concat()]);
    assert_eq!(nodes.len(), 5);
    for name in ["gnu", "0.0", "0.1", "1.0"] {
        assert!(nodes[name.as_bytes()].content == Content::File(whole.clone()), "{name}");
    }
}

#[test]
fn a_sparse_map_of_many_blocks_is_followed() {
    let data = [9; 3];
    let segments: Vec<(u64, &[u8])> = (0..60).map(|n| (n * 5000 + 1, &data[..])).collect();
    let mut tar = gnu_sparse("s", 300_000, &segments);
    tar.extend(layer([file("after", "x")]));
    let nodes = nodes_of(&[tar]);
    assert!(nodes[&b"s"[..]].content == Content::File(expanded(300_000, &segments)));
    assert_eq!(nodes[&b"after"[..]].content, Content::File(b"x".to_vec()));
}

#[test]
fn contradictory_sparse_maps_are_refused() {
    let bad = |item: crate::tarball::Item| crate::disk::refusal([item]);
    let base = || file("f", [1; 10]).pax("GNU.sparse.size", "100");
    for map in ["0,11", "0,9", "95,10", "5,5,0,5", "18446744073709551615,10"] {
        assert!(bad(base().pax("GNU.sparse.map", map)).contains("sparse map is malformed"), "{map}");
    }
    assert!(bad(base().pax("GNU.sparse.map", "1")).contains("PAX record"));
    assert!(bad(base().pax("GNU.sparse.major", "2")).contains("version is unknown"));
    assert!(bad(base().pax("GNU.sparse.major", "1")).contains("longer than the body"));
    let endless = [b"99999999999\n".to_vec(), b"1\n".repeat(2000)].concat();
    assert!(
        bad(file("f", endless).pax("GNU.sparse.major", "1").pax("GNU.sparse.realsize", "9"))
            .contains("malformed")
    );
}

#[test]
fn a_file_beyond_4_gib_is_whole_and_occupies_only_its_data() {
    let size = 5 << 30;
    let (start, end) = ([b's'; 8192], [b'e'; 5000]);
    let mut tar = gnu_sparse("huge", size, &[(0, &start), (size - 5000, &end)]);
    tar.extend(layer([file("after", vec![b'x'; 10_000])]));
    let disk = try_build(&[tar], &Limits::default()).unwrap();
    assert!(disk.built.bytes > size);
    assert!(occupied(disk.file.path()) < 1 << 20);
    let fs = disk.open();
    let huge = fs.open("/huge").unwrap();
    assert_eq!(huge.size(), size);
    let mut piece = [0; 6000];
    for (at, expected) in [(0, b's'), (8192, 0), (size / 2, 0), (size - 5000, b'e')] {
        let n = huge.read_at(&mut piece, at).unwrap();
        assert!(n > 0 && piece[..n.min(4000)].iter().all(|&b| b == expected), "{at}");
    }
    assert_eq!(fs.open("/after").unwrap().size(), 10_000);
}

#[test]
fn zeros_and_bodies_that_later_layers_removed_occupy_nothing() {
    let dead = vec![0xdd; 3 << 20];
    let lower = layer([
        file("zeros", vec![0; 4 << 20]),
        file("replaced", &dead),
        file("removed", &dead),
        file("linked", vec![1; 8192]),
        hard_link("name", "linked"),
    ]);
    let upper = layer([file("replaced", "new"), file(".wh.removed", ""), file(".wh.linked", "")]);
    let disk = build(&[lower, upper]);
    assert!(occupied(disk.file.path()) < 256 << 10, "{}", occupied(disk.file.path()));
    assert!(!disk.bytes().contains(&0xdd));
    assert_eq!(disk.nodes()[&b"name"[..]].content, Content::File(vec![1; 8192]));
    assert_eq!(disk.nodes()[&b"zeros"[..]].content, Content::File(vec![0; 4 << 20]));
}

#[test]
fn small_files_share_blocks_until_the_memory_for_it_is_spent() {
    let items = || (0..400).map(|n| file(format!("f{n}"), vec![n as u8; 100]));
    let packed = build(&[layer(items())]);
    assert!(packed.built.bytes < 25 * 4096, "{}", packed.built.bytes);
    let limits = Limits { inline_bytes: 1000, ..Limits::default() };
    let spread: Disk = try_build(&[layer(items())], &limits).unwrap();
    spread.fsck();
    assert!(spread.built.bytes > 390 * 4096);
    let contents =
        |disk: &Disk| disk.nodes().into_iter().map(|(path, node)| (path, node.content)).collect::<Vec<_>>();
    assert_eq!(contents(&packed), contents(&spread));
}

#[test]
fn what_the_kernel_and_other_readers_expect_of_a_superblock_is_there() {
    let disk = build(&[layer([file("a", "1"), item(b'6', "fifo")])]).bytes();
    let word = |at: usize| u32::from_le_bytes(disk[at..at + 4].try_into().unwrap());
    assert_eq!(word(1024), 0xe0f5_e1e2);
    assert_eq!(disk[1024 + 12], 12);
    assert_eq!(word(1024 + 36) as usize * 4096, disk.len());
}
