//! What a guest finds when it looks around.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use iii_protocol::api::Phase;
use iii_protocol::exit::ExitCause;
use serde_json::json;

use crate::scenarios::Bed;
use crate::scenarios::shell_layer;
use crate::support::registry::{Packing, Tree, image, layer};

#[test]
fn the_guest_is_a_whole_and_separate_machine() {
    let bed = Bed::new();
    let script = r#"
        hostname; echo "date $(date +%s)"; cat /etc/hosts; echo "resolv:"; cat /etc/resolv.conf; echo "end-resolv"
        grep -c . /proc/self/mounts >/dev/null
        for at in /proc /sys /dev /dev/pts /dev/shm /tmp /run /sys/fs/cgroup; do
            grep -q " $at " /proc/self/mounts && echo "mounted $at"
        done
        grep " / " /proc/self/mounts
        [ -d /workspace ] && echo "workspace is there"
        ip addr show lo | grep -q UP && echo "lo is up"
        ping -c 1 localhost >/dev/null && echo "localhost answers"
        ls /sys/class/net; echo "end-net"
        stat -c '%a' /tmp
        touch /root-is-writable && echo "root is writable"
        for at in / /tmp; do
            mknod $at/null c 1 3 && ! (: <$at/null) 2>/dev/null && echo "a node in $at opens nothing"
        done
        echo x >/dev/null && echo "/dev/null works"
        echo "cpus $(nproc)"
        free -m | grep Mem
        cat /proc/cmdline
        grep '^kernel ' /sys/fs/cgroup/workload/memory.stat
        cat /sys/fs/cgroup/cgroup.controllers
        df -m / | tail -n 1
        echo looked
        exec sleep 1000
    "#;
    let config = json!({ "Entrypoint": ["/bin/sh", "-c", script], "Env": ["SECRET_OF_IMAGE=x1y2z3"] });
    let reference = bed.push("look", &image(&[shell_layer()], config));
    let more = ["config: { PASSWORD: hunter2 }", "resources: { memory: 300, cpus: 1, disk: 2GiB }"];
    bed.configure(&[bed.entry("looker", &reference, &more)]);
    let _daemon = bed.daemon();
    bed.wait_log("looker", "looked\n");
    let log = bed.ok(&["worker", "logs", "looker"]);
    assert!(log.starts_with("looker\n"), "{log}");
    let date = log.lines().find_map(|line| line.strip_prefix("date ")).unwrap().parse::<i64>().unwrap();
    let since = bed.status("looker").unwrap().since.as_second();
    assert!((date - since).abs() <= 2, "the guest wrote at {date}, and the host saw it run at {since}");
    for expected in [
        "mounted /proc",
        "mounted /sys",
        "mounted /dev",
        "mounted /dev/pts",
        "mounted /dev/shm",
        "mounted /tmp",
        "mounted /run",
        "mounted /sys/fs/cgroup",
        "overlay / overlay",
        "workspace is there",
        "lo is up",
        "localhost answers",
        "root is writable",
        "a node in / opens nothing",
        "a node in /tmp opens nothing",
        "/dev/null works",
        "cpus 1",
        "\nkernel 0\n",
        "\n1777\n",
    ] {
        assert!(log.contains(expected), "`{expected}` is missing in\n{log}");
    }
    let hosts = log.lines().filter(|line| line.starts_with("127.0.0.1") && line.contains("localhost"));
    assert_eq!(hosts.count(), 1, "{log}");
    assert!(log.lines().any(|line| line.contains("looker") && line.starts_with("127.0.")), "{log}");
    let net = log.split("end-resolv").nth(1).unwrap().split("end-net").next().unwrap();
    assert_eq!(net.matches("eth").count(), 1, "one network device: {net}");
    assert!(!log.contains("hunter2") && !log.contains("x1y2z3"), "a secret on the kernel's command line");
    let memory: u64 = log
        .lines()
        .find(|l| l.starts_with("Mem:"))
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    assert!((200..=340).contains(&memory), "{memory} MiB");

    // Nothing of the user's is in any process's arguments on the host.
    for pid in bed.processes() {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        for bytes in [arguments, environment] {
            assert!(!String::from_utf8_lossy(&bytes).contains("hunter2"), "pid {pid} shows the secret");
        }
    }
    // None of the machine's threads interrupts another one by waking (the policy is the 41st field of proc(5), the 39th behind
    // the name).
    let vmm = bed.status("looker").unwrap().vmm_pid.unwrap();
    for task in fs::read_dir(format!("/proc/{vmm}/task")).unwrap() {
        let stat = fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
        let policy = stat.rsplit(") ").next().unwrap().split(' ').nth(38).unwrap();
        assert_eq!(policy.parse(), Ok(nix::libc::SCHED_BATCH), "{stat}");
    }
    // The console is kept apart from the log.
    assert!(!log.contains("Linux version") && bed.home().join("logs/looker/console.log").exists());
}

