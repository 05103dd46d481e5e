//! A machine without `iii` around it: the floor. The bench plays its shim.

use std::fs;
use std::io::Write as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use iii_protocol::frame::{Frame, read_frame};
use iii_protocol::guest::{BootPlan, KIND_HELLO, KIND_PLAN, ProcessPlan, RootPlan, VERSION};

use crate::bed::Bed;
use crate::{MEMORY_MIB, binary, environment};

/// A guest whose agent has said hello; killed when dropped.
pub(crate) struct Bare {
    /// From the start of the VMM's process to the agent's hello.
    pub(crate) hello_after: Duration,
    vmm: Child,
    agent: UnixStream,
    listener: UnixListener,
}

impl Bare {
    /// With the same agent and disks as the bed's worker, which must be stopped.
    pub(crate) fn boot(bed: &Bed) -> Bare {
        let (socket, sessions) = (bed.home().join("floor.sock"), bed.home().join("floor-sessions.sock"));
        for stale in [&socket, &sessions] {
            let _ = fs::remove_file(stale);
        }
        let listener = UnixListener::bind(&socket).expect("a socket");
        let root_disk = fs::read_dir(bed.home().join("images"))
            .expect("images")
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|e| e == "erofs"))
            .expect("a root disk");
        // The order names whom the machine must not outlive.
        let config = serde_json::json!({ "shim_pid": std::process::id(), "kind": {
            "kind": "krun", "cpus": 1, "memory_mib": MEMORY_MIB, "root_disk": root_disk,
            "scratch_disk": bed.home().join("managed/bench/scratch.ext4"),
            "sockets": { "control": socket, "sessions": sessions },
            "libkrunfw": environment("III_LIBKRUNFW_PATH"),
        } });
        let began = Instant::now();
        let mut vmm = Command::new(binary())
            .arg("__vmm")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the VMM starts");
        vmm.stdin.take().expect("piped").write_all(config.to_string().as_bytes()).expect("it reads");
        let (mut agent, _) = listener.accept().expect("the agent connects");
        let frame = read_frame(&mut agent).expect("a frame").expect("a frame");
        let hello_after = began.elapsed();
        assert_eq!(frame.kind, KIND_HELLO);
        Bare { hello_after, vmm, agent, listener }
    }

    /// Runs a program in the guest that connects to the control port, and hands that second connection over.
    pub(crate) fn connection_of(&mut self, argv: &[&str]) -> UnixStream {
        let plan = BootPlan {
            version: VERSION,
            hostname: "bare".into(),
            root: RootPlan::Overlay { lower: "/dev/vda".into(), upper: "/dev/vdb".into() },
            workload: ProcessPlan {
                argv: argv.iter().map(|&word| word.to_owned()).collect(),
                env: Vec::new(),
                cwd: "/".into(),
                user: String::new(),
            },
        };
        let plan = Frame::json(KIND_PLAN, &plan).to_bytes().expect("a small frame");
        self.agent.write_all(&plan).expect("the agent takes its plan");
        self.listener.accept().expect("the program connects").0
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        self.vmm.kill().expect("the VMM can be killed");
        self.vmm.wait().expect("the VMM ends");
    }
}
