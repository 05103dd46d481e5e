//! Local projects: copied, set up, installed once, and run.

use std::fs;
use std::path::{Path, PathBuf};

use iii_protocol::api::{Phase, WorkerType};
use serde_json::json;

use super::bed::{Bed, Daemon, shell_layer};
use crate::support::registry::image;

const START: &str =
    "trap 'echo bye; exit 0' TERM; echo serving $(cat greeting); while :; do sleep 1 & wait $!; done";

/// A project and a daemon that knows it.
pub struct Local {
    pub bed: Bed,
    folder: PathBuf,
    base: String,
}

impl Local {
    /// With these scripts besides `start`. One that is not among them would be inferred.
    pub fn new(scripts: &str) -> Local {
        let bed = Bed::new();
        let base = bed.push("base", &image(&[shell_layer()], json!({ "Env": ["FROM=base", "BOTH=base"] })));
        let folder = bed.project().join("app");
        fs::create_dir(&folder).unwrap();
        let local = Local { bed, folder, base };
        local.write("greeting", "hello");
        local.write("requirements.txt", "a==1\n");
        local.manifest(scripts);
        local
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// With these scripts besides `start`.
    pub fn manifest(&self, scripts: &str) {
        self.manifest_with(START, scripts);
    }

    pub fn manifest_with(&self, start: &str, scripts: &str) {
        self.manifest_of(&self.base, start, scripts);
    }

    /// Likewise, on another base image.
    pub fn manifest_of(&self, base: &str, start: &str, scripts: &str) {
        let text = format!(
            "name: app\nruntime: {{kind: python, base_image: '{base}'}}\nresources: {{memory: 256, cpus: 1}}\n\
             env: {{BOTH: manifest}}\nscripts:\n  start: \"{start}\"\n{scripts}"
        );
        self.write("iii.worker.yaml", &text);
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Reference of the image that its machine starts from.
    pub fn base(&self) -> &str {
        &self.base
    }

    fn configure(&self) {
        self.configure_with("");
    }

    /// With more lines of the entry.
    pub fn configure_with(&self, more: &str) {
        let path = self.folder.display();
        let boot = if self.bed.is_process_tier() { "30s" } else { "120s" };
        self.bed.write_config(&format!(
            "workers:\n  - name: app\n    worker_path: {path}\n    boot_timeout: {boot}\n{more}"
        ));
    }

    pub fn start(&self) -> Daemon {
        self.configure();
        self.bed.daemon()
    }

    /// The project's folder in the worker.
    fn workspace(&self) -> PathBuf {
        match self.bed.is_process_tier() {
            true => self.bed.home().join("managed/app/scratch.workspace"),
            false => PathBuf::from("/workspace"),
        }
    }

    /// Output of a script in the worker's copy of the project.
    pub fn sh(&self, script: &str) -> String {
        let there = self.workspace().display().to_string();
        self.bed.ok(&["worker", "exec", "-w", &there, "app", "--", "/bin/sh", "-c", script])
    }

    pub fn logs(&self) -> String {
        let run = self.bed.iii(&["worker", "logs", "app"]);
        format!("{}{}", run.text(), run.stderr)
    }

    /// Which scripts ran, and why.
    pub fn events(&self) -> String {
        self.bed.ok(&["worker", "logs", "--events", "app"])
    }

    pub fn restart(&self) {
        self.bed.ok(&["worker", "restart", "app"]);
    }
}

fn lines(path: &Path) -> usize {
    fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

#[test]
fn a_project_is_copied_installed_once_and_runs_again_without_it() {
    let local =
        Local::new("  setup: echo set >> ran\n  install: cat requirements.txt; echo installed >> ran\n");
    local.write("node_modules/big", "left out");
    local.write("sub/deep/file", "one");
    let _daemon = local.start();
    let status = local.bed.wait_phase("app", Phase::Running);
    assert_eq!(status.worker_type, WorkerType::Local);
    assert_eq!((status.resources.memory_mib, status.resources.cpus), (256, 1));
    assert_eq!(status.image.as_deref(), Some(&*local.base));
    local.bed.wait_log("app", "serving hello");
    assert_eq!(
        local.sh("cat ran sub/deep/file; ls; echo $FROM $BOTH $III_WORKER_NAME"),
        "set\ninstalled\nonegreeting\niii.worker.yaml\nran\nrequirements.txt\nsub\nbase manifest app\n"
    );
    let logs = local.logs();
    assert!(logs.contains("a==1"), "{logs}");

    // What changed is there, what is gone is gone, and neither script has run again.
    local.write("greeting", "changed");
    local.write("new", "new");
    fs::remove_dir_all(local.folder.join("sub")).unwrap();
    local.restart();
    local.bed.wait_log("app", "serving changed");
    assert_eq!(
        local.sh("cat ran; ls"),
        "set\ninstalled\ngreeting\niii.worker.yaml\nnew\nran\nrequirements.txt\n"
    );

    // A file that decides what is installed.
    local.write("requirements.txt", "a==2\n");
    local.restart();
    local.bed.wait_phase("app", Phase::Running);
    assert_eq!(local.sh("cat ran"), "set\ninstalled\ninstalled\n");
    let events = local.events();
    assert!(events.contains("install runs (requirements.txt changed)"), "{events}");
}

#[test]
fn an_install_that_fails_leaves_a_machine_to_look_into_and_a_start_that_tries_again() {
    let local = Local::new("  setup: ''\n  install: echo looking for it; test -e fixed && touch done\n");
    let _daemon = local.start();
    let status = local.bed.wait_phase("app", Phase::Failed);
    let cause = status.cause.unwrap();
    assert!(
        cause.message.starts_with("install failed (exit code 1): `echo looking for it; "),
        "{}",
        cause.message
    );
    assert!(cause.message.ends_with("its last lines:\nlooking for it"), "{}", cause.message);
    assert!(cause.hint.unwrap().contains("iii worker exec app"));
    assert!(local.sh("cat greeting; test -e done || echo none").contains("hellonone"));
    let again = local.bed.iii(&["worker", "start", "app"]);
    assert_eq!(again.code, Some(1));
    let told = again.stderr;
    assert!(told.contains("install failed (exit code 1): `echo looking for it; "), "{told}");
    assert!(told.contains("install | looking for it\n") && !told.contains("\nlooking"), "once: {told}");
    let status = local.bed.ok(&["worker", "status", "app"]);
    assert!(status.contains("its last lines:") && status.contains("looking for it"), "{status}");

    // A new daemon finds it as it was left.
    local.bed.wait_phase("app", Phase::Failed);
    drop(_daemon);
    let _daemon = local.bed.daemon();
    let found = local.bed.wait_phase("app", Phase::Failed);
    assert!(found.vmm_pid.is_some() && found.cause.unwrap().message.contains("install failed"));

    local.write("fixed", "");
    local.bed.ok(&["worker", "start", "app"]);
    local.bed.wait_phase("app", Phase::Running);
    local.sh("test -e done");
    local.bed.ok(&["worker", "stop", "app"]);
    local.bed.wait_phase("app", Phase::Stopped);
}

#[test]
fn an_install_that_was_killed_is_never_taken_for_a_whole_one() {
    let local =
        Local::new("  setup: ''\n  install: echo begun >> ran; test -e go || sleep 600; echo whole >> ran\n");
    let daemon = local.start();
    local.bed.wait("app", "installing", |status| {
        status.detail.as_deref() == Some("install runs (it has not finished yet)")
    });
    local.bed.until("the script has begun", || match local.bed.is_process_tier() {
        true => lines(&local.workspace().join("ran")) == 1,
        false => local.bed.processes_named("__prepare").len() == 1,
    });
    for pid in local.bed.processes_named("__prepare") {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
    }
    let status = local.bed.wait_phase("app", Phase::Failed);
    assert!(status.cause.unwrap().message.contains("ended without a result"));
    local.write("go", "");
    local.bed.ok(&["worker", "start", "app"]);
    local.bed.wait_phase("app", Phase::Running);
    assert!(local.sh("cat ran").ends_with("begun\nwhole\n"));
    local.bed.ok(&["worker", "stop", "app"]);
    drop(daemon);
}

#[test]
fn a_stop_ends_a_long_install_and_the_next_start_runs_it_again() {
    let local = Local::new("  setup: ''\n  install: test -e go || sleep 600\n");
    let _daemon = local.start();
    local.bed.wait("app", "installing", |status| {
        status.detail.as_deref() == Some("install runs (it has not finished yet)")
    });
    local.bed.ok(&["worker", "stop", "app"]);
    local.bed.wait_phase("app", Phase::Stopped);
    assert!(local.bed.processes_named("__prepare").is_empty());
    local.write("go", "");
    local.bed.ok(&["worker", "start", "app"]);
    local.bed.wait_phase("app", Phase::Running);
}

#[test]
fn add_shows_what_the_scripts_write_and_force_begins_from_scratch() {
    let local = Local::new("  setup: echo setting up\n  install: echo installing >&2; echo x >> ran\n");
    local.bed.write_config("workers: []\n");
    let _daemon = local.bed.daemon();
    let folder = local.folder.display().to_string();
    let added = local.bed.iii(&["worker", "add", &folder]);
    let told = added.stderr;
    assert_eq!(added.code, Some(0), "{told}");
    for line in ["setup | setting up\n", "install | installing\n"] {
        assert!(told.contains(line), "{told}");
    }
    let config = fs::read_to_string(local.bed.config()).unwrap();
    assert!(config.contains(&format!("worker_path: {folder}")), "{config}");
    local.bed.wait_phase("app", Phase::Running);

    let twice = local.bed.iii(&["worker", "add", &folder]);
    assert_eq!(twice.code, Some(1));
    let forced = local.bed.iii(&["worker", "add", "--force", &folder]);
    let told = forced.stderr;
    assert_eq!(forced.code, Some(0), "{told}");
    assert!(told.contains("setup | setting up\n"), "{told}");
    assert_eq!(local.sh("cat ran"), "x\n");
    local.bed.ok(&["worker", "remove", "--yes", "app"]);
    assert!(!local.bed.home().join("managed/app").exists());
    assert!(local.folder.join("greeting").exists());
}

#[test]
fn a_manifest_without_a_name_goes_by_that_of_its_entry() {
    let local = Local::new("  setup: ''\n  install: ''\n");
    let path = local.folder.join("iii.worker.yaml");
    let nameless = fs::read_to_string(&path).unwrap().replace("name: app\n", "");
    fs::write(path, nameless).unwrap();
    let _daemon = local.start();
    local.bed.wait_phase("app", Phase::Running);
    assert_eq!(local.sh("echo $III_WORKER_NAME"), "app\n");
    // Where nothing else names it, it is an error still.
    let added = local.bed.iii(&["worker", "add", &local.folder.display().to_string()]);
    assert!(added.code != Some(0) && added.stderr.contains("the manifest has no `name`"), "{}", added.stderr);
}

#[test]
fn add_without_a_daemon_says_what_is_still_to_be_done_and_the_first_start_does_it() {
    let local = Local::new("  setup: ''\n  install: echo installed >> ran\n");
    local.bed.write_config("workers: []\n");
    let added = local.bed.iii(&["worker", "add", "./app"]);
    let told = added.stderr;
    assert_eq!(added.code, Some(0), "{told}");
    assert!(
        told.ends_with(
            "app: added; it starts with `iii`, which then copies the project and runs its setup and install\n"
        ),
        "{told}"
    );
    let _daemon = local.bed.daemon();
    local.bed.wait_phase("app", Phase::Running);
    assert_eq!(local.sh("cat ran greeting"), "installed\nhello");
}
