//! The rules of the OCI image spec for layers, one by one.

use crate::disk::{Content, Node, Nodes, build, nodes_of};
use crate::tarball::{Item, file, folder, hard_link, item, layer, symlink};

fn paths(nodes: &Nodes) -> Vec<String> {
    nodes.keys().skip(1).map(|path| String::from_utf8_lossy(path).into_owned()).collect()
}

fn at<'n>(nodes: &'n Nodes, path: &str) -> &'n Node {
    nodes.get(path.as_bytes()).unwrap_or_else(|| panic!("no {path} in {:?}", paths(nodes)))
}

fn body(nodes: &Nodes, path: &str) -> Vec<u8> {
    match &at(nodes, path).content {
        Content::File(bytes) => bytes.clone(),
        other => panic!("{path} is {other:?}"),
    }
}

fn two(lower: Vec<Item>, upper: Vec<Item>) -> Nodes {
    nodes_of(&[layer(lower), layer(upper)])
}

#[test]
fn an_image_without_layers_or_entries_is_an_empty_root() {
    for layers in [vec![], vec![vec![]], vec![layer([])]] {
        let nodes = nodes_of(&layers);
        assert_eq!(nodes.len(), 1);
        assert_eq!((nodes[&vec![]].mode, nodes[&vec![]].links), (0o040_755, 2));
    }
}

#[test]
fn a_whiteout_removes_a_file_or_a_whole_folder_of_lower_layers() {
    let lower = vec![file("a/x", "1"), file("a/y/z", "2"), file("b", "3"), file("keep", "4")];
    let nodes = two(lower, vec![file(".wh.a", ""), file(".wh.b", ""), file(".wh.never-was", "")]);
    assert_eq!(paths(&nodes), ["keep"]);
}

#[test]
fn a_whiteout_spares_what_its_own_layer_puts_there_wherever_it_stands() {
    let lower = vec![folder("a").mode(0o700).owner(7, 7), file("a/old", "1"), file("f", "old")];
    let new = vec![file("a/new", "2"), file("f", "new")];
    let whiteouts = vec![file(".wh.a", ""), file(".wh.f", "")];
    let before = two(lower.clone(), [whiteouts.clone(), new.clone()].concat());
    let after = two(lower, [new, whiteouts].concat());
    assert_eq!(paths(&before), ["a", "a/new", "f"]);
    assert_eq!(body(&before, "f"), b"new");
    assert_eq!(at(&before, "a").mode, 0o040_755);
    assert_eq!(before, after);
}

#[test]
fn an_opaque_folder_hides_all_lower_layers_have_in_it_but_not_itself() {
    let lower = vec![folder("d").mode(0o711).owner(3, 4), file("d/x", "1"), file("d/sub/y", "2")];
    for at_end in [false, true] {
        let mut upper = vec![file("d/sub/new", "3")];
        upper.insert(if at_end { 1 } else { 0 }, file("d/.wh..wh..opq", ""));
        let nodes = two(lower.clone(), upper);
        assert_eq!(paths(&nodes), ["d", "d/sub", "d/sub/new"]);
        let d = at(&nodes, "d");
        assert_eq!((d.mode, d.uid, d.gid), (0o040_711, 3, 4));
    }
}

#[test]
fn an_opaque_root_hides_everything_below() {
    let nodes = two(vec![file("a/x", "1"), file("b", "2")], vec![file(".wh..wh..opq", ""), file("c", "3")]);
    assert_eq!(paths(&nodes), ["c"]);
}

#[test]
fn hard_links_share_one_inode_also_across_layers() {
    let nodes = two(
        vec![file("a", "same").mode(0o4755), hard_link("b", "a")],
        vec![hard_link("d/c", "/b"), file(".wh.a", "")],
    );
    assert_eq!(paths(&nodes), ["b", "d", "d/c"]);
    assert_eq!(at(&nodes, "b"), at(&nodes, "d/c"));
    assert_eq!((at(&nodes, "b").links, at(&nodes, "b").mode), (2, 0o104_755));
    assert_eq!(body(&nodes, "d/c"), b"same");
}

#[test]
fn replacing_one_name_of_a_hard_link_leaves_the_other() {
    let nodes = two(vec![file("a", "old"), hard_link("b", "a")], vec![file("a", "new")]);
    assert_eq!((body(&nodes, "a"), body(&nodes, "b")), (b"new".to_vec(), b"old".to_vec()));
    assert_eq!((at(&nodes, "a").links, at(&nodes, "b").links), (1, 1));
}

