//! Random stacks of layers against a model that says in a few lines what the spec means: first a layer's
//! whiteouts hide what is below, then its entries are added.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::disk::Content;
use crate::tarball::{Item, file, folder, hard_link, item, layer, symlink};

/// One entry of a layer, before it is known whether it makes sense there.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Folder(Path, u32),
    File(Path, Vec<u8>, Option<u8>),
    Symlink(Path),
    Fifo(Path),
    Link(Path, Path),
    Whiteout(Path),
    Opaque(Path),
}

/// Names of one to three steps.
pub(crate) type Path = Vec<&'static str>;

fn path() -> impl Strategy<Value = Path> {
    prop::collection::vec(prop::sample::select(&["a", "b", "c", "-", "~"][..]), 1..=3)
}

fn op() -> impl Strategy<Value = Op> {
    let body = prop_oneof![
        3 => prop::collection::vec(1..=255u8, 0..40),
        1 => (1..=255u8, 4000..9000usize).prop_map(|(byte, len)| vec![byte; len]),
    ];
    // Not setgid: a host hands it down to folders that an unpacker makes because they are missing.
    let modes = prop::sample::select(&[0o755, 0o700, 0o1777, 0o4750][..]);
    prop_oneof![
        4 => (path(), modes).prop_map(|(path, mode)| Op::Folder(path, mode)),
        6 => (path(), body, prop::option::of(any::<u8>())).prop_map(|(path, body, attr)| Op::File(path, body, attr)),
        1 => path().prop_map(Op::Symlink),
        1 => path().prop_map(Op::Fifo),
        3 => (path(), path()).prop_map(|(name, target)| Op::Link(name, target)),
        3 => path().prop_map(Op::Whiteout),
        1 => path().prop_map(Op::Opaque),
    ]
}

pub(crate) fn layers() -> impl Strategy<Value = Vec<Vec<Op>>> {
    prop::collection::vec(prop::collection::vec(op(), 0..14), 1..5)
}

/// An inode of the model; names that are hard links have equal `id`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inode {
    pub(crate) id: usize,
    pub(crate) mode: u32,
    pub(crate) mtime: i64,
    pub(crate) attr: Option<u8>,
    pub(crate) content: Content,
}

/// Everything below the root.
pub(crate) type State = BTreeMap<Path, Inode>;

