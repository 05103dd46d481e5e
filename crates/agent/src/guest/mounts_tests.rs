//! The mount plan, asserted on a recording fake: order, flags and options without a guest.

use std::collections::HashSet;

use nix::sys::stat::{self, Mode, SFlag};

use super::*;

#[derive(Default)]
struct Recorder {
    calls: Vec<String>,
    /// Folders of the image, with whether they hold anything.
    full: HashSet<&'static str>,
    folders: HashSet<&'static str>,
    refuses: Option<&'static str>,
}

impl Recorder {
    fn record(&mut self, call: String) -> io::Result<()> {
        let refused = self.refuses.is_some_and(|what| call.contains(what));
        self.calls.push(call);
        if refused { Err(io::Error::from_raw_os_error(nix::libc::ENODEV)) } else { Ok(()) }
    }
}

impl Syscalls for Recorder {
    fn mount(&mut self, it: &Mount) -> io::Result<()> {
        let flags: Vec<String> = it.flags.iter_names().map(|(name, _)| name.to_lowercase()).collect();
        self.record(format!(
            "mount {} {} {} [{}] {}",
            it.fstype,
            it.source,
            it.target,
            flags.join(","),
            it.data
        ))
    }
    fn make_folder(&mut self, path: &str, mode: u32) -> io::Result<()> {
        self.record(format!("mkdir {path} {mode:o}"))
    }
    fn make_folder_like(&mut self, path: &str, model: &str) -> io::Result<()> {
        self.record(format!("mkdir {path} like {model}"))
    }
    fn link(&mut self, path: &str, to: &str) -> io::Result<()> {
        self.record(format!("link {path} {to}"))
    }
    fn enter_top_of_root(&mut self) -> io::Result<()> {
        self.record("enter top of /".into())
    }
    fn switch_root(&mut self, path: &str) -> io::Result<()> {
        self.record(format!("switch root {path}"))
    }
    fn is_folder(&self, path: &str) -> bool {
        self.folders.contains(path)
    }
    fn is_empty(&self, path: &str) -> bool {
        !self.full.contains(path)
    }
}

#[test]
fn the_private_root_never_writes_to_the_folder_of_the_host() {
    let mut sys = Recorder::default();
    private_root(&mut sys).expect("plan");
    assert_eq!(
        sys.calls,
        [
            "mount tmpfs iii / [ms_nosuid,ms_nodev] mode=0755",
            "enter top of /",
            "mkdir /lower 755",
            "mkdir /scratch 755",
            "mkdir /root 755",
            "mkdir /volatile 755",
            "mkdir /dev 755",
            "mount devtmpfs devtmpfs /dev [ms_nosuid] mode=0755",
        ]
    );
}

#[test]
fn the_disks_are_joined_read_only_below_writable() {
    let mut sys = Recorder::default();
    join_disks(&mut sys, "/dev/vda", "/dev/vdb").expect("plan");
    assert_eq!(
        sys.calls,
        [
            "mount erofs /dev/vda /lower [ms_rdonly,ms_nodev] ",
            "mount ext4 /dev/vdb /scratch [ms_nodev,ms_noatime] noinit_itable",
            "mkdir /scratch/upper like /lower",
            "mkdir /scratch/work 755",
            "mount overlay overlay /root [ms_nodev] lowerdir=/lower,upperdir=/scratch/upper,workdir=/scratch/work",
        ]
    );
}

