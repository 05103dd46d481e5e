//! A machine without `iii` around it: the floor. The bench plays its shim.

use std::fs;
use std::io::{IoSlice, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use iii_protocol::frame::{Frame, read_frame};
use iii_protocol::guest::{BootPlan, GuestNetwork, KIND_HELLO, KIND_PLAN, ProcessPlan, RootPlan, VERSION};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::bed::Bed;
use crate::{MEMORY_MIB, binary, environment};

/// The disk of the bed's worker, in its home.
const SCRATCH_DISK: &str = "managed/bench/scratch.ext4";

/// A guest whose agent has said hello; killed when dropped.
pub(crate) struct Bare {
    /// From the start of the VMM's process to the agent's hello.
    pub(crate) hello_after: Duration,
    vmm: Child,
    agent: UnixStream,
    listener: UnixListener,
    /// How the guest sets its network device up.
    network: Option<GuestNetwork>,
    /// The other end of the network device where nobody serves it.
    _unserved: UnixDatagram,
}

impl Bare {
    /// With the same agent and disks as the bed's worker, which must be stopped. `network` is the socket behind
    /// the guest's network device, where a server of a stream of frames has the other end, and how the guest sets the
    /// device up.
    pub(crate) fn boot(bed: &Bed, network: Option<(UnixStream, GuestNetwork)>) -> Bare {
        Bare::boot_on(bed, &bed.home().join(SCRATCH_DISK), network)
    }

    /// With the same agent and a disk like that of the bed's worker, which must be stopped now and may run beside it later.
    pub(crate) fn boot_beside(bed: &Bed) -> Bare {
        let copy = bed.home().join("floor-scratch.ext4");
        let copied =
            Command::new("cp").arg("--sparse=always").arg(bed.home().join(SCRATCH_DISK)).arg(&copy).status();
        assert!(copied.expect("cp runs").success());
        Bare::boot_on(bed, &copy, None)
    }

    fn boot_on(bed: &Bed, scratch_disk: &Path, network: Option<(UnixStream, GuestNetwork)>) -> Bare {
        let (guests_end, network) = network.unzip();
        let [socket, sessions, engine] =
            ["floor.sock", "floor-sessions.sock", "floor-engine.sock"].map(|name| bed.home().join(name));
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
        let (unserved, nobody) = UnixDatagram::pair().expect("a pair of sockets");
        let (link, guests_end) = match guests_end {
            Some(stream) => ("stream", OwnedFd::from(stream)),
            None => ("messages", nobody.into()),
        };
        // The order names whom the machine must not outlive.
        let config = serde_json::json!({ "shim_pid": std::process::id(), "kind": {
            "kind": "krun", "cpus": 1, "memory_mib": MEMORY_MIB, "root_disk": root_disk,
            "scratch_disk": scratch_disk,
            "sockets": { "control": socket, "sessions": sessions, "engine": engine },
            "libkrunfw": environment("III_LIBKRUNFW_PATH"), "network_link": link,
        } });
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let began = Instant::now();
        let vmm = Command::new(binary())
            .arg("__vmm")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the VMM starts");
        let descriptors = [guests_end.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let order = config.to_string();
        sendmsg::<()>(ours.as_raw_fd(), &[IoSlice::new(order.as_bytes())], &rights, MsgFlags::empty(), None)
            .expect("it takes its order");
        drop(ours);
        let (mut agent, _) = listener.accept().expect("the agent connects");
        let frame = read_frame(&mut agent).expect("a frame").expect("a frame");
        let hello_after = began.elapsed();
        assert_eq!(frame.kind, KIND_HELLO);
        Bare { hello_after, vmm, agent, listener, network, _unserved: unserved }
    }

    /// Runs a program in the guest that connects to the control port, and hands that second connection over.
    pub(crate) fn connection_of(&mut self, argv: &[&str]) -> UnixStream {
        let plan = BootPlan {
            now_ns: None,
            version: VERSION,
            hostname: "bare".into(),
            root: RootPlan::Overlay { lower: "/dev/vda".into(), upper: "/dev/vdb".into() },
            network: self.network.clone(),
            engine_port: None,
            hold: false,
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