#[test]
fn the_workload_runs_as_the_images_user_with_its_groups() {
    let bed = Bed::new();
    for (user, ids, extra_group) in [
        ("app", "uid=1234(app) gid=2345(app)", true),
        ("1234", "uid=1234(app) gid=2345(app)", true),
        ("app:extra", "uid=1234(app) gid=77(extra)", true),
        ("4321:9", "uid=4321 gid=9", false),
    ] {
        let config = json!({ "Entrypoint": ["/bin/sh", "-c", "id; exec sleep 1000"], "User": user });
        let name = format!("u{}", user.replace(':', "-"));
        let reference = bed.push(&name, &image(&[shell_layer()], config));
        bed.configure(&[bed.entry(&name, &reference, &[])]);
        let daemon = bed.daemon();
        bed.wait_log(&name, "uid=");
        let log = bed.ok(&["worker", "logs", &name]);
        let id = log.trim();
        assert!(id.starts_with(ids), "{user}: {id}");
        assert_eq!(id.contains("77(extra)"), extra_group, "{user}: {id}");
        daemon.stop();
    }
}

#[test]
fn what_a_worker_writes_is_there_after_a_restart_and_the_image_stays_as_it_was() {
    let bed = Bed::new();
    let script = "if [ -e /data ]; then echo again $(cat /data); else echo first; echo kept > /data; \
                  rm /etc/group; fi; [ -e /etc/group ] || echo no group; sync; exec sleep 1000";
    let reference = bed.script_image("disk", script);
    bed.configure(&[bed.entry("a", &reference, &[]), bed.entry("b", &reference, &[])]);
    let _daemon = bed.daemon();
    for name in ["a", "b"] {
        bed.wait_log(name, "first\nno group\n");
    }
    bed.ok(&["worker", "restart", "a"]);
    bed.wait_log("a", "again kept\nno group\n");
    // The machine that is killed loses nothing that was synced either.
    let status = bed.wait_phase("b", Phase::Running);
    let vmm = i32::try_from(status.vmm_pid.unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(vmm), nix::sys::signal::Signal::SIGKILL).unwrap();
    bed.wait_log("b", "again kept\nno group\n");
}

#[test]
fn a_from_scratch_image_with_one_static_program_runs() {
    let bed = Bed::new();
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("hello.c");
    fs::write(&source, "#include <stdio.h>\n#include <unistd.h>\nint main(){puts(\"hello from scratch\");fflush(stdout);for(;;)pause();}\n").unwrap();
    let program = dir.path().join("hello");
    let built =
        Command::new("gcc").args(["-O2", "-static", "-o"]).arg(&program).arg(&source).status().unwrap();
    assert!(built.success());
    let tree = Tree::new().program("hello", &fs::read(&program).unwrap());
    let layer = layer(&tree.finish(), Packing::Zstd);
    let reference = bed.push("scratch", &image(&[layer], json!({ "Entrypoint": ["/hello"] })));
    bed.configure(&[bed.entry("scratch", &reference, &[])]);
    let _daemon = bed.daemon();
    bed.wait_log("scratch", "hello from scratch\n");
}

#[test]
fn a_guest_that_resets_its_machine_is_vmm_died_with_the_consoles_tail() {
    let bed = Bed::new();
    let script = "echo the last line of the console > /dev/console; sleep 1; reboot -f";
    let reference = bed.script_image("reset", script);
    bed.configure(&[bed.entry("reset", &reference, &["restart: never"])]);
    let _daemon = bed.daemon();
    let status = bed.wait("reset", "ended", |status| !status.exits.is_empty());
    let ExitCause::VmmDied { detail } = &status.exits[0].cause else { panic!("{:?}", status.exits[0]) };
    assert!(detail.contains("the last line of the console"), "{detail}");
}

#[test]
fn out_of_memory_is_told_as_such() {
    let bed = Bed::new();
    // Without overcommit the kernel would refuse so large a buffer instead of killing for it later.
    let script = "echo 1 > /proc/sys/vm/overcommit_memory; exec dd if=/dev/zero of=/dev/null bs=1G count=1";
    let small = "resources: { memory: 128, cpus: 1, disk: 1GiB }";
    let reference = bed.script_image("hungry", script);
    bed.configure(&[bed.entry("hungry", &reference, &["restart: never", small])]);
    let _daemon = bed.daemon();
    let status = bed.wait("hungry", "ended", |status| !status.exits.is_empty());
    assert_eq!(status.exits[0].cause, ExitCause::Oom, "{:?}", bed.ok(&["worker", "logs", "hungry"]));
}

#[test]
fn a_boot_that_hangs_ends_at_its_deadline() {
    let bed = Bed::new();
    let reference = bed.script_image("late", "exec sleep 1000");
    bed.configure(&[bed.entry("late", &reference, &["boot_timeout: 10ms", "restart: { delay: 10ms }"])]);
    let _daemon = bed.daemon();
    let status = bed.wait_phase("late", Phase::Failed);
    let cause = status.cause.unwrap();
    assert!(
        cause.message.contains("10ms") && cause.hint.unwrap().contains("boot_timeout"),
        "{}",
        cause.message
    );
    bed.until("no machine is left", || bed.processes_named("__vmm").is_empty());
}

