use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::PathBuf;

use iii_archive::read::EntryKind;
use iii_archive::write::{Head, Writer};
use tempfile::TempDir;

use super::*;

/// A folder to be updated, `to`, beside something precious.
struct Bed(TempDir);

impl Bed {
    fn new() -> Bed {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("to")).unwrap();
        fs::create_dir_all(dir.path().join("precious/deep")).unwrap();
        fs::write(dir.path().join("precious/deep/file"), "precious").unwrap();
        fs::set_permissions(dir.path().join("precious/deep/file"), fs::Permissions::from_mode(0o640))
            .unwrap();
        Bed(dir)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join("to").join(name)
    }

    /// Makes files (`a/b`), empty folders (`a/`) and links (`a -> b`).
    fn with(self, things: &[&str]) -> Bed {
        for thing in things {
            if let Some((link, target)) = thing.split_once(" -> ") {
                fs::create_dir_all(self.at(link).parent().unwrap()).unwrap();
                symlink(target, self.at(link)).unwrap();
            } else if thing.ends_with('/') {
                fs::create_dir_all(self.at(thing)).unwrap();
            } else {
                fs::create_dir_all(self.at(thing).parent().unwrap()).unwrap();
                fs::write(self.at(thing), *thing).unwrap();
            }
        }
        self
    }

    /// Sends records and an archive.
    #[track_caller]
    fn update(&self, records: &[&str], archive: &[u8]) -> Result<(), String> {
        let list: Vec<u8> = records.iter().flat_map(|record| [record.as_bytes(), b"\0"].concat()).collect();
        let input = [&list[..], archive].concat();
        let (path, mut warnings) = (self.at(""), Warnings::default());
        let changes = u32::try_from(list.len()).unwrap();
        let result = update(path.to_str().unwrap(), changes, &mut &input[..], &mut warnings);
        let precious = self.0.path().join("precious/deep/file");
        assert_eq!(fs::read(&precious).unwrap(), b"precious");
        assert_eq!(precious.metadata().unwrap().mode() & 0o7777, 0o640);
        result.map_err(|error| error.message)
    }

    /// All names in it, in order.
    fn names(&self) -> Vec<String> {
        let (mut names, mut waiting) = (Vec::new(), vec![self.at("")]);
        while let Some(folder) = waiting.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                names.push(path.strip_prefix(self.at("")).unwrap().to_str().unwrap().to_owned());
                if path.is_dir() && !path.is_symlink() {
                    waiting.push(path);
                }
            }
        }
        names.sort();
        names
    }
}

fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (path, body) in files {
        let (path, size) = (path.as_bytes(), body.len() as u64);
        let kind = EntryKind::File;
        let head = Head { path, kind, link: b"", size, mode: 0o640, uid: 0, gid: 0, mtime: (5, 600_000_000) };
        writer.head(&head).unwrap();
        writer.body(body.as_bytes()).unwrap();
        writer.pad(size).unwrap();
    }
    writer.finish().unwrap()
}

#[test]
fn each_record_does_what_it_says_and_no_more() {
    let bed = || {
        Bed::new().with(&["a", "d/e/f", "d/g", "empty/", "file -> a", "folder -> d", "out -> ../precious"])
    };
    let all = ["a", "d", "d/e", "d/e/f", "d/g", "empty", "file", "folder", "out"].map(String::from).to_vec();
    for (record, gone) in [
        ("F a", &["a"][..]),
        ("F d/e/f", &["d/e/f"]),
        ("F file", &["file"]),
        ("F out", &["out"]),
        ("F empty", &[]),
        ("F none", &[]),
        ("F none/none", &[]),
        ("F a/none", &[]),
        ("E empty", &["empty"]),
        ("E d", &[]),
        ("E a", &[]),
        ("E out", &["out"]),
        ("E none/none", &[]),
        ("T d", &["d", "d/e", "d/e/f", "d/g"]),
        ("T d/e", &["d/e", "d/e/f"]),
        ("T folder", &["folder"]),
        ("T out", &["out"]),
        ("T a", &["a"]),
        ("T none", &[]),
        ("T a/none", &[]),
    ] {
        let bed = bed();
        assert_eq!(bed.update(&[record], b""), Ok(()), "{record}");
        let left: Vec<String> = all.iter().filter(|name| !gone.contains(&name.as_str())).cloned().collect();
        assert_eq!(bed.names(), left, "{record}");
    }
}

#[test]
fn names_are_bytes_with_spaces_and_newlines_too() {
    let bed = Bed::new().with(&["a b", " c", "d\ne", "M 7 8"]);
    assert_eq!(bed.update(&["F a b", "F  c", "F d\ne", "F M 7 8"], b""), Ok(()));
    assert_eq!(bed.names(), Vec::<String>::new());
}

#[test]
fn no_link_on_the_way_is_followed() {
    for record in ["F", "E", "T", "M 777 0"] {
        for path in ["out/deep/file", "out/deep", "in/deep/file", "up/precious/deep", "d/out/deep"] {
            let bed = Bed::new().with(&[
                "d/deep/file",
                "d/out -> ../../precious",
                "out -> ../precious",
                "in -> d",
                "up -> ..",
            ]);
            let before = bed.names();
            assert_eq!(bed.update(&[&format!("{record} {path}")], b""), Ok(()));
            assert_eq!(bed.names(), before, "{record} {path}");
        }
    }
}

#[test]
fn a_tree_goes_without_what_its_links_lead_to() {
    let bed = Bed::new().with(&["d/e/out -> ../../../precious", "d/f -> ../keep", "keep", "d/e/g/h/"]);
    assert_eq!(bed.update(&["T d"], b""), Ok(()));
    assert_eq!(bed.names(), ["keep"]);
}

