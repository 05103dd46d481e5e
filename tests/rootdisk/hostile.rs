//! Layers that want more than a root disk, or are broken.

use std::io::{self, Read};

use iii::image::build::{BuildError, Compression, Layer, LimitHit, Limits, build_root_disk};

use crate::disk::{build_of, refusal, try_build};
use crate::tarball::{Item, file, folder, hard_link, item, layer, raw, record, symlink};

#[test]
fn names_that_climb_are_refused() {
    for name in ["../evil", "a/../../evil", "..", "a/..", "/../x"] {
        assert_eq!(
            refusal([file(name, "x")]),
            format!("layer 1, entry `{name}`: a name in a layer must not contain `..`")
        );
    }
}

#[test]
fn absolute_names_are_taken_from_the_root_of_the_disk() {
    let nodes = crate::disk::nodes_of(&[layer([file("/etc/passwd", "x"), file("//b", "y")])]);
    assert_eq!(nodes.len(), 4);
}

#[test]
fn hard_links_reach_only_what_is_in_the_disk() {
    assert_eq!(
        refusal([hard_link("a", "/etc/passwd")]),
        "layer 1, entry `a`: it is a hard link to `/etc/passwd`, which does not exist"
    );
    assert!(refusal([hard_link("a", "../../etc/passwd")]).contains("must not contain `..`"));
    assert!(
        refusal([symlink("etc", "/etc"), hard_link("a", "etc/passwd")]).contains("too many symbolic links")
    );
    assert!(refusal([folder("d"), hard_link("a", "d")]).contains("hard link to the folder `d`"));
    assert!(refusal([hard_link("a", "/")]).contains("hard link to the folder"));
}

#[test]
fn symbolic_links_in_a_circle_are_refused() {
    let items = [symlink("a", "b"), symlink("b", "a"), file("a/x", "1")];
    assert_eq!(refusal(items), "layer 1, entry `a/x`: too many symbolic links on its way");
}

#[test]
fn nul_bytes_are_refused_and_control_characters_shown_harmlessly() {
    assert!(refusal([file("x", "").pax("path", "a\0b")]).contains("must not contain a NUL byte"));
    assert!(refusal([symlink("x", "").pax("linkpath", "a\0b")]).contains("must not contain a NUL byte"));
    assert!(refusal([file("\x1b[2J/..", "")]).starts_with(r"layer 1, entry `\u{1b}[2J/..`"));
}

#[test]
fn a_file_cannot_be_used_as_a_folder() {
    assert_eq!(
        refusal([file("a", "1"), file("a/b", "2")]),
        "layer 1, entry `a/b`: `a` is on its way but is not a folder"
    );
    assert!(refusal([file("/", "1")]).contains("the root must be a folder"));
    assert!(refusal([symlink("./", "x")]).contains("the root must be a folder"));
}

#[test]
fn malformed_whiteouts_and_names_are_refused() {
    for name in [".wh.", ".wh..", "a/.wh...", ".wh.x/y"] {
        assert!(refusal([file(name, "")]).contains("kept for whiteouts"), "{name}");
    }
    assert!(refusal([file("", "")]).contains("the name is empty"));
    assert!(refusal([file([b'n'; 256], "")]).contains("name_bytes"));
    assert!(refusal([symlink("a", "")]).contains("target of 0 bytes"));
    assert!(refusal([symlink("a", [b't'; 4096])]).contains("target of 4096 bytes"));
}

#[test]
fn entries_that_no_disk_can_hold_are_refused() {
    assert!(refusal([item(b'V', "volume")]).contains("entries of type `V` are not supported"));
    assert!(refusal([file("a", "").owner(1 << 32, 0)]).contains("4294967296 is not a valid id"));
    assert!(refusal([file("a", "").pax("gid", "4294967295")]).contains("not a valid id"));
    assert!(refusal([item(b'3', "a").device(4096, 0)]).contains("device number 4096:0"));
    assert!(refusal([file("a", "").xattr("user.x", vec![0; 65_536])]).contains("`user.x` is too long"));
    let many = (0..5).fold(file("a", ""), |item, n| item.xattr(&format!("user.{n}"), vec![0; 60_000]));
    assert!(refusal([many]).contains("together are too long"));
}

#[test]
fn damaged_archives_are_refused() {
    let whole = layer([file("a", vec![1; 2000])]);
    let bad = |bytes: &[u8]| try_build(&[bytes.to_vec()], &Limits::default()).err().unwrap().to_string();
    for cut in [1, 511, 513, 2000, 2512] {
        assert!(bad(&whole[..cut]).contains("ends too early"), "{cut}");
    }
    let mut flipped = whole.clone();
    flipped[3] ^= 1;
    assert!(bad(&flipped).contains("checksum"));
    assert!(bad(&[&[0; 512], &whole[..]].concat()).contains("half an end marker"));
    assert!(bad(&[b'x'; 4096]).contains("not a valid tar stream"));
    // An entry is announced, but does not come.
    let mut out = Vec::new();
    raw(&mut out, b'x', b"p", &record("path", b"a"));
    assert!(bad(&[&out[..], &[0; 1024]].concat()).contains("ends too early"));
    raw(&mut out, b'x', b"p", &record("path", b"b"));
    assert!(bad(&out).contains("two extension headers"));
    out.clear();
    raw(&mut out, b'x', b"p", b"garbage");
    assert!(bad(&out).contains("PAX record"));
}

