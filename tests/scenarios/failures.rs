//! What cannot work says so: what, where, why and what to do next.

use iii_protocol::api::{ErrorCode, Phase};
use serde_json::json;

use super::bed::{Bed, shell_layer};
use super::lifecycle::{SERVE, web};
use crate::support::registry::image;

#[test]
fn an_image_that_does_not_exist_is_an_error_of_add_and_changes_nothing() {
    let bed = Bed::new();
    let before = std::fs::read_to_string(bed.config()).unwrap();
    for with_daemon in [false, true] {
        let _daemon = with_daemon.then(|| bed.daemon());
        let run = bed.iii(&["worker", "add", &bed.registry.reference("no/such:1")]);
        assert_eq!(run.code, Some(1), "{}", run.stderr);
        assert!(run.stderr.contains("no/such") && run.stderr.starts_with("error: "), "{}", run.stderr);
        assert_eq!(std::fs::read_to_string(bed.config()).unwrap(), before);
    }
}

#[test]
fn a_program_that_is_not_in_the_image_could_not_start_and_is_given_up_after_three_tries() {
    let bed = Bed::new();
    let config = json!({ "Entrypoint": ["/no/such/program"] });
    let reference = bed.push("broken", &image(&[shell_layer()], config));
    bed.configure(&[bed.entry("broken", &reference, &["restart: { delay: 10ms }"])]);
    let _daemon = bed.daemon();
    let status = bed.wait_phase("broken", Phase::Failed);
    assert_eq!(status.generation, 3);
    let cause = status.cause.unwrap();
    assert!(cause.message.contains("/no/such/program"), "{cause:?}");
    let run = bed.iii(&["worker", "start", "broken"]);
    assert_eq!(run.code, Some(1));
    assert!(run.stderr.contains("/no/such/program"), "{}", run.stderr);
}

#[test]
fn a_user_that_the_image_does_not_know_could_not_start() {
    let bed = Bed::new();
    let config = json!({ "Entrypoint": ["/bin/sh"], "User": "nosuchuser" });
    let reference = bed.push("broken", &image(&[shell_layer()], config));
    bed.configure(&[bed.entry("broken", &reference, &["restart: { delay: 10ms }"])]);
    let _daemon = bed.daemon();
    let status = bed.wait_phase("broken", Phase::Failed);
    assert!(status.cause.unwrap().message.contains("nosuchuser"));
}

#[test]
fn a_registry_that_is_down_fails_quickly_and_start_tries_again() {
    let bed = Bed::new();
    bed.configure(&[bed.entry("web", "127.0.0.1:1/web:latest", &["restart: { delay: 10ms }"])]);
    let _daemon = bed.daemon();
    let status = bed.wait_phase("web", Phase::Failed);
    let cause = status.cause.unwrap();
    assert_eq!(cause.code, ErrorCode::Image, "{cause:?}");
    assert!(cause.message.contains("127.0.0.1:1") && cause.hint.is_some(), "{cause:?}");
}

#[test]
fn a_project_whose_folder_is_gone_says_so() {
    let bed = Bed::new();
    bed.write_config("workers:\n  - name: mine\n    worker_path: gone\n");
    let _daemon = bed.daemon();
    let status = bed.wait_phase("mine", Phase::Failed);
    let message = status.cause.unwrap().message;
    assert_eq!(message, format!("there is no folder {}", bed.project().join("gone").display()));
    assert!(bed.ok(&["worker", "list"]).contains("Local"));
}

#[test]
fn two_projects_with_one_worker_name_do_not_share_it() {
    let (bed, _, daemon) = web();
    daemon.stop();
    let other = bed.project().join("other");
    std::fs::create_dir(&other).unwrap();
    let config = other.join("config.yaml");
    std::fs::copy(bed.config(), &config).unwrap();
    let mut second = bed.command(&["-c", config.to_str().unwrap()]).spawn().unwrap();
    bed.until("the second project says whose name it is", || {
        let run = bed.iii(&["worker", "status", "web", "-c", config.to_str().unwrap()]);
        run.text().contains("failed") && run.text().contains(bed.config().to_str().unwrap())
    });
    second.kill().unwrap();
    second.wait().unwrap();
}

