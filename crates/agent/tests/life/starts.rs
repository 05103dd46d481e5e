//! What a workload finds when it starts, and what is said when it cannot.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use iii_protocol::exit::ExitCause;
use iii_protocol::guest::{BootPlan, KIND_PLAN, RootPlan, VERSION};

use crate::shim::{Shim, boot_plan, live, process, sh};

fn file(shim: &Shim, name: &str, content: &[u8], mode: u32) -> String {
    let path = shim.path(name);
    fs::write(&path, content).expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
    path
}

#[test]
fn the_environment_is_the_planned_one_and_nothing_else() {
    let mut plan = process(&["env"]);
    plan.env = vec![
        ("B".into(), "first".into()),
        ("PATH".into(), "/usr/bin:/bin".into()),
        ("MULTI".into(), "a\nb = c".into()),
        ("B".into(), "last".into()),
    ];
    assert_eq!(live(plan).text(), "B=last\nPATH=/usr/bin:/bin\nMULTI=a\nb = c\n");
}

#[test]
fn arguments_arrive_as_they_are() {
    let life = live(process(&["printf", "[%s]", "a b", "", "*", "ä\n"]));
    assert_eq!(life.text(), "[a b][][*][ä\n]");
}

#[test]
fn a_missing_working_directory_is_made() {
    let mut shim = Shim::new();
    let mut plan = process(&["pwd"]);
    plan.cwd = shim.path("deep/down");
    let cwd = plan.cwd.clone();
    shim.plan(plan);
    assert_eq!(shim.hear_all().text(), format!("{cwd}\n"));
}

#[test]
fn a_working_directory_that_is_a_file_is_named() {
    let mut shim = Shim::new();
    let mut plan = process(&["pwd"]);
    plan.cwd = file(&shim, "file", b"", 0o644);
    shim.plan(plan);
    assert_eq!(shim.hear_all().could_not_start().0, "working directory");
}

#[test]
fn a_workload_starts_with_default_signals_no_input_and_no_stray_files() {
    const SCRIPT: &str = "grep -hE 'Sig(Blk|Ign)' /proc/self/status; cat; umask; ls /proc/self/fd";
    let life = live(sh(SCRIPT));
    let (status, files) =
        life.text().split_once("0022\n").map(|(a, b)| (a.to_owned(), b.to_owned())).expect("umask");
    let masks: Vec<u64> = status
        .lines()
        .map(|line| u64::from_str_radix(line.split_once('\t').expect("a mask").1, 16).expect("hexadecimal"))
        .collect();
    // Signals 32 and 33 belong to the C library, which lets nobody change them.
    assert_eq!(masks.iter().map(|mask| mask & !(3 << 31)).collect::<Vec<_>>(), [0, 0], "{status}");
    // 3 is the folder that `ls` reads. What leaks into every child of this test ends at the agent.
    assert_eq!(files, "0\n1\n2\n3\n");
}

#[test]
fn a_workload_leads_its_own_session() {
    let life = live(sh("echo $$ $(cut -d' ' -f5,6 /proc/$$/stat)"));
    let pid = life.started.as_ref().expect("started").pid;
    assert_eq!(life.text(), format!("{pid} {pid} {pid}\n"));
}

#[test]
fn a_user_of_the_image_is_taken_on_with_its_groups() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: switching users needs root");
        return;
    }
    let mut plan = sh("id -u; id -g; id -G; echo $HOME; grep -c 'Groups:.*[0-9]' /proc/self/status");
    plan.user = "12345:23456".into();
    assert_eq!(live(plan.clone()).text(), "12345\n23456\n23456\n/\n0\n");
    plan.user = "root".into();
    let life = live(plan);
    assert!(life.text().starts_with("0\n0\n"), "{}", life.text());
}

#[test]
fn a_user_that_does_not_exist_is_named() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: users are only looked up by root");
        return;
    }
    let mut plan = process(&["true"]);
    plan.user = "no-such-user".into();
    let life = live(plan);
    let (what, message, _) = life.could_not_start();
    assert_eq!((what, message), ("user", "user `no-such-user` is not in the image's /etc/passwd"));
}

#[test]
fn a_command_that_is_nowhere_in_the_path_is_named_with_the_path() {
    let life = live(process(&["no-such-command"]));
    let (what, message, hint) = life.could_not_start();
    assert_eq!(what, "exec");
    assert_eq!(message, "`no-such-command`: not found in PATH (/usr/local/bin:/usr/bin:/bin)");
    assert!(hint.contains("Entrypoint"), "{hint}");
    assert_eq!(life.exit.uptime_ms, 0);
}

#[test]
fn no_command_at_all_is_said() {
    let life = live(process(&[]));
    assert_eq!(life.could_not_start().1, "the image names no command");
}

#[test]
fn a_missing_file_one_that_may_not_run_and_one_without_interpreter_are_told_apart() {
    for (content, mode, message) in [
        (None, 0, "no such file or directory"),
        (Some(&b"#!/bin/sh\n"[..]), 0o644, "permission denied (the file is not executable)"),
        (
            Some(b"#!/no/such/python\n"),
            0o755,
            "its interpreter `/no/such/python` does not exist in the image",
        ),
        (Some(b"echo\n"), 0o755, "exec format error (neither an ELF program nor a script with a `#!` line)"),
    ] {
        let mut shim = Shim::new();
        let path = shim.path("program");
        if let Some(content) = content {
            file(&shim, "program", content, mode);
        }
        shim.plan(process(&[&path]));
        let life = shim.hear_all();
        assert_eq!(life.could_not_start().1, format!("`{path}`: {message}"));
    }
}

#[test]
fn another_version_of_the_shim_is_refused() {
    let mut shim = Shim::new();
    let plan = BootPlan { version: VERSION + 1, ..boot_plan(process(&["true"])) };
    shim.say(KIND_PLAN, &plan);
    assert_eq!(shim.hear_all().could_not_start().0, "boot plan");
}

#[test]
fn a_plan_for_a_guest_mounts_nothing_on_a_host() {
    let mut shim = Shim::new();
    let root = RootPlan::Overlay { lower: "/dev/null".into(), upper: "/dev/null".into() };
    shim.say(KIND_PLAN, &BootPlan { root, ..boot_plan(process(&["true"])) });
    assert_eq!(shim.hear_all().could_not_start().0, "boot plan");
}

#[test]
fn a_stop_right_after_the_plan_ends_it_whether_it_ran_already_or_not() {
    for _ in 0..10 {
        let mut shim = Shim::new();
        shim.plan(sh("exec sleep 600"));
        shim.stop(15, 60_000);
        let life = shim.hear_all();
        match &life.exit.cause {
            ExitCause::CouldNotStart { message, .. } => {
                assert_eq!(message, "stopped before the workload was started");
                assert!(life.started.is_none());
            }
            other => assert_eq!(*other, ExitCause::Signal { signal: 15 }),
        }
    }
}

#[test]
fn a_host_that_leaves_before_the_plan_leaves_no_agent() {
    let mut shim = Shim::new();
    shim.hang_up();
    assert!(!shim.wait_for_agent().success());
}

#[test]
fn the_agent_is_no_command_for_people() {
    let output = Command::new(env!("CARGO_BIN_EXE_iii-agent")).env_clear().output().expect("runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("not a command"));
}
