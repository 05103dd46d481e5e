//! Root disks through the kernel that has to mount them: it finds what the model of the layers says, and the same as
//! `fsck.erofs` and an independent reader.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::json;

use crate::disk::{Content, Node, fsck, nodes_in, open};
use crate::guest::{load, root_disk};
use crate::model::{Op, State, attributes, entries, layers, links, name};
use crate::scenarios::{Bed, shell_layer};
use crate::support::registry::{Packing, TestLayer, image, layer};
use crate::tarball::{self, Item, file, folder, hard_link, item, symlink};

/// Disks that are made at random; each is mounted by a machine of its own.
const DISKS: usize = 3;
/// Random stacks of layers on each, every one in a folder of its own.
const STACKS: usize = 40;

/// One name on a disk, as `rootdisk/tree.c` tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    mode: u32,
    owner: (u32, u32),
    /// Seconds and nanoseconds.
    mtime: (i64, u32),
    links: u32,
    /// Equal for hard links.
    inode: u64,
    content: String,
    /// Value by name.
    attributes: BTreeMap<Vec<u8>, String>,
}

/// By path, without the first `/`.
type Tree = BTreeMap<Vec<u8>, Told>;

/// Length and 64 bits of FNV-1a.
fn sum(bytes: &[u8]) -> String {
    let fnv = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |fnv, byte| (fnv ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{}:{fnv:016x}", bytes.len())
}

fn content(content: &Content) -> String {
    match content {
        Content::File(bytes) | Content::Symlink(bytes) => sum(bytes),
        Content::Device(major, minor) => format!("{major},{minor}"),
        Content::Nothing => "-".to_owned(),
    }
}

fn sums(attributes: &BTreeMap<Vec<u8>, Vec<u8>>) -> BTreeMap<Vec<u8>, String> {
    attributes.iter().map(|(name, value)| (name.clone(), sum(value))).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    let (digits, rest) = hex.as_bytes().as_chunks::<2>();
    assert!(rest.is_empty(), "{hex}");
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.iter().map(byte).collect()
}

impl Told {
    /// A line of the guest's, with its path.
    fn parse(line: &str) -> (Vec<u8>, Told) {
        let fields: Vec<_> = line.split(' ').collect();
        let [path, mode, uid, gid, mtime, links, inode, content, more @ ..] = fields.as_slice() else {
            panic!("not a line of the tree: {line}");
        };
        let (seconds, nanoseconds) = mtime.split_once('.').unwrap();
        let attribute = |text: &&str| {
            let (name, value) = text.split_once('=').unwrap();
            (bytes(name), value.to_owned())
        };
        let told = Told {
            mode: u32::from_str_radix(mode, 8).unwrap(),
            owner: (uid.parse().unwrap(), gid.parse().unwrap()),
            mtime: (seconds.parse().unwrap(), nanoseconds.parse().unwrap()),
            links: links.parse().unwrap(),
            inode: inode.parse().unwrap(),
            content: (*content).to_owned(),
            attributes: more.iter().map(attribute).collect(),
        };
        (bytes(path.strip_prefix('/').unwrap()), told)
    }

    /// What the independent reader found.
    fn of(node: &Node) -> Told {
        Told {
            mode: node.mode,
            owner: (node.uid, node.gid),
            mtime: node.mtime,
            links: node.links,
            inode: node.inode,
            content: content(&node.content),
            attributes: sums(&node.xattrs),
        }
    }
}

/// The same names have the same inodes on both sides, whatever those are called there.
fn assert_same(kernel: &Tree, other: &Tree, seed: u64) {
    let names = |tree: &Tree| tree.keys().cloned().collect::<BTreeSet<_>>();
    let difference: Vec<_> = names(kernel)
        .symmetric_difference(&names(other))
        .map(|name| name.escape_ascii().to_string())
        .collect();
    assert!(difference.is_empty(), "only on one side: {difference:?} (III_ROOTDISK_SEED={seed})");
    let mut inodes = (BTreeMap::new(), BTreeMap::new());
    for (path, told) in kernel {
        let expected = &other[path];
        let shown = path.escape_ascii();
        let same_names = Told { inode: told.inode, ..expected.clone() };
        assert_eq!(told, &same_names, "{shown} (III_ROOTDISK_SEED={seed})");
        let pair = (
            *inodes.0.entry(told.inode).or_insert(expected.inode),
            *inodes.1.entry(expected.inode).or_insert(told.inode),
        );
        assert_eq!(pair, (expected.inode, told.inode), "{shown} is another's hard link there");
    }
}

/// The same entry, and what it links to, in a folder.
fn under(folder: &str, item: Item) -> Item {
    let inside = |path: &[u8]| [folder.as_bytes(), b"/", path].concat();
    let path = inside(&item.path);
    let link = if item.flag == b'1' { inside(&item.link) } else { item.link };
    Item { path, link, ..item }
}

/// A disk to be: its layers, and what the model says of each stack.
struct Plan {
    layers: Vec<TestLayer>,
    stacks: Vec<State>,
}

impl Plan {
    fn new(stacks: &[Vec<Vec<Op>>], program: &[u8]) -> Plan {
        let mut items: Vec<Vec<Item>> = vec![curiosities()];
        items[0].push(file("tree", program).mode(0o755));
        let mut states = Vec::new();
        for (number, stack) in stacks.iter().enumerate() {
            let folder_of = format!("s{number}");
            items[0].push(folder(&folder_of));
            let (layers, state) = entries(stack);
            states.push(state);
            for (depth, layer) in layers.into_iter().enumerate() {
                if items.len() <= depth {
                    items.push(Vec::new());
                }
                items[depth].extend(layer.into_iter().map(|item| under(&folder_of, item)));
            }
        }
        let packings = [Packing::Gzip, Packing::Plain, Packing::Zstd].into_iter().cycle();
        let layers = items.into_iter().zip(packings);
        let layers = layers.map(|(items, packing)| layer(&tarball::layer(items), packing)).collect();
        Plan { layers, stacks: states }
    }

    /// What the kernel finds is what the model says.
    fn assert_model(&self, kernel: &Tree, seed: u64) {
        for (number, state) in self.stacks.iter().enumerate() {
            let prefix = format!("s{number}/");
            let below = kernel.iter().filter_map(|(path, told)| {
                Some((path.strip_prefix(prefix.as_bytes())?.to_vec(), told.clone()))
            });
            let expected = state.iter().map(|(path, inode)| {
                let told = Told {
                    mode: inode.mode,
                    owner: (0, 0),
                    mtime: (inode.mtime, 0),
                    links: u32::try_from(links(state, path)).unwrap(),
                    inode: inode.id as u64,
                    content: content(&inode.content),
                    attributes: sums(&attributes(inode)),
                };
                (name(path).into_bytes(), told)
            });
            assert_same(&below.collect(), &expected.collect(), seed);
        }
    }
}

/// What random stacks do not have: every kind of inode, owners and names at their limits, long attributes.
fn curiosities() -> Vec<Item> {
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let deep = [&[b'd'; 200][..], b"/", &[b'f'; 255]].concat();
    let mut items = vec![
        file("suid", "x").mode(0o6755).owner(4_294_967_294, 65_536),
        folder("sticky").mode(0o1777).mtime(1).owner(70_000, 80_000),
        item(b'3', "null").device(1, 3).mode(0o666),
        item(b'4', "block").device(4095, 1_048_575).mode(0o660),
        item(b'6', "fifo").mode(0o622),
        file("before-1970", "x").pax("mtime", "-3.25"),
        file(b"\xff\xfe\n\xe4 \\", "bytes"),
        file(deep, "deep"),
        symlink("far", [b't'; 4000]),
        file("ping", "x").xattr("security.capability", capability).xattr("user.empty", ""),
        file("long", vec![9; 6000]).xattr("user.long", [7; 3000]).xattr("trusted.t", "t"),
        hard_link("long-too", "long"),
        file("zeros", vec![0; 3 << 20]),
    ];
    let pattern: Vec<u8> = (0..3 * 4096 + 10).map(|n| (n * 31 / 7) as u8 | 1).collect();
    for size in [0, 1, 4031, 4032, 4033, 4095, 4096, 4097, 8191, 8192, 8193, 12_288, 12_297] {
        items.push(file(format!("sizes/{size}"), &pattern[..size]));
    }
    // A folder of several blocks.
    items.extend((0..600).map(|n| file(format!("many/{:0width$}", n * 7919 % 601, width = n % 60 + 1), "")));
    items
}

/// `rootdisk/tree.c` as a static program.
fn program() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("tree.c"), folder.path().join("tree"));
    fs::write(&source, include_str!("rootdisk/tree.c")).unwrap();
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-static", "-Wall", "-Werror", "-o"]).arg(&program).arg(&source);
    assert!(gcc.status().unwrap().success());
    fs::read(program).unwrap()
}