#[test]
fn a_layer_is_read_to_its_end_even_behind_the_end_marker() {
    let plain = [layer([file("a", "1")]), vec![7; 100_000]].concat();
    assert_eq!(crate::disk::nodes_of(&[plain]).len(), 2);
}

/// Which limit an image of `items` meets.
fn limit_hit(limits: &Limits, items: impl IntoIterator<Item = Item>) -> LimitHit {
    match try_build(&[layer(items)], limits) {
        Err(BuildError::Limit { hit, .. }) => hit,
        other => panic!("{:?}", other.map(|disk| disk.built)),
    }
}

#[test]
fn each_limit_is_kept_and_named() {
    let default = Limits::default;
    let deep = || vec![file("a/b/c/d", "x")];
    let cases: [(Limits, Vec<Item>, &str); 9] = [
        (Limits { entries: 3, ..default() }, deep(), "entries"),
        (Limits { path_depth: 2, ..default() }, deep(), "path_depth"),
        (Limits { name_bytes: 2, ..default() }, vec![file("abc", "")], "name_bytes"),
        (
            Limits { metadata_bytes: 100, ..default() },
            vec![file("x", "").xattr("user.a", [0; 99])],
            "metadata_bytes",
        ),
        (
            Limits { header_bytes: 50, ..default() },
            vec![file("x", "").xattr("user.a", [0; 99])],
            "header_bytes",
        ),
        (Limits { device_nodes: 1, ..default() }, vec![item(b'3', "a"), item(b'4', "b")], "device_nodes"),
        (Limits { file_bytes: 99, ..default() }, vec![file("x", [0; 100])], "file_bytes"),
        (Limits { disk_bytes: 8192, ..default() }, vec![file("x", [1; 9000])], "disk_bytes"),
        (
            Limits { link_steps: 9, ..default() },
            vec![symlink("l", "a/../".repeat(5)), file("l/x", "")],
            "link_steps",
        ),
    ];
    for (limits, items, name) in cases {
        assert_eq!(limit_hit(&limits, items).limit, name);
    }
    let two = [layer([]), layer([])];
    let error = try_build(&two, &Limits { layers: 1, ..default() }).err().unwrap();
    assert_eq!(error.to_string(), "layer 2: over the limit `layers` of 1");
}

#[test]
fn a_decompression_bomb_is_stopped_while_it_expands() {
    let zeros = vec![0; 8 << 20];
    let bomb = zstd::bulk::compress(&layer([file("zeros", &zeros)]), 3).unwrap();
    let build = |limits: &Limits| {
        let reader: Box<dyn Read + Send> = Box::new(&bomb[..]);
        build_of([Ok(Layer { compression: Compression::Zstd, diff_id: None, reader })], limits)
    };
    let limits = Limits { expansion_free_bytes: 1 << 20, ..Limits::default() };
    assert!(build(&limits).err().unwrap().to_string().contains("expansion_ratio"));
    let limits = Limits { uncompressed_bytes: 4 << 20, ..Limits::default() };
    assert!(build(&limits).err().unwrap().to_string().contains("uncompressed_bytes"));
    build(&Limits::default()).unwrap();
}

#[test]
fn a_thousand_whiteouts_of_a_large_folder_take_no_longer_than_one() {
    let lower = layer((0..20_000).map(|n| file(format!("d/{n}"), "")));
    let mut upper: Vec<Item> = (0..20_000).map(|n| file(format!("d/n{n}"), "")).collect();
    upper.extend((0..5000).map(|_| file("d/.wh..wh..opq", "")));
    let disk = try_build(&[lower, layer(upper)], &Limits::default()).unwrap();
    assert_eq!(disk.built.entries, 20_002);
}

#[test]
fn the_deepest_allowed_folders_can_be_hidden_again() {
    let deepest = "d/".repeat(usize::from(Limits::default().path_depth));
    let disk = crate::disk::build(&[layer([folder(&deepest)]), layer([file(".wh.d", ""), file("x", "")])]);
    assert_eq!(disk.built.entries, 2);
    assert!(refusal([folder(deepest + "d")]).contains("path_depth"));
}

#[test]
fn a_full_disk_is_told_apart() {
    let full = io::Error::from_raw_os_error(nix::errno::Errno::ENOSPC as i32);
    assert!(BuildError::Write { source: full }.is_disk_full());
    let quota = io::Error::from_raw_os_error(nix::errno::Errno::EDQUOT as i32);
    assert!(BuildError::Read { layer: 0, source: quota }.is_disk_full());
    // What is not open for writing is not full.
    let tar = layer([file("a", "1")]);
    let source = Layer { compression: Compression::None, diff_id: None, reader: Box::new(&tar[..]) };
    let mut out = std::fs::File::open("/dev/null").unwrap();
    let error = build_root_disk([Ok(source)], &mut out, &Limits::default(), &mut |_| ()).unwrap_err();
    assert!(matches!(error, BuildError::Write { .. }) && !error.is_disk_full(), "{error}");
}

#[test]
fn an_error_of_the_source_names_the_layer() {
    let layers = [
        Ok(Layer { compression: Compression::None, diff_id: None, reader: Box::new(io::empty()) }),
        Err(io::Error::other("gone")),
    ];
    let error = build_of(layers, &Limits::default()).err().unwrap();
    assert_eq!(error.to_string(), "cannot read layer 2: gone");
}
