use std::collections::BTreeMap;
use std::convert::Infallible;

use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

use super::*;

const TAKEN: i128 = 1_000 * RACY_NS;
const OLD: i128 = 10 * RACY_NS;

/// What a model tree has at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Thing {
    Folder,
    File(String),
    Link(String),
}

/// Path to thing, mode and time (of files).
type Tree = BTreeMap<String, (Thing, u32, i128)>;

fn sha256(content: &str) -> Hash {
    Sha256::digest(content.as_bytes()).into()
}

fn list(tree: &Tree) -> Vec<FileEntry> {
    let entry = |(path, (thing, mode, mtime_ns)): (&String, &(Thing, u32, i128))| {
        let kind = match thing {
            Thing::Folder => EntryKind::Folder,
            Thing::File(content) => EntryKind::File { size: content.len() as u64, mtime_ns: *mtime_ns },
            Thing::Link(target) => EntryKind::Link { target: target.clone().into() },
        };
        FileEntry { path: path.clone().into(), kind, mode: *mode }
    };
    tree.iter().map(entry).collect()
}

fn text(path: &[u8]) -> String {
    String::from_utf8(path.to_vec()).unwrap()
}

fn planned(source: &Tree, index: &Index) -> (SyncPlan, Vec<String>) {
    let mut hashed = Vec::new();
    let plan = diff(&list(source), index, |entry| {
        let path = text(&entry.path);
        let Thing::File(content) = &source[&path].0 else { panic!("{path} is hashed") };
        hashed.push(path);
        Ok::<_, Infallible>(sha256(content))
    });
    (plan.unwrap(), hashed)
}

/// Does in a guest what the plan says, by the contract in the types' comments; gives the next index.
fn apply(plan: SyncPlan, source: &Tree, guest: &mut Tree) -> Index {
    apply_some(&plan, source, guest, usize::MAX);
    plan.finish(TAKEN, |outgoing| match &source[&text(&outgoing.entry.path)].0 {
        Thing::File(content) => Some(sha256(content)),
        Thing::Folder | Thing::Link(_) => panic!("only files have a hash"),
    })
}

/// Likewise, and is killed after so many steps.
fn apply_some(plan: &SyncPlan, source: &Tree, guest: &mut Tree, mut steps: usize) {
    let mut is_cut = move || {
        let cut = steps == 0;
        steps = steps.saturating_sub(1);
        cut
    };
    let below = |folder: &str, guest: &Tree| -> Vec<String> {
        guest.keys().filter(|path| path.starts_with(&format!("{folder}/"))).cloned().collect()
    };
    for Removal { path, how } in &plan.remove {
        if is_cut() {
            return;
        }
        let path = text(path);
        let inside = below(&path, guest);
        match how {
            // One that is a folder now has been replaced already, by a copy that was cut off.
            Remove::File if matches!(guest.get(&path), Some((Thing::Folder, ..))) => {}
            Remove::File => drop(guest.remove(&path)),
            Remove::EmptyFolder if inside.is_empty() => drop(guest.remove(&path)),
            Remove::EmptyFolder => {}
            Remove::Tree => {
                guest.remove(&path);
                inside.iter().for_each(|path| drop(guest.remove(path)));
            }
        }
    }
    for entry in &plan.adjust {
        if is_cut() {
            return;
        }
        let path = text(&entry.path);
        let (thing, mode, mtime) = guest.get_mut(&path).expect("what is adjusted is there");
        assert_eq!(*thing, source[&path].0, "only what is the same is adjusted");
        (*mode, *mtime) = (source[&path].1, source[&path].2);
    }
    for Outgoing { entry, .. } in &plan.send {
        if is_cut() {
            return;
        }
        let path = text(&entry.path);
        if let Some((parent, _)) = path.rsplit_once('/') {
            assert!(matches!(guest.get(parent), Some((Thing::Folder, ..))), "{path} has no folder to go to");
        }
        if entry.kind != EntryKind::Folder {
            below(&path, guest).iter().for_each(|path| drop(guest.remove(path)));
        }
        guest.insert(path.clone(), source[&path].clone());
    }
}

fn tree(things: &[(&str, Thing, i128)]) -> Tree {
    things.iter().map(|(path, thing, mtime)| ((*path).to_owned(), (thing.clone(), 0o644, *mtime))).collect()
}

fn file(content: &str) -> Thing {
    Thing::File(content.to_owned())
}

fn paths<'a>(entries: impl IntoIterator<Item = &'a FileEntry>) -> Vec<String> {
    entries.into_iter().map(|entry| text(&entry.path)).collect()
}

