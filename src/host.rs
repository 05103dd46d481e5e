//! What this host can do: the checks behind start errors.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use iii_protocol::api::{ErrorBody, ErrorCode};

use crate::home::Home;

/// The device every machine needs.
const KVM: &str = "/dev/kvm";
/// Environment variable that names a libkrunfw file.
pub const LIBKRUNFW_ENV: &str = "III_LIBKRUNFW_PATH";
/// The name libkrun asks the loader for.
pub const LIBKRUNFW_NAME: &str = "libkrunfw.so.5";
/// Where distributions put libraries; the loader's own search order, as far as it is the same everywhere.
const LIBRARY_FOLDERS: [&str; 9] = [
    "/usr/local/lib64",
    "/usr/local/lib",
    "/usr/local/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/lib64",
    "/lib",
];
/// Below this much free space no machine is started: its scratch disk would fail at the first write.
pub const MIN_FREE_BYTES: u64 = 64 * 1024 * 1024;

fn host_error(message: impl Into<String>, hint: impl Into<String>) -> ErrorBody {
    ErrorBody { code: ErrorCode::Host, message: message.into(), hint: Some(hint.into()) }
}

/// Number of CPUs a machine may have at most.
pub fn cpus() -> u8 {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    u8::try_from(cpus).unwrap_or(u8::MAX)
}

/// Whether the host is itself emulated in software (QEMU's TCG), so that everything takes many times longer.
pub fn is_emulated() -> bool {
    fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| names_emulated_cpu(&text))
}

fn names_emulated_cpu(cpuinfo: &str) -> bool {
    cpuinfo.lines().any(|line| line.starts_with("model name") && line.contains("TCG"))
}

/// Whether machines can run here. Looks further than opening the device: some hosts offer one that
/// creates a VM and then cannot run it, because their CPU has no virtualisation.
pub fn check_kvm() -> Result<(), ErrorBody> {
    check_kvm_by(Path::new(KVM), Path::new("/proc/cpuinfo"))
}

fn check_kvm_by(device: &Path, cpuinfo: &Path) -> Result<(), ErrorBody> {
    File::options().read(true).write(true).open(device).map_err(|error| cannot_open(device, &error))?;
    match fs::read_to_string(cpuinfo) {
        Ok(text) if cfg!(target_arch = "x86_64") && !has_virtualisation(&text) => Err(host_error(
            format!(
                "{} is there, but this CPU offers no virtualisation (neither vmx nor svm)",
                device.display()
            ),
            "enable virtualisation in the firmware, or nested virtualisation if this is itself a VM",
        )),
        _ => Ok(()),
    }
}

fn cannot_open(device: &Path, error: &io::Error) -> ErrorBody {
    let device = device.display();
    match error.kind() {
        io::ErrorKind::NotFound => host_error(
            format!("this host has no {device}"),
            "enable virtualisation in the firmware (or nested virtualisation of this VM) and load the kernel \
             module `kvm_intel` or `kvm_amd`",
        ),
        io::ErrorKind::PermissionDenied => host_error(
            format!("no permission to open {device}"),
            "add yourself to the device's group: `sudo usermod -aG kvm $USER`, then log in again",
        ),
        _ => host_error(format!("cannot open {device}: {error}"), format!("look at `ls -l {device}`")),
    }
}

fn has_virtualisation(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| line.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}

/// Finds the guest kernel's library: `III_LIBKRUNFW_PATH`, `III_HOME/lib`, the system's folders.
pub fn find_libkrunfw(home: &Home) -> Result<PathBuf, ErrorBody> {
    find_libkrunfw_in(std::env::var_os(LIBKRUNFW_ENV), &home.lib(), &LIBRARY_FOLDERS.map(Path::new))
}

/// `named` is what the variable says.
fn find_libkrunfw_in(named: Option<OsString>, own: &Path, folders: &[&Path]) -> Result<PathBuf, ErrorBody> {
    if let Some(path) = named.filter(|v| !v.is_empty()) {
        let path = PathBuf::from(path);
        return if path.is_file() {
            Ok(path)
        } else {
            Err(host_error(
                format!("{LIBKRUNFW_ENV} names {}, which is not a file", path.display()),
                format!("point it at a {LIBKRUNFW_NAME}, or unset it"),
            ))
        };
    }
    let folders = std::iter::once(own).chain(folders.iter().copied());
    folders.map(|folder| folder.join(LIBKRUNFW_NAME)).find(|path| path.is_file()).ok_or_else(|| {
        host_error(
            format!("{LIBKRUNFW_NAME} (the guest kernel) was not found"),
            format!(
                "install libkrunfw 5 from your distribution, or put {LIBKRUNFW_NAME} into {}, or name it in \
                 {LIBKRUNFW_ENV}",
                own.display()
            ),
        )
    })
}

/// Whether there is room for a machine to write to.
pub fn check_free_space(folder: &Path) -> Result<(), ErrorBody> {
    let Ok(stat) = nix::sys::statvfs::statvfs(folder) else { return Ok(()) };
    check_room(stat.blocks_available() * stat.fragment_size(), folder)
}

