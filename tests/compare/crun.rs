//! A container of Debian's `crun` whose programs are this host's own, as those of the process launcher are.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::unistd::geteuid;
use serde_json::{Value, json};
use tempfile::TempDir;

const NAME: &str = "it";
/// Those of the host that the container sees, as far as they exist.
const SHARED: [&str; 8] = ["/proc", "/bin", "/sbin", "/usr", "/lib", "/lib64", "/etc", "/tmp"];
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What `docker run` leaves to a container's root.
const CAPABILITIES: [&str; 13] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];
/// `crun` refuses to run beside some arrangements of cgroups that it is not asked to use.
const RUN: &str = "mount -t tmpfs none /sys/fs/cgroup && exec crun \"$@\"";

/// The running container; gone when dropped.
pub(crate) struct Crun {
    dir: TempDir,
    /// `crun run`, in namespaces of its own.
    holder: Child,
}

impl Crun {
    pub(crate) fn start() -> Crun {
        let dir = tempfile::Builder::new().prefix("crun-").tempdir_in("/tmp").unwrap();
        fs::create_dir(dir.path().join("rootfs")).unwrap();
        fs::create_dir(dir.path().join("state")).unwrap();
        fs::write(dir.path().join("config.json"), config().to_string()).unwrap();
        let mut command = Command::new("unshare");
        command.arg("--mount");
        if !geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command.args(["--", "sh", "-c", RUN, "sh"]).args(globals(dir.path()));
        command.args(["run", "--bundle"]).arg(dir.path()).arg(NAME);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let holder = command.spawn().expect("unshare of util-linux: run scripts/setup");
        let mut crun = Crun { dir, holder };
        let mut said = String::new();
        BufReader::new(crun.holder.stdout.take().unwrap()).read_line(&mut said).unwrap();
        if said != "ready\n" {
            let mut why = String::new();
            crun.holder.stderr.take().unwrap().read_to_string(&mut why).unwrap();
            panic!("Debian's crun cannot run a container here (scripts/setup installs it): {said}{why}");
        }
        crun
    }

    /// `crun exec` with these options.
    pub(crate) fn exec(&self, options: &[&str], argv: &[OsString]) -> Command {
        let mut command = self.crun();
        command.arg("exec").args(options).arg(NAME).args(argv);
        command
    }

    fn crun(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.holder.id().to_string(), "--mount"]);
        if !geteuid().is_root() {
            command.args(["--user", "--preserve-credentials"]);
        }
        command.args(["--", "crun"]).args(globals(self.dir.path()));
        command
    }
}

impl Drop for Crun {
    fn drop(&mut self) {
        // What fails here was never there.
        let _ = self.crun().args(["delete", "--force", NAME]).stderr(Stdio::null()).status();
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn globals(dir: &Path) -> [String; 3] {
    let state = dir.join("state");
    ["--root".to_owned(), state.display().to_string(), "--cgroup-manager=disabled".to_owned()]
}

fn config() -> Value {
    let bind =
        |path: &&str| json!({ "destination": path, "type": "bind", "source": path, "options": ["rbind"] });
    let mut mounts: Vec<_> = SHARED.iter().filter(|path| Path::new(path).exists()).map(bind).collect();
    mounts
        .push(json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"] }));
    let options = ["newinstance", "ptmxmode=0666", "mode=0620"];
    mounts
        .push(json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": options }));
    json!({
        "ociVersion": "1.0.0",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": ["/bin/sh", "-c", "echo ready; exec sleep 3600"],
            "env": [PATH],
            "cwd": "/",
            "capabilities": {
                "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
            },
        },
        "root": { "path": "rootfs" },
        "mounts": mounts,
        "linux": { "namespaces": [{ "type": "mount" }] },
    })
}