#[test]
fn size_then_time_then_hash_say_whether_a_file_is_sent() {
    let before = tree(&[("f", file("aa"), OLD)]);
    let index = apply(planned(&before, &Index::default()).0, &before, &mut Tree::new());
    for (content, mtime, sent, adjusted, hashed) in [
        ("aa", OLD, false, false, false),
        ("bb", OLD, false, false, false), // Nobody can see it; nobody does that but on purpose.
        ("aa", OLD + 1, false, true, true),
        ("bb", OLD + 1, true, false, true),
        ("bb", OLD - 1, true, false, true),
        ("aaa", OLD, true, false, false),
    ] {
        let (plan, asked) = planned(&tree(&[("f", file(content), mtime)]), &index);
        let found = (!plan.send.is_empty(), !plan.adjust.is_empty(), !asked.is_empty());
        assert_eq!(found, (sent, adjusted, hashed), "{content} {mtime}");
        assert_eq!(plan.is_empty(), !sent && !adjusted);
    }
}

#[test]
fn a_file_that_is_as_new_as_the_listing_is_hashed() {
    let young = TAKEN - RACY_NS / 2;
    let before = tree(&[("f", file("aa"), young)]);
    let index = apply(planned(&before, &Index::default()).0, &before, &mut Tree::new());
    let (plan, asked) = planned(&before, &index);
    assert_eq!((plan.is_empty(), asked), (true, vec!["f".to_owned()]));
    let (plan, _) = planned(&tree(&[("f", file("bb"), young)]), &index);
    assert_eq!(plan.send[0].sha256, Some(sha256("bb")));
}

#[test]
fn a_file_may_take_the_place_of_a_folder_and_a_folder_that_of_a_file() {
    let before = tree(&[
        ("x", Thing::Folder, 0),
        ("x-y", file("1"), OLD),
        ("x/a", file("2"), OLD),
        ("y", file("3"), OLD),
    ]);
    let mut guest = Tree::new();
    let index = apply(planned(&before, &Index::default()).0, &before, &mut guest);
    guest.insert("x/made".to_owned(), (file("by the machine"), 0o644, 0));
    let after = tree(&[("x", file("2"), OLD), ("y", Thing::Folder, 0), ("y/a", file("3"), OLD)]);
    let (plan, _) = planned(&after, &index);
    let removed: Vec<_> = plan.remove.iter().map(|gone| (text(&gone.path), gone.how)).collect();
    let expected = [("y", Remove::File), ("x-y", Remove::File), ("x", Remove::Tree)];
    assert_eq!(removed, expected.map(|(path, how)| (path.to_owned(), how)));
    assert_eq!(paths(plan.send.iter().map(|outgoing| &outgoing.entry)), ["x", "y", "y/a"]);
    apply(plan, &after, &mut guest);
    assert_eq!(guest, after);
}

#[test]
fn what_the_machine_made_stays() {
    let before = tree(&[("src", Thing::Folder, 0), ("src/a", file("1"), OLD)]);
    let mut guest = Tree::new();
    let index = apply(planned(&before, &Index::default()).0, &before, &mut guest);
    for path in ["node_modules", "src/cache"] {
        guest.insert(path.to_owned(), (Thing::Folder, 0o755, 0));
    }
    let after = Tree::new();
    let next = apply(planned(&after, &index).0, &after, &mut guest);
    assert_eq!(guest.keys().collect::<Vec<_>>(), ["node_modules", "src", "src/cache"]);
    assert_eq!(next.entries, []);
    // A file of the project that comes to be where the machine has a folder takes its place.
    let later = tree(&[("src", file("x"), OLD)]);
    apply(planned(&later, &next).0, &later, &mut guest);
    assert_eq!(guest.keys().collect::<Vec<_>>(), ["node_modules", "src"]);
}

#[test]
fn a_file_that_was_not_sent_is_not_in_the_index() {
    let source = tree(&[("a", file("1"), OLD), ("b", file("2"), OLD)]);
    let (plan, _) = planned(&source, &Index::default());
    let index = plan.finish(TAKEN, |outgoing| (outgoing.entry.path == b"a").then(|| sha256("1")));
    assert_eq!(index.entries.len(), 1);
    let (again, _) = planned(&source, &index);
    assert_eq!(paths(again.send.iter().map(|outgoing| &outgoing.entry)), ["b"]);
}

#[test]
fn a_hash_that_cannot_be_had_is_an_error() {
    let before = tree(&[("f", file("aa"), OLD)]);
    let index = apply(planned(&before, &Index::default()).0, &before, &mut Tree::new());
    let after = list(&tree(&[("f", file("bb"), OLD + 1)]));
    assert_eq!(diff(&after, &index, |_| Err("unreadable")), Err("unreadable"));
}