#[test]
fn a_symbolic_link_can_have_two_names() {
    let nodes = nodes_of(&[layer([symlink("a", "nowhere"), hard_link("b", "a")])]);
    assert_eq!(at(&nodes, "a"), at(&nodes, "b"));
    assert_eq!(at(&nodes, "b").content, Content::Symlink(b"nowhere".to_vec()));
}

#[test]
fn a_file_replaces_a_folder_and_a_folder_a_file() {
    let nodes = two(
        vec![file("a/deep/x", "1"), file("b", "2")],
        vec![file("a", "now a file"), folder("b"), file("b/y", "3")],
    );
    assert_eq!(paths(&nodes), ["a", "b", "b/y"]);
    assert_eq!(body(&nodes, "a"), b"now a file");
}

#[test]
fn a_folder_told_again_keeps_its_content_and_takes_the_new_owner_mode_and_attributes() {
    let nodes = two(
        vec![folder("d").xattr("user.old", "1"), file("d/x", "1")],
        vec![folder("d/").mode(0o1777).owner(70_000, 80_000).mtime(5).xattr("user.new", "2")],
    );
    let d = at(&nodes, "d");
    assert_eq!((d.mode, d.uid, d.gid, d.mtime), (0o041_777, 70_000, 80_000, (5, 0)));
    assert_eq!(d.xattrs.keys().collect::<Vec<_>>(), [b"user.new"]);
    assert_eq!(body(&nodes, "d/x"), b"1");
}

#[test]
fn the_root_folder_can_be_described_too() {
    for name in [".", "./", "/"] {
        let nodes = nodes_of(&[layer([folder(name).mode(0o555).owner(1, 2)])]);
        let root = &nodes[&vec![]];
        assert_eq!((root.mode, root.uid, root.gid), (0o040_555, 1, 2));
    }
}

#[test]
fn a_folder_replaces_a_symbolic_link_of_a_lower_layer() {
    let nodes = two(vec![file("usr/bin/sh", "1"), symlink("bin", "usr/bin")], vec![folder("bin")]);
    assert_eq!(at(&nodes, "bin").content, Content::Nothing);
    assert_eq!(paths(&nodes), ["bin", "usr", "usr/bin", "usr/bin/sh"]);
}

#[test]
fn an_entry_below_a_symbolic_link_lands_where_the_link_points() {
    for target in ["usr/bin", "/usr/bin", "../../usr/./bin", "usr/loop/../bin"] {
        let lower = vec![folder("usr/bin"), folder("usr/loop"), symlink("bin", target)];
        let nodes = two(lower, vec![file("bin/foo", "1"), hard_link("usr/bar", "bin/foo")]);
        assert_eq!(body(&nodes, "usr/bin/foo"), b"1");
        assert_eq!(at(&nodes, "usr/bar").links, 2);
        assert_eq!(at(&nodes, "bin").content, Content::Symlink(target.into()));
    }
}

#[test]
fn a_whiteout_below_a_symbolic_link_removes_where_the_link_points() {
    let nodes = two(vec![file("usr/bin/foo", "1"), symlink("bin", "usr/bin")], vec![file("bin/.wh.foo", "")]);
    assert_eq!(paths(&nodes), ["bin", "usr", "usr/bin"]);
}

#[test]
fn a_symbolic_link_cannot_lead_out_of_the_root_and_missing_folders_behind_it_are_made() {
    let nodes = two(vec![symlink("etc", "../../../../tmp/x")], vec![file("etc/passwd", "1")]);
    assert_eq!(paths(&nodes), ["etc", "tmp", "tmp/x", "tmp/x/passwd"]);
}

#[test]
fn missing_folders_belong_to_root_with_mode_0755() {
    let nodes =
        nodes_of(&[layer([file("a/b/c", "1").owner(5, 5), folder("s").mode(0o2770), file("s/d/x", "")])]);
    for path in ["a", "a/b", "s/d"] {
        let node = at(&nodes, path);
        assert_eq!((node.mode, node.uid, node.gid, node.mtime), (0o040_755, 0, 0, (0, 0)));
    }
    assert_eq!((at(&nodes, "a").links, at(&nodes, "a/b").links), (3, 2));
}

