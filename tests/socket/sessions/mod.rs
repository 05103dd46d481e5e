//! `iii worker exec` and `cp` as processes of their own, the real edge, and an agent that does as it is told.

mod again;
mod agent;
mod copies;
mod edge;
mod ends;
mod pipes;
mod signals;

use std::io::Read as _;
use std::process::{Child, Command, ExitStatus, Stdio};

use iii_protocol::api::Phase;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::fake::{FakeDaemon, Project, status};
use agent::Agent;

/// A project with the running worker `web`, its daemon, and its agent.
struct Bench {
    project: Project,
    daemon: FakeDaemon,
    agent: Agent,
}

impl Bench {
    async fn new() -> Bench {
        let project = Project::new("workers:\n  - name: web\n    image: redis:7\n");
        project.add(status("web", Phase::Running));
        let agent = Agent::listen(&project, "web");
        let daemon = project.serve().await;
        Bench { project, daemon, agent }
    }

    /// `iii worker exec` with these arguments, without input unless the test gives it one.
    fn command(&self, args: &[&str]) -> Command {
        command(&self.project, args)
    }

    /// `iii worker cp`, likewise.
    fn copy(&self, from: &str, to: &str) -> Command {
        worker_command(&self.project, "cp", &[from, to])
    }

    fn exec(&self, args: &[&str]) -> Exec {
        Exec::spawn(self.command(args))
    }
}

fn command(project: &Project, args: &[&str]) -> Command {
    worker_command(project, "exec", args)
}

fn worker_command(project: &Project, verb: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_iii"));
    command
        .args(["worker", verb])
        .args(args)
        .env("III_HOME", project.ctx.home.root())
        .env("III_CONFIG_PATH", &project.ctx.config)
        .env("NO_COLOR", "1")
        // Empty, as `/dev/null` is, which `exec` does not even begin to send.
        .stdin(tempfile::tempfile().unwrap())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A CLI that runs.
struct Exec {
    child: Child,
}

/// What it left.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    code: Option<i32>,
    stdout: Vec<u8>,
    stderr: String,
}

impl Left {
    #[track_caller]
    fn is(&self, code: i32, stdout: &str, stderr: &str) {
        let stdout = stdout.as_bytes().to_vec();
        assert_eq!(*self, Left { code: Some(code), stdout, stderr: stderr.to_owned() });
    }

    #[track_caller]
    fn says(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(words.iter().all(|word| self.stderr.contains(word)), "{words:?}: {self:?}");
        assert!(self.stdout.is_empty(), "talk is for stderr: {self:?}");
    }
}

impl Exec {
    fn spawn(mut command: Command) -> Exec {
        Exec { child: command.spawn().unwrap() }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    fn status(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    fn left(self) -> Left {
        let output = self.child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        Left { code: output.status.code(), stdout: output.stdout, stderr }
    }

    fn read_stdout(&mut self, bytes: usize) -> Vec<u8> {
        let mut read = vec![0; bytes];
        self.child.stdout.as_mut().unwrap().read_exact(&mut read).unwrap();
        read
    }
}