#[test]
fn the_kernel_finds_on_random_root_disks_what_their_layers_say() {
    let seed = std::env::var("III_ROOTDISK_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(jiff::Timestamp::now().subsec_nanosecond().unsigned_abs()));
    eprintln!("III_ROOTDISK_SEED={seed}");
    let mut seed_bytes = [0; 32];
    seed_bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &seed_bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), random);
    let program = program();
    for _ in 0..DISKS {
        let mut stack = || layers().new_tree(&mut runner).unwrap().current();
        let stacks: Vec<_> = (0..STACKS).map(|_| stack()).collect();
        let plan = Plan::new(&stacks, &program);
        let bed = Bed::new();
        let reference = bed.push("tree", &image(&plan.layers, json!({ "Entrypoint": ["/tree"] })));
        bed.configure(&[bed.entry("tree", &reference, &["restart: never"])]);
        let _daemon = bed.daemon();
        bed.until("the whole tree is told", || {
            let end = bed.iii(&["worker", "logs", "-n", "1", "tree"]).text();
            assert!(!end.contains("FAILED"), "{end}");
            end == "told all\n"
        });
        let log = bed.ok(&["worker", "logs", "tree"]);
        let kernel: Tree = log.lines().take_while(|line| *line != "told all").map(Told::parse).collect();
        assert!(kernel.len() > 700, "only {} names", kernel.len());
        plan.assert_model(&kernel, seed);
        let disk = root_disk(&bed);
        fsck(&disk);
        let reader = nodes_in(&open(&disk));
        let reader: Tree = reader.iter().map(|(path, node)| (path.clone(), Told::of(node))).collect();
        assert_same(&kernel, &reader, seed);
    }
}

