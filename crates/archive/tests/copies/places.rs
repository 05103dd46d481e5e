//! Where copies end up on a disk, and what is said when there is no place for them.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use iii_archive::{Destination, Layout, unpack};
use tempfile::TempDir;

use crate::tree::{GUEST, as_one, packed, unpacked};

/// `f` and `d/in`, and places to go to.
fn bed() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path();
    fs::write(top.join("f"), "new").unwrap();
    fs::create_dir(top.join("d")).unwrap();
    fs::write(top.join("d/in"), "in").unwrap();
    fs::create_dir(top.join("folder")).unwrap();
    fs::write(top.join("file"), "old").unwrap();
    dir
}

/// Copies as the command does; nothing, or what it says.
fn copy(dir: &TempDir, from: &str, to: &str) -> Result<(), String> {
    let contents = from.ends_with("/.");
    let layout = Layout::As { name: Some(from.trim_end_matches("/.").as_bytes().to_vec()), contents };
    let to = PathBuf::from(format!("{}/{to}", dir.path().display()));
    let (archive, _) = packed(&PathBuf::from(format!("{}/{from}", dir.path().display())));
    let unpacked = unpacked(&archive, &to, layout, GUEST);
    unpacked.map(|_| ()).map_err(|e| e.to_string().replace(dir.path().to_str().unwrap(), "TOP"))
}

fn text(dir: &TempDir, path: &str) -> Option<String> {
    fs::read_to_string(dir.path().join(path)).ok()
}

#[test]
fn copies_go_where_they_should() {
    for (from, to, gives, body) in [
        ("f", "x", "x", "new"),
        ("f", "file", "file", "new"),
        ("f", "folder", "folder/f", "new"),
        ("f", "folder/", "folder/f", "new"),
        ("f", "folder/g", "folder/g", "new"),
        ("d", "x", "x/in", "in"),
        ("d", "x/", "x/in", "in"),
        ("d/.", "x", "x/in", "in"),
        ("d", "folder", "folder/d/in", "in"),
        ("d/.", "folder", "folder/in", "in"),
        ("d/.", "folder/.", "folder/in", "in"),
    ] {
        let dir = bed();
        copy(&dir, from, to).unwrap();
        assert_eq!(text(&dir, gives).as_deref(), Some(body), "{from} to {to}");
    }
}

#[test]
fn what_has_no_place_says_so_and_changes_nothing() {
    for (from, to, says) in [
        ("f", "x/", "TOP/x/: the folder does not exist (nothing was written)"),
        ("f", "file/", "TOP/file/: it is not a folder (nothing was written)"),
        ("f", "no/where", "TOP/no/where: the folder TOP/no does not exist (nothing was written)"),
        ("d", "no/where", "TOP/no/where: the folder TOP/no does not exist (nothing was written)"),
        ("d", "file", "TOP/file: cannot copy a folder onto a file (nothing was written)"),
        ("f", "link", "TOP/link: it is a link, which is not followed (nothing was written)"),
        ("f", "dangling/", "TOP/dangling/: it is a link to nothing (nothing was written)"),
        (
            "f",
            "deep",
            "`f` in the archive: cannot overwrite directory with non-directory (nothing was written)",
        ),
        (
            "d",
            "shallow",
            "`d/` in the archive: cannot overwrite non-directory with directory (nothing was written)",
        ),
    ] {
        let dir = bed();
        symlink("folder", dir.path().join("link")).unwrap();
        symlink("nothing", dir.path().join("dangling")).unwrap();
        fs::create_dir_all(dir.path().join("deep/f")).unwrap();
        fs::create_dir(dir.path().join("shallow")).unwrap();
        fs::write(dir.path().join("shallow/d"), "").unwrap();
        let before = crate::tree::read(dir.path());
        assert_eq!(copy(&dir, from, to).as_ref().map_err(String::as_str), Err(says), "{from} to {to}");
        assert_eq!(crate::tree::read(dir.path()), before, "{from} to {to}");
    }
}

