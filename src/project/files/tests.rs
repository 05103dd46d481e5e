use std::ffi::OsString;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::process::Command;

use proptest::prelude::*;

use super::*;

struct Project {
    dir: tempfile::TempDir,
}

impl Project {
    fn new(files: &[&str]) -> Project {
        let project = Project { dir: tempfile::tempdir().unwrap() };
        for file in files {
            project.write(file, "x");
        }
        project
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn list(&self, exclude: &[&str]) -> Files {
        let exclude: Vec<_> = exclude.iter().map(|&pattern| pattern.to_owned()).collect();
        list(self.dir.path(), &exclude).unwrap()
    }

    fn paths(&self, exclude: &[&str]) -> Vec<String> {
        self.list(exclude).entries.iter().map(|entry| shown(&entry.path)).collect()
    }
}

#[test]
fn folders_of_dependencies_and_builds_are_left_out_wherever_they_are() {
    let project = Project::new(&[
        "a.py",
        "node_modules/x/y",
        "sub/node_modules/x",
        ".git/HEAD",
        "vendored/.git",
        "target/debug/x",
        "pkg/__pycache__/x.pyc",
        ".venv/bin/python",
        "dist/x.js",
        "bin/dist",
        ".env",
    ]);
    symlink("../elsewhere", project.path("sub/target")).unwrap();
    let found = project.list(&[]);
    let paths: Vec<_> = found.entries.iter().map(|entry| shown(&entry.path)).collect();
    assert_eq!(
        paths,
        [".env", "a.py", "bin", "bin/dist", "pkg", "sub", "vendored"],
        "a file `dist` is no such folder"
    );
    let left_out: Vec<_> = found.left_out.iter().map(|path| shown(path)).collect();
    let expected = [
        ".git",
        ".venv",
        "dist",
        "node_modules",
        "pkg/__pycache__",
        "sub/node_modules",
        "sub/target",
        "target",
        "vendored/.git",
    ];
    assert_eq!(left_out, expected);
    assert_eq!(found.skipped, []);
}

#[test]
fn patterns_mean_what_they_mean_to_git_and_the_strongest_counts() {
    let files = [
        "a.log",
        "keep.log",
        "sub/b.log",
        "sub/c.txt",
        "sub/keep.log",
        "dist/out.js",
        "data/big",
        "data/small",
    ];
    let project = Project::new(&files);
    project.write(".iiiignore", "# logs\n*.log\n!keep.log\n!dist/\n/data/*\n!/data/small\n\n");
    project.write("sub/.iiiignore", "keep.log\n");
    let expected = [
        ".iiiignore",
        "data",
        "data/small",
        "dist",
        "dist/out.js",
        "keep.log",
        "sub",
        "sub/.iiiignore",
        "sub/c.txt",
    ];
    assert_eq!(project.paths(&[]), expected);
    // The command line wins over files, and a pattern with `!` takes back in.
    let found = project.paths(&["*.txt", "/dist", "!sub/b.log", ".iiiignore"]);
    assert_eq!(found, ["data", "data/small", "keep.log", "sub", "sub/b.log"]);
}

#[test]
fn a_pattern_that_is_none_is_told_with_its_line() {
    let project = Project::new(&["a"]);
    let told = |exclude: &[String]| list(project.dir.path(), exclude).unwrap_err().to_string();
    let error = told(&["[z-a]".to_owned()]);
    assert!(error.starts_with("--exclude: `[z-a]` is not a pattern: "), "{error}");
    project.write(".iiiignore", "ok\n[b-a]\n");
    let error = told(&[]);
    assert!(error.contains(".iiiignore:2: `[b-a]` is not a pattern: "), "{error}");
    fs::write(project.path(".iiiignore"), b"\xff").unwrap();
    assert!(told(&[]).contains("cannot read"), "{}", told(&[]));
}

#[test]
fn modes_sizes_times_and_links_are_kept() {
    let project = Project::new(&["run.sh", "d/empty/x"]);
    fs::remove_file(project.path("d/empty/x")).unwrap();
    project.write("run.sh", "12345");
    fs::set_permissions(project.path("run.sh"), fs::Permissions::from_mode(0o751)).unwrap();
    fs::set_permissions(project.path("d"), fs::Permissions::from_mode(0o1700)).unwrap();
    symlink("../run.sh", project.path("d/link")).unwrap();
    let found = project.list(&[]);
    let meta = fs::metadata(project.path("run.sh")).unwrap();
    let mtime_ns = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
    let entry = |path: &str, mode, kind| FileEntry { path: path.into(), mode, kind };
    let mode = |path: &str| fs::symlink_metadata(project.path(path)).unwrap().mode() & MODE_BITS;
    assert_eq!(
        found.entries,
        [
            entry("d", 0o1700, EntryKind::Folder),
            entry("d/empty", mode("d/empty"), EntryKind::Folder),
            entry("d/link", 0o777, EntryKind::Link { target: b"../run.sh".to_vec() }),
            entry("run.sh", 0o751, EntryKind::File { size: 5, mtime_ns }),
        ]
    );
    assert_eq!(found.bytes(), 5);
}

#[test]
fn what_cannot_be_copied_is_skipped_and_told() {
    let project = Project::new(&["a", "sub/b"]);
    symlink("/etc/passwd", project.path("absolute")).unwrap();
    symlink("../..", project.path("sub/out")).unwrap();
    symlink("sub/gone", project.path("broken")).unwrap();
    symlink("loop", project.path("loop")).unwrap();
    nix::unistd::mkfifo(&project.path("sub/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(project.path("socket")).unwrap();
    let found = project.list(&[]);
    let paths: Vec<_> = found.entries.iter().map(|entry| shown(&entry.path)).collect();
    assert_eq!(paths, ["a", "broken", "loop", "sub", "sub/b"]);
    let skipped: Vec<_> = found.skipped.iter().map(|(path, why)| (shown(path), *why)).collect();
    let expected = [
        ("absolute", Skip::Absolute),
        ("socket", Skip::Special),
        ("sub/out", Skip::LeadsOut),
        ("sub/pipe", Skip::Special),
    ];
    assert_eq!(skipped, expected.map(|(path, why)| (path.to_owned(), why)));
    assert_eq!(project.list(&["socket", "pipe", "out", "absolute"]).skipped, [], "a rule is stronger");
}

#[test]
fn names_that_are_no_text_are_kept() {
    let project = Project::new(&[]);
    let odd = OsString::from_vec(b"caf\xe9 \n".to_vec());
    fs::create_dir(project.dir.path().join(&odd)).unwrap();
    fs::write(project.dir.path().join(&odd).join("x.log"), "").unwrap();
    fs::write(project.dir.path().join(&odd).join("y"), "").unwrap();
    let found = project.list(&["*.log"]);
    let paths: Vec<_> = found.entries.iter().map(|entry| entry.path.as_slice()).collect();
    assert_eq!(paths, [&b"caf\xe9 \n"[..], b"caf\xe9 \n/y"]);
    assert_eq!(shown(paths[0]), "caf\u{fffd} \\n");
}

#[test]
fn a_project_that_is_too_deep_is_refused() {
    let project = Project::new(&[&format!("{}x", "d/".repeat(MAX_DEPTH + 1))]);
    let error = list(project.dir.path(), &[]).unwrap_err();
    assert!(error.to_string().ends_with("has folders more than 128 deep in it"), "{error}");
    assert!(error.hint().unwrap().contains(".iiiignore"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Random patterns over a fixed tree, with git as the judge.
    #[test]
    fn git_agrees_about_patterns(
        patterns in proptest::collection::vec("!?/?(a|b|\\*|a\\*|\\*\\*|\\?)(/(a|b|\\*|c))?/?", 1..5),
        below in proptest::collection::vec("!?/?(a|b|c|\\*)/?", 0..3),
    ) {
        let files = ["a", "b/a", "b/b/a", "b/b/c", "c/a/a", "c/a/b", "c/b", "ab/a", "ab/c/a"];
        let project = Project::new(&files);
        for (name, lines) in [("", &patterns), ("c/", &below)] {
            for file in [".gitignore", ".iiiignore"] {
                project.write(&format!("{name}{file}"), &lines.join("\n"));
            }
        }
        let git = |args: &[&str]| {
            let mut command = Command::new("git");
            command.current_dir(project.dir.path()).args(args).env("GIT_CONFIG_GLOBAL", "/dev/null");
            let output = command.env("GIT_CONFIG_SYSTEM", "/dev/null").output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        git(&["init", "-q"]);
        let by_git = git(&["ls-files", "--others", "--exclude-standard"]);
        let mut by_git: Vec<_> = by_git.lines().map(str::to_owned).collect();
        by_git.sort();
        let listed = project.list(&[]).entries.into_iter();
        let ours: Vec<_> = listed.filter(|e| e.kind != EntryKind::Folder).map(|e| shown(&e.path)).collect();
        prop_assert_eq!(ours, by_git, "{:?} {:?}", patterns, below);
    }
}