#[test]
fn a_deep_tree_goes_on_a_small_stack_and_with_few_files() {
    let bed = Bed::new().with(&["keep"]);
    fs::create_dir_all(bed.at("d").join("x/".repeat(1500))).unwrap();
    fs::write(bed.at("d/x/x/x/file"), "").unwrap();
    let folder = open_or_make(&bed.at("")).unwrap();
    let thread = std::thread::Builder::new().stack_size(64 * 1024);
    thread.spawn(move || remove_tree(&folder, b"d")).unwrap().join().unwrap().unwrap();
    assert_eq!(bed.names(), ["keep"]);
}

#[test]
fn what_is_no_path_or_no_record_changes_nothing() {
    for record in [
        "",
        "F",
        "F ",
        "F /",
        "F /a",
        "F a/",
        "F a//b",
        "F .",
        "F ..",
        "F ../precious",
        "F d/../a",
        "F d/./e",
        "T ..",
        "X a",
        "f a",
        "FF a",
        "M a",
        "M 644 a",
        "M 8 0 a",
        "M 10000 0 a",
        "M -1 0 a",
        "M 644 x a",
        "M 644 0 ",
        "M 644 99999999999999999999999999999 a",
    ] {
        let bed = Bed::new().with(&["a", "d/e"]);
        let error = bed.update(&[record, "T d"], b"").unwrap_err();
        assert_eq!(error, format!("the list of changes: `{record}` is none"));
        assert_eq!(bed.names(), ["a", "d", "d/e"]);
    }
}

#[test]
fn permissions_and_times_are_set_and_of_a_folder_only_permissions() {
    let bed = Bed::new().with(&["a", "d/", "b", "link -> a"]);
    let before = bed.at("d").metadata().unwrap().mtime();
    let records = ["M 4751 1700000000123456789 a", "M 700 1 d", "M 600 -1 b"];
    assert_eq!(bed.update(&records, b""), Ok(()));
    let of = |name: &str| {
        let meta = bed.at(name).metadata().unwrap();
        (meta.mode() & 0o7777, meta.mtime(), meta.mtime_nsec())
    };
    assert_eq!(of("a"), (0o4751, 1_700_000_000, 123_456_789));
    assert_eq!(of("b"), (0o600, -1, 999_999_999));
    assert_eq!((of("d").0, of("d").1), (0o700, before));
    for path in ["none", "none/a", "b/a", "link"] {
        assert_eq!(bed.update(&[&format!("M 777 0 {path}")], b""), Ok(()));
    }
    assert_eq!(of("a").0, 0o4751);
}

#[test]
fn records_come_in_order_and_then_the_archive() {
    let bed = Bed::new().with(&["a/b", "c", "keep"]);
    let new = archive(&[("a", "now a file"), ("n/m", "new")]);
    assert_eq!(bed.update(&["F a/b", "F c", "E a"], &new), Ok(()));
    assert_eq!(bed.names(), ["a", "keep", "n", "n/m"]);
    assert_eq!(fs::read_to_string(bed.at("a")).unwrap(), "now a file");
    let meta = bed.at("n/m").metadata().unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.mtime(), meta.mtime_nsec()), (0o640, 5, 600_000_000));
    // What was done before a failure stays, and nothing is done behind it.
    let error = bed.update(&["F a", "F ../x", "F keep"], &new).unwrap_err();
    assert!(error.contains("`F ../x` is none"), "{error}");
    assert_eq!(bed.names(), ["keep", "n", "n/m"]);
}

#[test]
fn a_list_that_ends_early_or_holds_too_long_a_record_is_an_error() {
    let bed = Bed::new().with(&["a"]);
    let path = bed.at("");
    let send = |changes: u32, input: &[u8]| {
        let result = update(path.to_str().unwrap(), changes, &mut &input[..], &mut Warnings::default());
        result.map_err(|error| error.message)
    };
    let early = Err("the list of changes: it ends too early".to_owned());
    for (changes, input) in [(4, &b""[..]), (4, b"F a"), (3, b"F a\0"), (8, b"F x\0"), (6, b"F x\0F y\0")] {
        assert_eq!(send(changes, input), early, "{input:?}");
    }
    let mut long = [b"F ".to_vec(), vec![b'x'; MAX_CHANGE_BYTES - 3], vec![0]].concat();
    let changes = u32::try_from(long.len()).unwrap();
    // As long as may be, but no name of a file.
    assert!(send(changes, &long).unwrap_err().contains("File name too long"));
    long.insert(2, b'x');
    assert!(send(changes + 1, &long).unwrap_err().ends_with("a record is longer than 8192 bytes"));
    assert_eq!(bed.names(), ["a"]);
}

#[test]
fn the_folder_is_made_when_it_is_missing_and_must_be_one() {
    let bed = Bed::new().with(&["file"]);
    let send = |path: &str, input: &[u8]| {
        let path = bed.at(path);
        update(path.to_str().unwrap(), 0, &mut &input[..], &mut Warnings::default())
    };
    send("deep/down", &archive(&[("a", "b")])).unwrap();
    assert_eq!(bed.names(), ["deep", "deep/down", "deep/down/a", "file"]);
    send("deep/down", b"").unwrap();
    let error = send("file", b"").unwrap_err().message;
    assert!(error.contains("Not a directory"), "{error}");
    // Garbage is no archive.
    assert!(send("deep", b"garbage").is_err());
}
