//! What this host can do: the checks behind start errors.

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
    match File::options().read(true).write(true).open(KVM) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(host_error(
                format!("this host has no {KVM}"),
                "enable virtualisation in the firmware (or nested virtualisation of this VM) and load the \
                 kernel module `kvm_intel` or `kvm_amd`",
            ));
        }
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            return Err(host_error(
                format!("no permission to open {KVM}"),
                "add yourself to the device's group: `sudo usermod -aG kvm $USER`, then log in again",
            ));
        }
        Err(e) => {
            return Err(host_error(format!("cannot open {KVM}: {e}"), format!("look at `ls -l {KVM}`")));
        }
    }
    match fs::read_to_string("/proc/cpuinfo") {
        Ok(text) if cfg!(target_arch = "x86_64") && !has_virtualisation(&text) => Err(host_error(
            format!("{KVM} is there, but this CPU offers no virtualisation (neither vmx nor svm)"),
            "enable virtualisation in the firmware, or nested virtualisation if this is itself a VM",
        )),
        _ => Ok(()),
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
    if let Some(path) = std::env::var_os(LIBKRUNFW_ENV).filter(|v| !v.is_empty()) {
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
    let own = home.lib();
    let folders = std::iter::once(own.as_path()).chain(LIBRARY_FOLDERS.iter().map(Path::new));
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
    let free = stat.blocks_available() * stat.fragment_size();
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
    fn an_emulated_host_is_told_by_its_cpu_name() {
        assert!(names_emulated_cpu("model name\t: QEMU TCG CPU version 2.5+\n"));
        assert!(!names_emulated_cpu("model name\t: AMD EPYC 9B14\n"));
    }
}