#[test]
fn sparse_and_huge_files_of_an_image_are_whole_in_the_guest() {
    const SIZE: u64 = 5 << 30;
    let bed = Bed::new();
    load(&bed, "sparse");
    let map = format!("0,6,{},4", SIZE - 4);
    let huge = file("huge", "begin\nend\n")
        .pax("GNU.sparse.size", SIZE.to_string())
        .pax("GNU.sparse.name", "huge")
        .pax("GNU.sparse.map", map);
    let layers = [shell_layer(), layer(&tarball::layer([huge]), Packing::Gzip)];
    let script = "stat -c 'size %s' /huge; head -c 6 /huge; tail -c 4 /huge; \
                  dd if=/huge bs=1M skip=2560 count=2 2>/dev/null | tr -d '\\0' | wc -c; exec sleep 1000";
    let huge = bed.push("huge", &image(&layers, json!({ "Entrypoint": ["/bin/sh", "-c", script] })));
    bed.configure(&[
        bed.entry("sparse", &bed.registry.reference("sparse:latest"), &[]),
        bed.entry("huge", &huge, &[]),
    ]);
    let _daemon = bed.daemon();
    bed.wait_log("sparse", "sparse ok\n");
    bed.wait_log("huge", &format!("size {SIZE}\nbegin\nend\n0\n"));
}