#[test]
fn a_destination_that_is_a_link_is_followed_when_that_is_said() {
    let dir = bed();
    symlink("folder", dir.path().join("link")).unwrap();
    symlink("file", dir.path().join("to-file")).unwrap();
    copy(&dir, "f", "link/").unwrap();
    assert_eq!(text(&dir, "folder/f").as_deref(), Some("new"));
    let (archive, _) = packed(&dir.path().join("f"));
    let follow = |path: &Path| {
        let to = Destination { path, layout: as_one(), follow: true };
        unpack(&archive[..], &to, GUEST, &mut |_| {}).unwrap();
    };
    fs::remove_file(dir.path().join("folder/f")).unwrap();
    follow(&dir.path().join("link"));
    assert_eq!(text(&dir, "folder/f").as_deref(), Some("new"));
    // The link stays one, and where it leads is what is overwritten.
    follow(&dir.path().join("to-file"));
    assert_eq!(text(&dir, "file").as_deref(), Some("new"));
    assert!(dir.path().join("to-file").is_symlink());
}

#[test]
fn a_tar_stream_needs_a_folder() {
    let dir = bed();
    let (archive, _) = packed(&dir.path().join("d"));
    for (to, says) in [("file", "it is not a folder"), ("x", "the folder does not exist")] {
        let error = unpacked(&archive, &dir.path().join(to), Layout::Inside, GUEST).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
    unpacked(&archive, &dir.path().join("folder"), Layout::Inside, GUEST).unwrap();
    assert_eq!(text(&dir, "folder/d/in").as_deref(), Some("in"));
}

#[test]
fn a_file_is_replaced_and_never_written_through() {
    let dir = bed();
    fs::hard_link(dir.path().join("file"), dir.path().join("other")).unwrap();
    copy(&dir, "f", "file").unwrap();
    assert_eq!(text(&dir, "file").as_deref(), Some("new"));
    assert_eq!(text(&dir, "other").as_deref(), Some("old"), "another name of the old file");
}

#[test]
fn an_archive_that_is_cut_off_leaves_whole_files_only_and_says_how_many() {
    let dir = bed();
    fs::write(dir.path().join("d/big"), vec![b'x'; 100_000]).unwrap();
    fs::write(dir.path().join("d/a"), vec![b'a'; 1000]).unwrap();
    let (archive, _) = packed(&dir.path().join("d"));
    let cut = archive.len() - 20_000;
    let error = unpacked(&archive[..cut], &dir.path().join("x"), as_one(), GUEST).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`d/big` in the archive: the tar stream ends too early (written before it: 2 entries, 1000 bytes of \
         files)"
    );
    let there: Vec<_> = fs::read_dir(dir.path().join("x")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(there, ["a"], "no half file, and nothing unfinished");
    let mode = dir.path().join("x").metadata().unwrap().permissions().mode();
    assert_eq!(mode, dir.path().join("d").metadata().unwrap().permissions().mode());
}

#[test]
fn an_archive_of_nothing_is_an_error() {
    let dir = bed();
    for archive in [&b""[..], &[0; 1024]] {
        let error = unpacked(archive, &dir.path().join("x"), as_one(), GUEST).unwrap_err();
        assert_eq!(error.to_string(), "the archive: it is empty (nothing was written)");
    }
}

#[test]
fn a_file_with_holes_keeps_its_content() {
    let dir = tempfile::tempdir().unwrap();
    let sparse = dir.path().join("sparse");
    let file = fs::File::create(&sparse).unwrap();
    file.set_len(3 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"middle", 1 << 20).unwrap();
    for format in ["gnu", "pax"] {
        let mut tar = std::process::Command::new("tar");
        tar.arg(format!("--format={format}")).args(["-Scf", "-", "-C"]).arg(dir.path()).arg("sparse");
        let archive = tar.output().unwrap().stdout;
        assert!(archive.len() < 1 << 20, "it was packed without its holes");
        let to = dir.path().join(format);
        unpacked(&archive, &to, as_one(), GUEST).unwrap();
        assert!(fs::read(&to).unwrap() == fs::read(&sparse).unwrap(), "{format}");
    }
}
