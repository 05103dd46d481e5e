//! What only a whole machine can tell of its sessions: users, owners, folders, and who runs beside whom.

use std::fs;
use std::io::Write as _;
use std::process::Stdio;

use iii_protocol::api::Phase;
use serde_json::json;

use crate::scenarios::{Bed, Daemon, shell_layer};
use crate::support::registry::image;

const SERVE: &str = "while :; do sleep 1234 & wait $!; done";

/// The running worker `web`, whose own user is `app`.
fn web() -> (Bed, Daemon) {
    let bed = Bed::new();
    let config = json!({
        "Entrypoint": ["/bin/sh", "-c", SERVE],
        "User": "app",
        "Env": ["OF_IMAGE=image", "BOTH=image"],
    });
    let reference = bed.push("web", &image(&[shell_layer()], config));
    bed.configure(&[bed.entry("web", &reference, &["config: { BOTH: config }"])]);
    let daemon = bed.daemon();
    bed.wait_phase("web", Phase::Running);
    (bed, daemon)
}

fn exec(bed: &Bed, args: &[&str], script: &str) -> String {
    bed.ok(&[&["worker", "exec", "web"], args, &["--", "/bin/sh", "-c", script]].concat())
}

#[test]
fn a_session_is_its_workers_user_or_the_one_that_was_asked_for() {
    let (bed, _daemon) = web();
    for (user, ids) in [
        (None, "1234\n2345\n2345 77\n"),
        (Some("root"), "0\n0\n0\n"),
        (Some("app:extra"), "1234\n77\n77\n"),
        (Some("1234"), "1234\n2345\n2345 77\n"),
        (Some("4321:9"), "4321\n9\n9\n"),
        (Some("4321"), "4321\n0\n0\n"),
    ] {
        let args = user.map_or(vec![], |user| vec!["-u", user]);
        assert_eq!(exec(&bed, &args, "id -u; id -g; id -G"), ids, "{user:?}");
    }
    for (user, told) in [("nobody", "user `nobody`"), ("app:wheel", "group `wheel`")] {
        let run = bed.iii(&["worker", "exec", "-u", user, "web", "true"]);
        assert_eq!(run.code, Some(125), "{run:?}");
        assert!(run.stderr.contains(told), "{run:?}");
    }
}

#[test]
fn a_session_has_its_workers_environment_and_begins_in_the_workspace() {
    let (bed, _daemon) = web();
    assert_eq!(exec(&bed, &[], "pwd; echo $OF_IMAGE $BOTH"), "/workspace\nimage config\n");
    let given = ["-e", "BOTH=session", "-w", "/tmp"];
    assert_eq!(exec(&bed, &given, "pwd; echo $OF_IMAGE $BOTH"), "/tmp\nimage session\n");
}

#[test]
fn a_session_sees_its_worker_and_other_sessions_and_no_zombie() {
    let (bed, _daemon) = web();
    exec(&bed, &["-d"], "(sleep 0 &); (sleep 0 &); exec sleep 4321");
    bed.until("the worker and the session that sleeps on are seen, and no zombie", || {
        let seen = exec(&bed, &["-u", "root"], "ps -o stat,args");
        let is_zombie = |line: &str| line.trim_start().starts_with('Z');
        let others = seen.contains("sleep 1234") && seen.contains("sleep 4321");
        others && !seen.contains("sleep 0") && !seen.lines().any(is_zombie)
    });
}

#[test]
fn copies_belong_to_root_or_with_archive_to_whom_they_belonged() {
    let (bed, _daemon) = web();
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let owner = |path: &str| exec(&bed, &[], &format!("stat -c '%u:%g %a' {path}"));
    let local = bed.project().join("file");
    fs::write(&local, "bytes").unwrap();
    fs::set_permissions(&local, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
    bed.ok(&["worker", "cp", "file", "web:/tmp/plain"]);
    assert_eq!(owner("/tmp/plain"), "0:0 640\n");
    bed.ok(&["worker", "cp", "-a", "file", "web:/tmp/kept"]);
    assert_eq!(owner("/tmp/kept"), format!("{uid}:{gid} 640\n"));

    // Out of the worker as a stream the owners are those that the worker knows, and so they go in again.
    exec(
        &bed,
        &["-u", "root"],
        "mkdir /tmp/many && cd /tmp/many && touch a b && chown 1234:77 a && ln -s a c",
    );
    let stream = bed.command(&["worker", "cp", "web:/tmp/many", "-"]).output().unwrap().stdout;
    for (flags, into, expected) in
        [(&[][..], "/tmp/as-root", "0:0\n0:0\n0:0\n"), (&["-a"], "/tmp/as-was", "1234:77\n0:0\n0:0\n")]
    {
        exec(&bed, &[], &format!("mkdir {into}"));
        let to = format!("web:{into}");
        let mut child = bed.command(&[&["worker", "cp"], flags, &["-", &to]].concat());
        let mut child = child.stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&stream).unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(exec(&bed, &[], &format!("cd {into}/many && stat -c %u:%g a b c")), expected, "{flags:?}");
    }

    // To this host all becomes the caller's, whoever it belonged to.
    bed.ok(&["worker", "cp", "web:/tmp/many", "here"]);
    let here = fs::metadata(bed.project().join("here/a")).unwrap();
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!((here.uid(), here.gid()), (uid.as_raw(), gid.as_raw()));
    if !uid.is_root() {
        let run = bed.iii(&["worker", "cp", "-a", "web:/tmp/many", "elsewhere"]);
        assert_eq!(run.code, Some(1), "{run:?}");
        assert!(run.stderr.contains("only root can give files to other owners"), "{run:?}");
    }
}