#[test]
fn every_kind_of_inode_keeps_its_mode_owner_and_time() {
    let nodes = nodes_of(&[layer([
        file("suid", "x").mode(0o6755).owner(4_294_967_294, 65_536),
        folder("sticky").mode(0o1777).mtime(1),
        item(b'3', "null").device(1, 3).mode(0o666),
        item(b'4', "disk").device(4095, 1_048_575).mode(0o660),
        item(b'6', "fifo").mode(0o622),
        symlink("link", "to"),
        item(b'7', "contiguous"),
        item(0, "old-folder/"),
    ])]);
    let suid = at(&nodes, "suid");
    assert_eq!((suid.mode, suid.uid, suid.gid), (0o106_755, 4_294_967_294, 65_536));
    assert_eq!((at(&nodes, "sticky").mode, at(&nodes, "sticky").mtime), (0o041_777, (1, 0)));
    assert_eq!((at(&nodes, "null").mode, &at(&nodes, "null").content), (0o020_666, &Content::Device(1, 3)));
    let disk = at(&nodes, "disk");
    assert_eq!((disk.mode, &disk.content), (0o060_660, &Content::Device(4095, 1_048_575)));
    assert_eq!(at(&nodes, "fifo").mode, 0o010_622);
    assert_eq!((at(&nodes, "link").mode, at(&nodes, "link").mtime.0), (0o120_777, 1_700_000_000));
    assert_eq!(body(&nodes, "contiguous"), b"");
    assert_eq!(at(&nodes, "old-folder").mode & 0o170_000, 0o040_000);
}