#[test]
fn a_workload_finds_the_system_mounts_in_place() {
    let mut sys = Recorder::default();
    enter_root(&mut sys).expect("plan");
    let mounts: Vec<&str> =
        sys.calls.iter().map(String::as_str).filter(|call| !call.starts_with("mkdir")).collect();
    assert_eq!(
        mounts,
        [
            "switch root /root",
            "mount proc proc /proc [ms_nosuid,ms_nodev,ms_noexec] ",
            "mount sysfs sysfs /sys [ms_nosuid,ms_nodev,ms_noexec] ",
            "mount devtmpfs devtmpfs /dev [ms_nosuid] mode=0755",
            "mount devpts devpts /dev/pts [ms_nosuid,ms_noexec] newinstance,ptmxmode=0666,mode=0620,gid=5",
            "mount tmpfs tmpfs /dev/shm [ms_nosuid,ms_nodev,ms_noexec] mode=1777",
            "mount mqueue mqueue /dev/mqueue [ms_nosuid,ms_nodev,ms_noexec] ",
            "mount cgroup2 cgroup2 /sys/fs/cgroup [ms_nosuid,ms_nodev,ms_noexec] favordynmods",
            "mount tmpfs tmpfs /run [ms_nosuid,ms_nodev] mode=0755",
            "mount tmpfs tmpfs /tmp [ms_nosuid,ms_nodev] mode=1777",
            "link /dev/fd /proc/self/fd",
            "link /dev/stdin /proc/self/fd/0",
            "link /dev/stdout /proc/self/fd/1",
            "link /dev/stderr /proc/self/fd/2",
        ]
    );
}

#[test]
fn what_the_image_has_in_run_is_kept_under_fresh_memory() {
    let mut sys = Recorder {
        folders: HashSet::from(["/lower/run", "/root/run", "/lower/tmp", "/root/tmp"]),
        full: HashSet::from(["/lower/run"]),
        ..Recorder::default()
    };
    enter_root(&mut sys).expect("plan");
    assert_eq!(
        &sys.calls[..4],
        [
            "mkdir /volatile/run/upper 755",
            "mkdir /volatile/run/work 755",
            "mount overlay overlay /root/run [ms_nosuid,ms_nodev] \
             lowerdir=/lower/run,upperdir=/volatile/run/upper,workdir=/volatile/run/work",
            "switch root /root",
        ]
    );
    assert!(!sys.calls.iter().any(|call| call.starts_with("mount tmpfs tmpfs /run")));
    assert!(sys.calls.iter().any(|call| call.starts_with("mount tmpfs tmpfs /tmp")));
}

#[test]
fn a_run_that_is_a_link_is_not_followed_before_the_switch() {
    let mut sys = Recorder {
        folders: HashSet::from(["/lower/run"]),
        full: HashSet::from(["/lower/run"]),
        ..Recorder::default()
    };
    enter_root(&mut sys).expect("plan");
    assert_eq!(sys.calls[0], "switch root /root");
}

#[test]
fn a_kernel_without_message_queues_still_boots_and_one_without_proc_does_not() {
    let mut sys = Recorder { refuses: Some("mount mqueue"), ..Recorder::default() };
    enter_root(&mut sys).expect("optional");
    let mut sys = Recorder { refuses: Some("mount proc"), ..Recorder::default() };
    let error = enter_root(&mut sys).unwrap_err();
    assert_eq!((error.what.as_str(), &error.message[..21]), ("mounts", "proc on /proc as proc"));
}

#[test]
fn a_kernel_that_does_not_know_favordynmods_has_cgroups_all_the_same() {
    let mut sys = Recorder { refuses: Some("favordynmods"), ..Recorder::default() };
    enter_root(&mut sys).expect("plan");
    let mount = "mount cgroup2 cgroup2 /sys/fs/cgroup [ms_nosuid,ms_nodev,ms_noexec] ";
    let tries: Vec<_> = sys.calls.iter().filter(|call| call.starts_with("mount cgroup2")).collect();
    assert_eq!(tries, [&format!("{mount}favordynmods"), mount]);
}

#[test]
fn a_disk_that_does_not_mount_says_which() {
    for (refuses, what, message) in [
        ("mount erofs", ROOT_DISK, "/dev/vda on /lower as erofs: "),
        ("mount ext4", SCRATCH_DISK, "/dev/vdb on /scratch as ext4: "),
        // Both are well then.
        ("mount overlay", "mounts", "overlay on /root as overlay: "),
    ] {
        let mut sys = Recorder { refuses: Some(refuses), ..Recorder::default() };
        let error = join_disks(&mut sys, "/dev/vda", "/dev/vdb").unwrap_err();
        assert_eq!(error.what, what);
        assert!(error.message.starts_with(message), "{error}");
        assert!(error.hint.is_none(), "the host, which knows the file, says what to do");
    }
}