#[test]
fn a_boot_that_hangs_ends_at_its_deadline_with_the_consoles_last_lines() {
    let (bed, reference, daemon) = web();
    daemon.stop();
    // As if another machine still had it.
    let disk = bed.home().join("managed/web/scratch.ext4");
    let held = std::fs::File::open(&disk).unwrap();
    held.lock().unwrap();
    bed.configure(&[bed.entry("web", &reference, &["boot_timeout: 500ms", "restart: never"])]);
    let _daemon = bed.daemon();
    let cause = bed.wait_phase("web", Phase::Failed).cause.unwrap();
    let said =
        format!("the console's last lines:\niii: waiting until no other machine has {}", disk.display());
    assert!(
        cause.message.contains("500ms after the machine's start") && cause.message.contains(&said),
        "{cause:?}"
    );
    assert!(cause.hint.unwrap().contains("boot_timeout"));
    bed.until("no machine is left", || bed.processes_named("__vmm").is_empty());
    drop(held);
    // Another environment, not only another limit: that is what starts it anew.
    bed.configure(&[bed.entry("web", &reference, &["config: { MENDED: '1' }"])]);
    bed.wait_phase("web", Phase::Running);
}

#[test]
fn a_host_that_cannot_run_machines_is_told_before_anything_is_pulled() {
    let bed = Bed::new();
    let (web, other) = (bed.script_image("web", SERVE), bed.script_image("other", SERVE));
    bed.configure(&[bed.entry("web", &web, &["restart: { delay: 10ms }"])]);
    let before = std::fs::read_to_string(bed.config()).unwrap();
    // Real machines in the tier of processes too: there it may be KVM that is missed first.
    let _daemon =
        bed.daemon_with(&[("III_TEST_LAUNCHER", ""), ("III_LIBKRUNFW_PATH", "/no/such/libkrunfw.so.5")]);
    let status = bed.wait_phase("web", Phase::Failed);
    let cause = status.cause.unwrap();
    assert!(cause.code == ErrorCode::Host && cause.hint.is_some(), "{cause:?}");
    let names_it = |text: &str| text.contains("/no/such/libkrunfw.so.5") || text.contains("/dev/kvm");
    assert!(names_it(&cause.message), "{cause:?}");
    for args in
        [&["worker", "start", "web"][..], &["worker", "add", &other], &["worker", "add", "--force", &web]]
    {
        let run = bed.iii(args);
        assert_eq!(run.code, Some(1), "{args:?}: {}", run.stderr);
        assert!(names_it(&run.stderr) && run.stderr.contains("hint: "), "{args:?}: {}", run.stderr);
    }
    assert_eq!(std::fs::read_to_string(bed.config()).unwrap(), before);
    assert_eq!(bed.registry.requests("/v2/"), 0, "the registry was asked");
    assert!(bed.processes_named("__shim").is_empty(), "a machine was started");
}

#[test]
fn a_vmm_whose_shim_is_gone_does_not_become_a_machine() {
    let bed = Bed::new();
    let (mut order_socket, its_end) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut vmm = bed.command(&["__vmm"]);
    let vmm =
        vmm.stdin(std::os::fd::OwnedFd::from(its_end)).stderr(std::process::Stdio::piped()).spawn().unwrap();
    // Our own parent is not this process's.
    let order = serde_json::json!({
        "shim_pid": std::os::unix::process::parent_id(),
        "kind": { "kind": "krun", "cpus": 1, "memory_mib": 128, "root_disk": "/none", "scratch_disk": "/none",
                  "sockets": { "control": "/none", "sessions": "/none", "engine": "/none" },
                  "libkrunfw": "/none" },
    });
    std::io::Write::write_all(&mut order_socket, order.to_string().as_bytes()).unwrap();
    drop(order_socket);
    let output = vmm.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("the shim ended before its machine began"), "{said}");
}