#[test]
fn extended_attributes_reach_the_guest_byte_for_byte() {
    let capability = [1, 0, 0, 2, b'\n', 0x20, 0, 0, b'\n', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let acl = [2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255];
    let long = vec![7; 5000];
    let nodes = nodes_of(&[layer([
        file("ping", "x").xattr("security.capability", capability).xattr("user.empty", ""),
        folder("d").xattr("system.posix_acl_default", acl).xattr("system.posix_acl_access", acl),
        file("long", vec![9; 6000]).xattr("user.long", &long).xattr("trusted.t", "t"),
        symlink("l", "x").xattr("trusted.overlay.redirect", "/etc").xattr("user.overlay.opaque", "y"),
    ])]);
    let ping = &at(&nodes, "ping").xattrs;
    assert_eq!(ping[&b"security.capability"[..]], capability);
    assert_eq!(ping[&b"user.empty"[..]], b"");
    let d = &at(&nodes, "d").xattrs;
    assert_eq!(d[&b"system.posix_acl_default"[..]], acl);
    assert_eq!(d[&b"system.posix_acl_access"[..]], acl);
    assert_eq!(at(&nodes, "long").xattrs[&b"user.long"[..]], long);
    assert_eq!(at(&nodes, "long").xattrs[&b"trusted.t"[..]], b"t");
    assert_eq!(body(&nodes, "long"), vec![9; 6000]);
    assert!(at(&nodes, "l").xattrs.is_empty());
}

#[test]
fn names_are_bytes_and_may_be_long() {
    let long = [&[b'd'; 200][..], b"/", &[b'f'; 255]].concat();
    let target = vec![b't'; 4095];
    let nodes = nodes_of(&[layer([
        file(b"\xff\xfe\xe4", "latin"),
        file(&long, "gnu"),
        file("short", "pax").pax("path", [b"p/".as_slice(), &[0xf0; 150]].concat()),
        symlink("far", &target),
        symlink("x", "y").pax("linkpath", "pax target"),
    ])]);
    assert_eq!(nodes[&b"\xff\xfe\xe4"[..]].content, Content::File(b"latin".to_vec()));
    assert_eq!(nodes[&long].content, Content::File(b"gnu".to_vec()));
    assert_eq!(nodes[&[b"p/".as_slice(), &[0xf0; 150]].concat()].content, Content::File(b"pax".to_vec()));
    assert_eq!(at(&nodes, "far").content, Content::Symlink(target));
    assert_eq!(at(&nodes, "x").content, Content::Symlink(b"pax target".to_vec()));
}

#[test]
fn pax_owners_sizes_and_times_win_over_the_header() {
    let times = file("f", "12345").owner(1, 1).pax("uid", "70001").pax("gid", "70002").pax("mtime", "-3.25");
    let nodes = nodes_of(&[layer([times, item(b'g', "global"), file("g", "")])]);
    let f = at(&nodes, "f");
    assert_eq!((f.uid, f.gid, f.mtime), (70_001, 70_002, (-4, 750_000_000)));
    assert_eq!(paths(&nodes), ["f", "g"]);
}

#[test]
fn bookkeeping_of_aufs_is_passed_over() {
    let nodes = nodes_of(&[layer([folder(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", "x"), file("a", "b")])]);
    assert_eq!(paths(&nodes), ["a"]);
}

#[test]
fn of_one_name_twice_in_a_layer_the_last_counts() {
    let nodes = nodes_of(&[layer([file("a", "1"), folder("a"), file("a/b", "2"), file("a", "3")])]);
    assert_eq!(paths(&nodes), ["a"]);
    assert_eq!(body(&nodes, "a"), b"3");
}

#[test]
fn folders_of_many_blocks_and_names_around_the_dots_are_found_again() {
    let mut items: Vec<Item> = ["!", "-", "..a", ".a", "...", "~"].map(|name| file(name, name)).into();
    items.extend((0..3000).map(|n| file(format!("d/{:0width$}", n * 7919 % 3001, width = n % 60 + 1), "")));
    let disk = build(&[layer(items.clone())]);
    let nodes = disk.nodes();
    let fs = disk.open();
    for item in &items {
        assert!(nodes.contains_key(&item.path), "{:?}", item.path.escape_ascii().to_string());
        let path = [b"/", &item.path[..]].concat();
        assert_eq!(fs.open(&path[..]).unwrap().size(), item.body.len() as u64);
    }
}

#[test]
fn files_of_every_size_around_a_block_come_back_whole() {
    let pattern: Vec<u8> = (0..3 * 4096 + 10).map(|n| (n * 31 / 7) as u8 | 1).collect();
    let sizes = [0, 1, 4031, 4032, 4033, 4095, 4096, 4097, 8191, 8192, 8193, 12_288, 12_297];
    let items = sizes.map(|size| file(format!("f{size}"), &pattern[..size]));
    let nodes = nodes_of(&[layer(items)]);
    for size in sizes {
        assert_eq!(body(&nodes, &format!("f{size}")), pattern[..size]);
    }
}

#[test]
fn a_disk_may_end_with_any_inode() {
    // One of these fills a block of inodes to its last byte.
    for size in (3500..3960).step_by(32) {
        let nodes = nodes_of(&[layer([file("a", vec![b'a'; size]), file("b", "")])]);
        assert_eq!(body(&nodes, "a").len(), size);
    }
}

fn manifest_of(layers: &[Vec<Item>]) -> Option<Vec<u8>> {
    let layers: Vec<_> = layers.iter().cloned().map(layer).collect();
    build(&layers).built.worker_manifest
}

#[test]
fn the_worker_manifest_is_that_of_all_layers_together() {
    const PATH: &str = "iii/worker.yaml";
    // One that is all in the end of its block, one with blocks of its own, one of exactly a block.
    for body in [b"resources: {}".to_vec(), b"#".repeat(64 * 1024), b"#".repeat(4096), vec![]] {
        let lower = vec![file("other", "x".repeat(9000)), file(PATH, &body), file("z", "z".repeat(9000))];
        assert_eq!(manifest_of(std::slice::from_ref(&lower)), Some(body), "one layer");
        let replaced = manifest_of(&[lower.clone(), vec![file(PATH, "new")]]);
        assert_eq!(replaced.as_deref(), Some(&b"new"[..]), "a later layer replaces it");
        assert_eq!(manifest_of(&[lower.clone(), vec![file("iii/.wh.worker.yaml", "")]]), None);
        assert_eq!(manifest_of(&[lower.clone(), vec![file(".wh.iii", "")]]), None);
        assert_eq!(manifest_of(&[lower, vec![file("iii/.wh..wh..opq", "")]]), None);
    }
    let linked = manifest_of(&[vec![file("m", "same"), hard_link(PATH, "m")]]);
    assert_eq!(linked.as_deref(), Some(&b"same"[..]));
    let folder_link = manifest_of(&[vec![file("opt/iii/worker.yaml", "far"), symlink("iii", "opt/iii")]]);
    assert_eq!(folder_link.as_deref(), Some(&b"far"[..]));
}

#[test]
fn what_is_no_small_file_is_no_worker_manifest() {
    for items in [
        vec![],
        vec![folder("iii/worker.yaml")],
        vec![file("real", "x"), symlink("iii/worker.yaml", "/real")],
        vec![file("iii", "x")],
        vec![symlink("iii", "iii"), file("x", "x")],
        vec![file("iii/worker.yaml", "#".repeat(64 * 1024 + 1))],
        vec![item(b'6', "iii/worker.yaml")],
    ] {
        assert_eq!(manifest_of(std::slice::from_ref(&items)), None, "{items:?}");
    }
}
