//! A home, a project, a registry and the real binary.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use iii_protocol::api::{Phase, WorkerStatus};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tempfile::TempDir;

use crate::support::registry::{Packing, Registry, TestImage, TestLayer, Tree, image, layer};

/// How a tier runs machines.
#[derive(Debug, Clone, Copy)]
pub struct Tier {
    /// The binary under test.
    pub binary: fn() -> PathBuf,
    /// Machines are plain processes.
    pub processes: bool,
    /// How long anything may take before a test gives up.
    pub patience: Duration,
}

/// One project of one user.
pub struct Bed {
    dir: TempDir,
    pub registry: Registry,
    tier: Tier,
}

/// What a finished command left.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Run {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

impl Bed {
    pub fn new() -> Bed {
        // Socket paths are limited to 107 bytes, so the folder must not be deep.
        let dir = tempfile::Builder::new().prefix("iii-").tempdir_in("/tmp").unwrap();
        fs::create_dir(dir.path().join("p")).unwrap();
        let bed = Bed { dir, registry: Registry::start(), tier: crate::TIER };
        bed.write_config("workers: []\n");
        bed
    }

    pub fn home(&self) -> PathBuf {
        self.dir.path().join("h")
    }

    pub fn project(&self) -> PathBuf {
        self.dir.path().join("p")
    }

    pub fn config(&self) -> PathBuf {
        self.project().join("config.yaml")
    }

    pub fn write_config(&self, text: &str) {
        fs::write(self.config(), text).unwrap();
    }

    /// How long a step may take at most.
    pub fn patience(&self) -> Duration {
        self.tier.patience
    }

    pub fn is_process_tier(&self) -> bool {
        self.tier.processes
    }

    /// Pushes an image whose workload is a shell script; the reference to use.
    pub fn script_image(&self, name: &str, script: &str) -> String {
        self.push(name, &image(&[shell_layer()], json!({ "Entrypoint": ["/bin/sh", "-c", script] })))
    }

    pub fn push(&self, name: &str, image: &TestImage) -> String {
        self.registry.push(name, "latest", image);
        self.registry.reference(&format!("{name}:latest"))
    }

    /// An entry of `workers:` for a small machine; `more` are further lines of the entry.
    pub fn entry(&self, name: &str, reference: &str, more: &[&str]) -> String {
        let mut text = format!("  - name: {name}\n    image: {reference}\n");
        if !more.iter().any(|line| line.starts_with("resources:")) {
            text.push_str("    resources: { memory: 256, cpus: 1, disk: 1GiB }\n");
        }
        // Several times what a boot takes in an emulated host, where a guest now and then hangs: the worker
        // is then back long before a test loses its patience.
        if !self.tier.processes && !more.iter().any(|line| line.starts_with("boot_timeout:")) {
            text.push_str("    boot_timeout: 45s\n");
        }
        for line in more {
            text.push_str(&format!("    {line}\n"));
        }
        text
    }

    /// Writes a config of these entries.
    pub fn configure(&self, entries: &[String]) {
        self.write_config(&format!("workers:\n{}", entries.concat()));
    }