fn check_room(free: u64, folder: &Path) -> Result<(), ErrorBody> {
    if free >= MIN_FREE_BYTES {
        return Ok(());
    }
    Err(host_error(
        format!("only {} MiB are free in {}", free / (1024 * 1024), folder.display()),
        format!("free at least {} MiB there and start the worker again", MIN_FREE_BYTES / (1024 * 1024)),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_without_vmx_and_svm_cannot_run_machines() {
        assert!(has_virtualisation("flags\t\t: fpu svm lm\n"));
        assert!(has_virtualisation("flags : vmx"));
        assert!(!has_virtualisation("flags : fpu svm_lock lm\nbugs : vmx"));
    }

    #[test]
    fn no_device_no_permission_and_no_virtualisation_are_told_apart_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let (device, able) = (path("kvm", ""), path("able", "flags : fpu vmx\n"));
        check_kvm_by(&device, &able).unwrap();
        // Nothing is known of a CPU that does not tell.
        check_kvm_by(&device, &dir.path().join("none")).unwrap();

        let missing = dir.path().join("no-kvm");
        let denied = cannot_open(&device, &io::ErrorKind::PermissionDenied.into());
        for (error, message, hint) in [
            (check_kvm_by(&missing, &able).unwrap_err(), "this host has no ", "load the kernel module"),
            (denied, "no permission to open ", "usermod -aG kvm"),
            (check_kvm_by(dir.path(), &able).unwrap_err(), "cannot open ", "ls -l "),
        ] {
            assert_eq!(error.code, ErrorCode::Host);
            assert!(error.message.starts_with(message), "{error:?}");
            assert!(error.hint.as_ref().unwrap().contains(hint), "{error:?}");
        }
        if cfg!(target_arch = "x86_64") {
            let error = check_kvm_by(&device, &path("unable", "flags : fpu\n")).unwrap_err();
            assert!(error.message.contains("no virtualisation") && error.hint.is_some(), "{error:?}");
        }
    }

    #[test]
    fn a_device_that_may_not_be_opened_is_no_permission() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("kvm");
        fs::write(&device, "").unwrap();
        fs::set_permissions(&device, fs::Permissions::from_mode(0o400)).unwrap();
        let result = check_kvm_by(&device, Path::new("/no/cpuinfo"));
        match nix::unistd::geteuid().is_root() {
            true => result.unwrap(),
            false => assert!(result.unwrap_err().message.starts_with("no permission to open ")),
        }
    }

    #[test]
    fn the_guest_kernel_is_where_the_variable_says_then_our_own_then_the_systems_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let [own, first, second] = ["own", "first", "second"].map(|name| dir.path().join(name));
        let library = |folder: &Path| {
            fs::create_dir_all(folder).unwrap();
            let path = folder.join(LIBKRUNFW_NAME);
            fs::write(&path, "").unwrap();
            path
        };
        let find = |named: &str| find_libkrunfw_in(Some(named.into()), &own, &[&first, &second]);

        let error = find("").unwrap_err();
        assert_eq!(error.code, ErrorCode::Host);
        assert!(error.message.starts_with("libkrunfw.so.5 (the guest kernel) was not found"), "{error:?}");
        let hint = error.hint.unwrap();
        assert!(hint.contains(own.to_str().unwrap()) && hint.contains(LIBKRUNFW_ENV), "{hint}");

        // From the last place to the first, each wins over those before it. A folder of that name is no library.
        fs::create_dir_all(first.join(LIBKRUNFW_NAME)).unwrap();
        let found = library(&second);
        assert_eq!(find("").unwrap(), found);
        fs::remove_dir(first.join(LIBKRUNFW_NAME)).unwrap();
        let found = library(&first);
        assert_eq!(find("").unwrap(), found);
        let found = library(&own);
        assert_eq!(find("").unwrap(), found);
        assert_eq!(find_libkrunfw_in(None, &own, &[]).unwrap(), found);
        let named = library(&dir.path().join("named"));
        assert_eq!(find(named.to_str().unwrap()).unwrap(), named);

        // One that is named and not there is an error, and not another one.
        let error = find("/no/such/libkrunfw.so.5").unwrap_err();
        assert!(error.message.contains("III_LIBKRUNFW_PATH names /no/such/libkrunfw.so.5"), "{error:?}");
        assert!(error.hint.unwrap().contains("unset it"));
    }

    #[test]
    fn a_machine_needs_room_for_its_disk() {
        let dir = tempfile::tempdir().unwrap();
        check_room(MIN_FREE_BYTES, dir.path()).unwrap();
        let error = check_room(MIN_FREE_BYTES - 1, dir.path()).unwrap_err();
        assert_eq!(
            (error.code, error.message),
            (ErrorCode::Host, format!("only 63 MiB are free in {}", dir.path().display()))
        );
        assert!(error.hint.unwrap().contains("free at least 64 MiB"));
        // A folder that is still to be made.
        check_free_space(&dir.path().join("none")).unwrap();
    }

    #[test]
    fn an_emulated_host_is_told_by_its_cpu_name() {
        assert!(names_emulated_cpu("model name\t: QEMU TCG CPU version 2.5+\n"));
        assert!(!names_emulated_cpu("model name\t: AMD EPYC 9B14\n"));
    }
}
