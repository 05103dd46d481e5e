//! What is copied of a local project, and how far that is.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, symlink};

use iii_protocol::api::Phase;

use super::person::Person;
use super::project::Local;

const FILES: usize = 2000;
/// Takes longer than it takes to say how far a copy is.
const LARGE_BYTES: u64 = 64 << 20;

/// A project of many small files and a large one.
fn large() -> Local {
    let local = Local::new("  setup: ''\n  install: ''\n");
    for number in 0..FILES {
        local.write(&format!("many/{}/{number}", number % 20), &number.to_string());
    }
    File::create(local.folder().join("much")).unwrap().set_len(LARGE_BYTES).unwrap();
    local.bed.write_config("workers: []\n");
    local
}

/// Its manifest, `greeting`, `requirements.txt`, `much`, `many` and the folders in it.
const COPIED: usize = FILES + 5 + 20;

fn assert_whole(local: &Local) {
    local.bed.wait_phase("app", Phase::Running);
    assert_eq!(
        local.sh("find many -type f | wc -l; cat many/19/1999; echo; stat -c %s much"),
        format!("{FILES}\n1999\n{LARGE_BYTES}\n")
    );
}

#[test]
fn a_copy_of_many_files_is_told_once_where_lines_stay() {
    let local = large();
    let daemon = local.bed.daemon();
    let added = local.bed.iii(&["worker", "add", "./app"]);
    let told = added.stderr;
    assert_eq!(added.code, Some(0), "{told}");
    let copying = format!("app: booting, copying the project: {COPIED} to copy\n");
    assert!(told.contains(&copying), "{told}");
    assert_eq!(told.matches("copying the project").count(), 1, "{told}");
    local.bed.until("the daemon tells of it", || daemon.output().contains("app  copying the project\n"));
    assert_whole(&local);
}

#[test]
fn a_copy_of_many_files_shows_how_far_it_is_on_a_terminal() {
    let local = large();
    let _daemon = local.bed.daemon();
    let mut person = Person::runs(&local.bed, &["worker", "add", "./app"], &[]);
    person.sees(&format!(" of {COPIED}, "));
    person.sees("app: added, running");
    let (code, shown) = person.leaves();
    assert_eq!(code, 0, "{shown}");
    assert!(shown.contains("copying the project: "), "{shown}");
    assert_whole(&local);
}

#[test]
fn links_inside_the_project_are_kept_and_those_out_of_it_are_refused_with_a_warning() {
    let local = Local::new("  setup: ''\n  install: ''\n");
    local.write("sub/tool", "#!/bin/sh\necho from the tool\n");
    fs::set_permissions(local.folder().join("sub/tool"), fs::Permissions::from_mode(0o750)).unwrap();
    for (target, name) in [
        ("greeting", "near"),
        ("../greeting", "sub/up"),
        ("sub", "folder"),
        ("nowhere", "dangling"),
        ("/etc/passwd", "absolute"),
        ("../../config.yaml", "sub/out"),
    ] {
        symlink(target, local.folder().join(name)).unwrap();
    }
    local.bed.write_config("workers: []\n");
    let _daemon = local.bed.daemon();
    let added = local.bed.iii(&["worker", "add", "./app"]);
    let told = added.stderr;
    assert_eq!(added.code, Some(0), "{told}");
    local.bed.wait_phase("app", Phase::Running);
    let events = local.events();
    for refused in
        ["absolute is a link to an absolute path", "sub/out is a link that leads out of the project"]
    {
        assert!(told.contains(&format!("warning: {refused}")), "{told}");
        assert!(events.contains(refused), "{events}");
    }
    assert!(!told.contains("warning: near") && !told.contains("dangling"), "{told}");
    assert_eq!(
        local.sh(
            "cat near sub/up; for link in near sub/up folder dangling; do readlink $link; done; folder/tool"
        ),
        "hellohellogreeting\n../greeting\nsub\nnowhere\nfrom the tool\n"
    );
    assert_eq!(local.sh("ls -a . sub | grep -c -e absolute -e out; stat -c %a sub/tool"), "0\n750\n");
    // What it leads to is what counts, also after it was changed there.
    local.write("greeting", "changed");
    fs::remove_file(local.folder().join("near")).unwrap();
    symlink("/etc/hostname", local.folder().join("near")).unwrap();
    local.restart();
    local.bed.wait_phase("app", Phase::Running);
    assert_eq!(local.sh("cat sub/up; test -L near || echo gone"), "changedgone\n");
    assert!(local.events().contains("near is a link to an absolute path"));
}