/// Trees of few names, so that two of them have much in common; what has no folder above it is left away.
fn trees() -> impl Strategy<Value = Tree> {
    let thing = prop_oneof![
        3 => Just(Thing::Folder),
        4 => "[xy]{0,2}".prop_map(Thing::File),
        1 => "[ab]".prop_map(Thing::Link),
    ];
    let entry = ("[ab](-b|/[ab](/[ab])?)?", thing, prop_oneof![Just(0o644u32), Just(0o755)]);
    proptest::collection::vec(entry, 0..12).prop_map(|entries| {
        let mut tree = Tree::new();
        let mut sorted: BTreeMap<String, (Thing, u32)> = BTreeMap::new();
        for (path, thing, mode) in entries {
            sorted.insert(path, (thing, mode));
        }
        for (path, (thing, mode)) in sorted {
            let parent = path.rsplit_once('/').map(|(parent, _)| parent);
            if parent.is_none_or(|parent| matches!(tree.get(parent), Some((Thing::Folder, ..)))) {
                tree.insert(path, (thing, mode, 0));
            }
        }
        tree
    })
}

proptest! {
    /// Whatever the project was and is, and whatever the machine made in between.
    #[test]
    fn applying_the_plan_gives_the_project(
        mut steps in proptest::collection::vec(trees(), 1..5),
        touched in any::<bool>(),
        made in proptest::collection::btree_set("[ab]/made|made", 0..3),
    ) {
        let (mut guest, mut index) = (Tree::new(), Index::default());
        let mut before = Tree::new();
        for (n, source) in steps.iter_mut().enumerate() {
            // A file that says the same keeps its time, unless it is touched; another one has another time.
            for (path, (thing, _, mtime)) in source.iter_mut().filter(|(_, (thing, ..))| matches!(thing, Thing::File(_))) {
                let same = before.get(path).filter(|(old, ..)| old == thing && !touched);
                *mtime = same.map_or(OLD + n as i128, |(_, _, mtime)| *mtime);
            }
            let (plan, _) = planned(source, &index);
            for outgoing in &plan.send {
                let path = text(&outgoing.entry.path);
                prop_assert!(before.get(&path).map(|old| &old.0) != Some(&source[&path].0), "{path} is sent in vain");
            }
            index = apply(plan, source, &mut guest);
            for (path, thing) in &*source {
                prop_assert_eq!(guest.get(path), Some(thing), "{}", path);
            }
            let extra: Vec<_> = guest.keys().filter(|path| !source.contains_key(*path)).cloned().collect();
            for path in extra {
                let holds_made = path.ends_with("made") || guest.contains_key(&format!("{path}/made"));
                prop_assert!(holds_made, "{path} should be gone");
            }
            prop_assert!(planned(source, &index).0.is_empty(), "a second time there is nothing to do");
            for path in &made {
                let parent = path.rsplit_once('/').map(|(parent, _)| parent);
                if parent.is_none_or(|parent| matches!(guest.get(parent), Some((Thing::Folder, ..)))) {
                    guest.insert(path.clone(), (file("made"), 0o600, 0));
                }
            }
            before = source.clone();
        }
    }
}

proptest! {
    /// Killed at any step, any number of times, while the project goes on changing.
    #[test]
    fn a_copy_that_was_cut_off_is_made_good_by_the_next(
        mut cut in proptest::collection::vec((trees(), 0usize..12), 1..5),
        mut last in trees(),
    ) {
        let date = |source: &mut Tree, n: usize| {
            for (thing, _, mtime) in source.values_mut() {
                if matches!(thing, Thing::File(_)) {
                    *mtime = OLD + n as i128;
                }
            }
        };
        let (mut guest, mut index) = (Tree::new(), Index::default());
        for (n, (source, steps)) in cut.iter_mut().enumerate() {
            date(source, n);
            let (plan, _) = planned(source, &index);
            let noted = plan.under_way(&index);
            let read_back = Index::parse(&noted.to_bytes().unwrap()).unwrap();
            prop_assert_eq!(&read_back, &noted);
            apply_some(&plan, source, &mut guest, *steps);
            index = noted;
        }
        date(&mut last, cut.len());
        let (plan, _) = planned(&last, &index);
        let index = apply(plan, &last, &mut guest);
        prop_assert_eq!(&guest, &last);
        prop_assert!(planned(&last, &index).0.is_empty());
    }
}