#[test]
fn a_guest_kernel_that_is_not_there_is_an_error_of_its_own() {
    let bed = Bed::new();
    let reference = bed.script_image("web", "exec sleep 1000");
    bed.configure(&[bed.entry("web", &reference, &["restart: { delay: 10ms }"])]);
    let _daemon = bed.daemon_with(&[("III_LIBKRUNFW_PATH", "/no/such/libkrunfw.so.5")]);
    let status = bed.wait_phase("web", Phase::Failed);
    let cause = status.cause.unwrap();
    assert!(cause.message.contains("/no/such/libkrunfw.so.5") && cause.hint.is_some(), "{cause:?}");
    assert!(bed.processes_named("__shim").is_empty(), "nothing was started");
}

/// The root disk of the only image in this home.
pub(super) fn root_disk(bed: &Bed) -> PathBuf {
    let is_disk = |path: &PathBuf| path.extension().is_some_and(|e| e == "erofs");
    let disks: Vec<_> = bed.files().into_iter().filter(is_disk).collect();
    let [disk] = disks.as_slice() else { panic!("not one root disk: {disks:?}") };
    disk.clone()
}

#[test]
fn a_damaged_root_disk_is_a_boot_error_with_the_consoles_tail_and_what_it_says_mends_it() {
    let bed = Bed::new();
    let reference = bed.script_image("web", "exec sleep 1000");
    bed.ok(&["worker", "add", &reference]);
    bed.configure(&[bed.entry("web", &reference, &["restart: never"])]);
    zero_head(&root_disk(&bed));
    let _daemon = bed.daemon();
    let status = bed.wait_phase("web", Phase::Failed);
    let cause = status.cause.unwrap();
    assert!(cause.message.starts_with("root disk: /dev/vda on /lower as erofs: "), "{cause:?}");
    assert!(cause.message.contains("; the console's last lines:\n"), "{cause:?}");
    let hint = cause.hint.unwrap();
    assert!(hint.starts_with("`iii worker start web` looks whether "), "{hint}");
    bed.ok(&["worker", "start", "web"]);
    assert_eq!(bed.wait_phase("web", Phase::Running).generation, 2);
}

#[test]
fn a_damaged_root_disk_is_built_again_by_the_next_try_and_not_under_machines_that_run() {
    let bed = Bed::new();
    let reference = bed.script_image("web", "exec sleep 1000");
    let (old, new) =
        (bed.entry("old", &reference, &[]), bed.entry("new", &reference, &["restart: { delay: 10ms }"]));
    bed.configure(std::slice::from_ref(&old));
    let _daemon = bed.daemon();
    bed.wait_phase("old", Phase::Running);
    zero_head(&root_disk(&bed));
    bed.configure(&[old, new]);
    let status = bed.wait_phase("new", Phase::Running);
    assert_eq!(status.generation, 2, "{:?}", status.exits);
    assert!(status.exits[0].cause.could_not_start_by("root disk"), "{:?}", status.exits);
    assert_eq!(bed.wait_phase("old", Phase::Running).generation, 1);
    assert!(bed.ok(&["worker", "exec", "old", "--", "cat", "/etc/passwd"]).contains("app:x:1234"));

    // By hand, with the same effect.
    zero_head(&root_disk(&bed));
    bed.ok(&["worker", "add", "--force", "--name", "new", &reference]);
    let status = bed.wait_phase("new", Phase::Running);
    assert!(
        status.exits.iter().filter(|exit| exit.cause.is_could_not_start()).count() == 1,
        "{:?}",
        status.exits
    );
}

pub(crate) fn zero_head(disk: &Path) {
    let mut permissions = fs::metadata(disk).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
    fs::set_permissions(disk, permissions).unwrap();
    let file = fs::File::options().write(true).open(disk).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 4096], 0).unwrap();
}

/// An image of Debian packages and layers with every trick of the format: a script in it looks at all of
/// them from inside the guest.
#[test]
fn a_foreign_python_image_finds_in_the_guest_what_its_layers_promised() {
    let bed = Bed::new();
    for name in ["layers", "python"] {
        load(&bed, name);
    }
    let resources = ["resources: { memory: 512, cpus: 1, disk: 2GiB }"];
    bed.configure(&[
        bed.entry("layers", &bed.registry.reference("layers:latest"), &resources),
        bed.entry("python", &bed.registry.reference("python:latest"), &resources),
    ]);
    let _daemon = bed.daemon();
    bed.wait_log("layers", "layers ok");
    let python = bed.wait_phase("python", Phase::Running);
    let said = bed.iii(&["worker", "logs", "python"]);
    assert_eq!(python.exits, [], "{said:?}");
    assert!(said.text().contains("user=app cwd=/app FOO=bar"), "{said:?}");
}

/// An image of `scripts/make-images`, by its name, into the bed's registry.
pub(crate) fn load(bed: &Bed, name: &str) {
    let folder =
        std::env::var_os("III_TEST_IMAGES").expect("III_TEST_IMAGES names no folder: use `make test`");
    bed.registry.load_oci_layout(&Path::new(&folder).join("layouts").join(name), name, "latest");
}