/// The kernel, with memory in place of the disks (and of the host's own device folder).
struct Rehearsal(Kernel);

impl Syscalls for Rehearsal {
    fn mount(&mut self, it: &Mount) -> io::Result<()> {
        let mut it = it.clone();
        if ["erofs", "ext4", "devtmpfs"].contains(&it.fstype) {
            (it.fstype, it.data) = ("tmpfs", String::new());
            let read_only = it.flags.contains(MsFlags::MS_RDONLY);
            it.flags.remove(MsFlags::MS_RDONLY);
            self.0.mount(&it)?;
            if read_only {
                image(Path::new(&it.target))?;
            }
            return Ok(());
        }
        self.0.mount(&it)
    }
    fn make_folder(&mut self, path: &str, mode: u32) -> io::Result<()> {
        self.0.make_folder(path, mode)
    }
    fn make_folder_like(&mut self, path: &str, model: &str) -> io::Result<()> {
        self.0.make_folder_like(path, model)
    }
    fn link(&mut self, path: &str, to: &str) -> io::Result<()> {
        self.0.link(path, to)
    }
    fn enter_top_of_root(&mut self) -> io::Result<()> {
        self.0.enter_top_of_root()
    }
    fn switch_root(&mut self, path: &str) -> io::Result<()> {
        self.0.switch_root(path)
    }
    fn is_folder(&self, path: &str) -> bool {
        self.0.is_folder(path)
    }
    fn is_empty(&self, path: &str) -> bool {
        self.0.is_empty(path)
    }
}

/// An image with a private root folder, a service's folder in /run, a device node, and little else.
fn image(at: &Path) -> io::Result<()> {
    fs::set_permissions(at, fs::Permissions::from_mode(0o750))?;
    fs::create_dir_all(at.join("run/service"))?;
    chown(at.join("run/service"), Some(77), Some(78))?;
    stat::mknod(
        &at.join("image-null"),
        SFlag::S_IFCHR,
        Mode::from_bits_truncate(0o666),
        stat::makedev(1, 3),
    )?;
    fs::write(at.join("hello"), "from the image")
}

#[test]
fn the_kernel_accepts_the_whole_plan() {
    // Root folder and mounts of a thread of its own: nothing of this is seen outside.
    let rehearsal = std::thread::spawn(|| {
        use nix::sched::{CloneFlags, unshare};
        if unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).is_err() {
            eprintln!("SKIPPED: mounting needs root");
            return;
        }
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private");
        let mut sys = Rehearsal(Kernel);
        private_root(&mut sys).expect("private root");
        join_disks(&mut sys, "/dev/vda", "/dev/vdb").expect("disks");
        enter_root(&mut sys).expect("root");

        assert_eq!(fs::read_to_string("/hello").expect("the image's file"), "from the image");
        assert_eq!(fs::metadata("/").expect("root").mode() & 0o7777, 0o750);
        let service = fs::metadata("/run/service").expect("the image's folder in /run");
        assert_eq!((service.uid(), service.gid()), (77, 78));
        assert_eq!(fs::metadata("/run").expect("/run").mode() & 0o7777, 0o755);
        assert_eq!(fs::metadata("/tmp").expect("/tmp").mode() & 0o7777, 0o1777);
        for path in ["/hello", "/run/new", "/tmp/new", "/dev/shm/new"] {
            fs::write(path, "changed").expect(path);
        }
        let mounts = fs::read_to_string("/proc/thread-self/mounts").expect("mounts");
        let places: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(1)).collect();
        for place in ["/", "/run", "/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/tmp"] {
            assert!(places.contains(&place), "{place} in {mounts}");
        }
        assert!(!mounts.contains("/scratch "), "{mounts}");
        let opened = fs::read("/image-null").expect_err("a device node of the image");
        assert_eq!(opened.kind(), io::ErrorKind::PermissionDenied);
        let null = stat::makedev(1, 3);
        stat::mknod("/null", SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), null).expect("mknod");
        assert_eq!(fs::read("/null").expect_err("a new one").kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(fs::read_link("/dev/fd").expect("link"), Path::new("/proc/self/fd"));
    });
    rehearsal.join().expect("checks");
}