pub(crate) fn is_folder(state: &State, path: &[&'static str]) -> bool {
    path.is_empty() || state.get(path).is_some_and(|inode| inode.mode & 0o170_000 == 0o040_000)
}

fn remove(state: &mut State, path: &Path) {
    state.retain(|other, _| !other.starts_with(path));
}

/// Whether an entry may have this name: nothing above it is something else than a folder.
fn fits(state: &State, path: &Path) -> bool {
    (1..path.len()).all(|n| is_folder(state, &path[..n]) || !state.contains_key(&path[..n]))
}

fn put(state: &mut State, path: &Path, inode: Inode) {
    for n in 1..path.len() {
        let id = inode.id + 100_000 * n;
        state.entry(path[..n].to_vec()).or_insert(Inode {
            id,
            mode: 0o040_755,
            mtime: 0,
            attr: None,
            content: Content::Nothing,
        });
    }
    if is_folder(state, path) && inode.mode & 0o170_000 == 0o040_000 {
        state.insert(path.clone(), inode);
        return;
    }
    remove(state, path);
    state.insert(path.clone(), inode);
}

/// What the model makes of one op, applied to one state.
fn add(state: &mut State, op: &Op, id: usize, mtime: i64) {
    let inode = |kind: u32, mode: u32, attr: Option<u8>, content: Content| Inode {
        id,
        mode: kind | mode,
        mtime,
        attr,
        content,
    };
    match op {
        Op::Folder(path, mode) => put(state, path, inode(0o040_000, *mode, None, Content::Nothing)),
        Op::File(path, body, attr) => {
            put(state, path, inode(0o100_000, 0o644, *attr, Content::File(body.clone())))
        }
        Op::Symlink(path) => {
            put(state, path, inode(0o120_000, 0o777, None, Content::Symlink(b"nowhere/x".to_vec())))
        }
        Op::Fifo(path) => put(state, path, inode(0o010_000, 0o644, None, Content::Nothing)),
        Op::Link(path, target) => {
            let target = Inode { ..state[target].clone() };
            put(state, path, target);
        }
        Op::Whiteout(_) | Op::Opaque(_) => {}
    }
}

pub(crate) fn name(path: &Path) -> String {
    path.join("/")
}

/// The entries that make sense, as tar entries, and what they make of the state.
fn apply(state: &mut State, ops: &[Op], next_id: &mut usize) -> Vec<Item> {
    let mut items = Vec::new();
    // What a reader sees that has not come to the layer's whiteouts yet.
    let mut unhidden = state.clone();
    for op in ops {
        match op {
            Op::Whiteout(path) if fits(state, path) => remove(state, path),
            Op::Opaque(path) if fits(state, path) && is_folder(state, path) => {
                state.retain(|other, _| !(other.starts_with(path) && other.len() > path.len()));
            }
            _ => {}
        }
    }
    for op in ops {
        *next_id += 1;
        let mtime = 1_600_000_000 + *next_id as i64;
        let (path, entry) = match op {
            Op::Folder(path, mode) => (path, folder(name(path)).mode(*mode)),
            Op::File(path, body, attr) => {
                let entry = file(name(path), body);
                (path, attr.iter().fold(entry, |entry, attr| entry.xattr("user.attr", [*attr, b'\n'])))
            }
            Op::Symlink(path) => (path, symlink(name(path), "nowhere/x")),
            Op::Fifo(path) => (path, item(b'6', name(path))),
            Op::Link(path, target) => (path, hard_link(name(path), name(target))),
            Op::Whiteout(path) | Op::Opaque(path) => {
                let (last, parents) = path.split_last().unwrap();
                let mark = match op {
                    Op::Opaque(_) => format!("{}/.wh..wh..opq", name(path)),
                    _ if parents.is_empty() => format!(".wh.{last}"),
                    _ => format!("{}/.wh.{last}", name(&parents.to_vec())),
                };
                items.push(file(mark, ""));
                continue;
            }
        };
        let both = [&*state, &unhidden];
        let target_ok = |state: &State| match op {
            Op::Link(path, target) => {
                path != target
                    && state.contains_key(target)
                    && !is_folder(state, target)
                    && !target.starts_with(path)
            }
            _ => true,
        };
        if both.iter().all(|state| fits(state, path) && target_ok(state)) {
            add(state, op, *next_id, mtime);
            add(&mut unhidden, op, *next_id, mtime);
            items.push(entry.mtime(mtime as u64));
        }
    }
    items
}

/// The layers' entries, and the model's idea of the result.
pub(crate) fn entries(layers: &[Vec<Op>]) -> (Vec<Vec<Item>>, State) {
    let mut state = State::new();
    let mut next_id = 0;
    let items = layers.iter().map(|ops| apply(&mut state, ops, &mut next_id)).collect();
    (items, state)
}

/// The same with the layers as tar streams.
pub(crate) fn stack(layers: &[Vec<Op>]) -> (Vec<Vec<u8>>, State) {
    let (items, state) = entries(layers);
    (items.into_iter().map(layer).collect(), state)
}

/// How many links an inode of the model has: names of a file, or of a folder itself, `.` and its folders' `..`.
pub(crate) fn links(state: &State, path: &[&'static str]) -> usize {
    if is_folder(state, path) {
        let below = |other: &Path| other.len() == path.len() + 1 && other.starts_with(path);
        2 + state.keys().filter(|other| below(other) && is_folder(state, other)).count()
    } else {
        state.values().filter(|other| other.id == state[path].id).count()
    }
}

/// What an inode of the model has for extended attributes.
pub(crate) fn attributes(inode: &Inode) -> BTreeMap<Vec<u8>, Vec<u8>> {
    inode.attr.map(|attr| (b"user.attr".to_vec(), vec![attr, b'\n'])).into_iter().collect()
}

/// Only the streams, each with its whiteouts first, as the spec recommends.
///
/// Elsewhere umoci keeps how a lower layer described a folder that the layer hides and makes anew.
pub(crate) fn tars_with_whiteouts_first(layers: &[Vec<Op>]) -> Vec<Vec<u8>> {
    let hides = |op: &Op| matches!(op, Op::Whiteout(_) | Op::Opaque(_));
    let mut layers = layers.to_vec();
    for ops in &mut layers {
        ops.sort_by_key(|op| !hides(op));
    }
    stack(&layers).0
}