    /// The binary with this bed's surroundings.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new((self.tier.binary)());
        command
            .args(args)
            .current_dir(self.project())
            .env("III_HOME", self.home())
            .env_remove("III_CONFIG_PATH")
            .env_remove("III_INSECURE_REGISTRIES")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        if self.tier.processes {
            command.env("III_TEST_LAUNCHER", "process");
        }
        command
    }

    /// Runs a command to its end.
    pub fn iii(&self, args: &[&str]) -> Run {
        let output = self.command(args).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Run { code: output.status.code(), stdout: output.stdout, stderr }
    }

    /// Runs a command that must succeed; its standard output.
    pub fn ok(&self, args: &[&str]) -> String {
        let run = self.iii(args);
        assert_eq!(run.code, Some(0), "iii {args:?}: {}\n{}", run.stderr, run.text());
        run.text()
    }

    /// Starts the daemon and waits until it answers.
    pub fn daemon(&self) -> Daemon {
        self.daemon_with(&[])
    }

    /// Likewise, with more environment.
    pub fn daemon_with(&self, env: &[(&str, &str)]) -> Daemon {
        let out = self.dir.path().join("daemon.out");
        let file = fs::File::options().create(true).append(true).open(&out).unwrap();
        let mut command = self.command(&[]);
        command.envs(env.iter().copied()).stdout(file.try_clone().unwrap()).stderr(file);
        let mut daemon = Daemon { child: command.spawn().unwrap(), out, patience: self.patience() };
        let started = Instant::now();
        loop {
            if self.get("/v1/daemon").is_some_and(|body| body.contains(&format!("\"pid\":{}", daemon.pid())))
            {
                return daemon;
            }
            if let Some(status) = daemon.child.try_wait().unwrap() {
                panic!("the daemon ended ({status}):\n{}", daemon.output());
            }
            assert!(started.elapsed() < self.patience(), "no answer from the daemon:\n{}", daemon.output());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The daemon's socket, while there is one.
    pub fn socket(&self) -> Option<PathBuf> {
        let projects = fs::read_dir(self.home().join("run")).ok()?;
        projects.flatten().map(|entry| entry.path().join("iii.sock")).find(|path| path.exists())
    }

    /// Body of a successful GET on the daemon's socket. HTTP/1.0, so the reply ends with the connection.
    pub fn get(&self, path: &str) -> Option<String> {
        let mut stream = UnixStream::connect(self.socket()?).ok()?;
        stream.set_read_timeout(Some(self.patience())).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: iii\r\n\r\n").ok()?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).ok()?;
        let (head, body) = reply.split_once("\r\n\r\n")?;
        head.lines().next()?.contains(" 200").then(|| body.to_owned())
    }

    pub fn status(&self, name: &str) -> Option<WorkerStatus> {
        serde_json::from_str(&self.get(&format!("/v1/workers/{name}"))?).ok()
    }

    /// Waits until the worker's status is as wanted.
    pub fn wait(&self, name: &str, what: &str, wanted: impl Fn(&WorkerStatus) -> bool) -> WorkerStatus {
        let started = Instant::now();
        loop {
            let status = self.status(name);
            if let Some(status) = &status
                && wanted(status)
            {
                return status.clone();
            }
            if started.elapsed() > self.patience() {
                let out = fs::read_to_string(self.dir.path().join("daemon.out")).unwrap_or_default();
                panic!("`{name}` never was {what}: {status:#?}\nthe daemon said:\n{out}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn wait_phase(&self, name: &str, phase: Phase) -> WorkerStatus {
        self.wait(name, &phase.to_string(), |status| status.phase == phase)
    }

    /// Waits until something holds.
    pub fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let started = Instant::now();
        while !holds() {
            assert!(started.elapsed() < self.patience(), "never: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the worker's log holds a text.
    pub fn wait_log(&self, name: &str, text: &str) {
        self.until(&format!("`{text}` in the log of `{name}`"), || {
            self.iii(&["worker", "logs", name]).text().contains(text)
        });
    }

    /// Processes that have a file of this bed's home open: shims, VMMs, daemons.
    pub fn processes(&self) -> Vec<i32> {
        let home = self.home();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            let Ok(fds) = fs::read_dir(entry.path().join("fd")) else { continue };
            if fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target.starts_with(&home)))
            {
                found.push(pid);
            }
        }
        found
    }

    /// Those of them that were started with this argument.
    pub fn processes_named(&self, argument: &str) -> Vec<i32> {
        let named = |pid: &i32| {
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            arguments.split(|&byte| byte == 0).any(|word| word == argument.as_bytes())
        };
        self.processes().into_iter().filter(named).collect()
    }

    /// No process, no socket and no unfinished file is left of this bed.
    pub fn assert_nothing_left(&self) {
        self.until("the last process of this home has ended", || self.processes().is_empty());
        let mut left = self.files();
        left.retain(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let unfinished =
                name.contains(".tmp") || name.starts_with(".scratch-") || name.ends_with(".partial");
            name.ends_with(".sock") || unfinished
        });
        assert!(left.is_empty(), "left over: {left:?}");
    }

    /// All that is in this bed's home but folders.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        walk(&self.home(), &mut |path| found.push(path.to_owned()));
        found
    }
}

fn walk(folder: &Path, visit: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            walk(&path, visit);
        } else {
            visit(&path);
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for pid in self.processes() {
            // One that has ended meanwhile is as good.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Debian's static busybox and the links that scripts use.
pub fn shell_layer() -> TestLayer {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find_map(|path| fs::read(path).ok());
    let busybox = busybox.expect("no /bin/busybox: run scripts/setup");
    let mut tree = Tree::new()
        .dir("bin")
        .program("bin/busybox", &busybox)
        .dir("etc")
        .file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\napp:x:1234:2345::/home/app:/bin/sh\n");
    tree = tree.file("etc/group", b"root:x:0:\napp:x:2345:\nextra:x:77:app\n");
    for applet in [
        "sh",
        "cat",
        "echo",
        "sleep",
        "ls",
        "id",
        "env",
        "hostname",
        "mount",
        "ip",
        "stat",
        "seq",
        "kill",
        "df",
        "free",
        "nproc",
        "dd",
        "grep",
        "ps",
        "true",
        "false",
        "date",
        "sync",
        "touch",
        "sha256sum",
        "yes",
        "tar",
        "ln",
        "readlink",
        "chmod",
        "find",
        "stty",
        "tty",
        "rm",
        "mkdir",
        "mknod",
        "head",
        "sed",
        "tr",
        "wc",
        "yes",
        "test",
        "printf",
        "ping",
        "nc",
        "nslookup",
        "wget",
        "reboot",
        "sha256sum",
        "getopt",
        "setsid",
        "chown",
        "od",
    ] {
        tree = tree.symlink(&format!("bin/{applet}"), "busybox");
    }
    layer(&tree.finish(), Packing::Gzip)
}

/// A running daemon; killed when dropped. Its machines are the bed's to clean up.
pub struct Daemon {
    child: Child,
    out: PathBuf,
    patience: Duration,
}

impl Daemon {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What all daemons of this bed have printed.
    pub fn output(&self) -> String {
        fs::read_to_string(&self.out).unwrap_or_default()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.pid()).unwrap()), signal).unwrap();
    }

    /// Kills it at once and waits until it is gone.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end; the exit status.
    pub fn wait(&mut self) -> i32 {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(started.elapsed() < self.patience, "the daemon does not end:\n{}", self.output());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it politely.
    pub fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        assert_eq!(self.wait(), 0, "{}", self.output());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
