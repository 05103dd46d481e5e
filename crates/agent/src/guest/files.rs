//! Files and settings that a machine has beyond its image: names, limits, the worker's folder.
//!
//! Everything here runs after the switch to the workload's root, so no link of a hostile image leads
//! anywhere but into that root.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown};
use std::path::Path;

use iii_protocol::guest::GuestNetwork;

use crate::console;
use crate::platform::WORKSPACE;
use crate::user::Identity;

/// Kernel settings as Docker makes them: low ports and ping for everyone. The guest has nobody to be
/// protected from that.
const SETTINGS: [(&str, &str); 2] = [
    ("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
    ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
];

/// Applies the kernel settings that this kernel has.
pub(super) fn apply_settings() {
    for (path, value) in SETTINGS {
        // A kernel built without the setting has nothing to relax.
        let _ = fs::write(path, value);
    }
}

/// Contents of /etc/hosts: the names every program expects (hosts(5)), the worker's own, and those of its network.
fn hosts(hostname: &str, network: Option<&GuestNetwork>) -> String {
    let mut text = format!(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n\
         127.0.1.1\t{hostname}\n"
    );
    for (name, address) in network.iter().flat_map(|network| &network.hosts) {
        text.push_str(&format!("{address}\t{name}\n"));
    }
    text
}

/// Contents of /etc/resolv.conf. An empty list makes the resolver ask 127.0.0.1 and fail at once.
fn resolv_conf(network: Option<&GuestNetwork>) -> String {
    let servers: String = network
        .iter()
        .flat_map(|network| &network.dns)
        .map(|server| format!("nameserver {server}\n"))
        .collect();
    match servers.is_empty() {
        true => "# written by iii: this machine may not ask for names\n".to_owned(),
        false => format!("# written by iii\n{servers}"),
    }
}

/// Writes the name files under `root` ("" in a guest). A file that cannot be written is told on the
/// console: it is no reason not to start.
pub(super) fn write_names(root: &Path, hostname: &str, network: Option<&GuestNetwork>) {
    let etc = root.join("etc");
    let files = [
        ("hosts", hosts(hostname, network)),
        ("hostname", format!("{hostname}\n")),
        ("resolv.conf", resolv_conf(network)),
    ];
    let made = DirBuilder::new().recursive(true).mode(0o755).create(&etc);
    for (name, content) in files {
        if let Err(error) = made.as_ref().map_err(clone_error).and_then(|()| replace(&etc, name, &content)) {
            console::say(format_args!("/etc/{name} is not written: {error}"));
        }
    }
}

fn clone_error(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), error.to_string())
}

/// Replaces the name itself, never what a link of that name leads to. An unchanged file stays untouched,
/// so that a restart writes nothing.
fn replace(folder: &Path, name: &str, content: &str) -> io::Result<()> {
    let path = folder.join(name);
    let is_file = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file());
    if is_file && fs::read(&path).is_ok_and(|present| present == content.as_bytes()) {
        return Ok(());
    }
    let fresh = folder.join(format!(".{name}.iii"));
    // One left over by a power loss, or planted by the image.
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::write(&fresh, content)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o644))?;
    fs::rename(&fresh, &path)
}

/// Makes the worker's folder, for its user; one that is there stays as it is.
pub(super) fn make_workspace(root: &Path, owner: &Identity) -> io::Result<()> {
    let path = root.join(WORKSPACE.trim_start_matches('/'));
    if fs::symlink_metadata(&path).is_ok() {
        return Ok(());
    }
    DirBuilder::new().mode(0o755).create(&path)?;
    if (owner.uid, owner.gid) == (0, 0) {
        return Ok(());
    }
    chown(&path, Some(owner.uid), Some(owner.gid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn localhost_and_the_worker_resolve_without_a_network() {
        let text = hosts("api", None);
        assert!(text.contains("127.0.0.1\tlocalhost\n"));
        assert!(text.ends_with("127.0.1.1\tapi\n"));
        assert!(!resolv_conf(None).contains("nameserver"));
    }

    #[test]
    fn a_network_brings_its_names_and_whom_to_ask() {
        let gateway = [10, 0, 0, 1].into();
        let network = GuestNetwork {
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            addresses: vec![],
            dns: vec![gateway],
            hosts: vec![("host.iii.internal".into(), gateway)],
        };
        assert!(hosts("api", Some(&network)).ends_with("\n10.0.0.1\thost.iii.internal\n"));
        assert!(resolv_conf(Some(&network)).ends_with("\nnameserver 10.0.0.1\n"));
    }

    #[test]
    fn a_resolver_file_that_is_a_link_is_replaced_not_followed() {
        let root = tempfile::tempdir().expect("folder");
        let etc = root.path().join("etc");
        fs::create_dir(&etc).expect("etc");
        let outside = root.path().join("outside");
        fs::write(&outside, "precious").expect("write");
        symlink(&outside, etc.join("resolv.conf")).expect("link");
        symlink(&outside, etc.join(".hosts.iii")).expect("link");
        write_names(root.path(), "api", None);
        assert_eq!(fs::read_to_string(&outside).expect("read"), "precious");
        assert_eq!(fs::read_to_string(etc.join("resolv.conf")).expect("read"), resolv_conf(None));
        assert_eq!(fs::read_to_string(etc.join("hosts")).expect("read"), hosts("api", None));
        assert!(fs::symlink_metadata(etc.join("hosts")).expect("meta").is_file());
    }

    #[test]
    fn an_image_without_etc_gets_one_and_a_second_boot_writes_nothing() {
        let root = tempfile::tempdir().expect("folder");
        write_names(root.path(), "api", None);
        let path = root.path().join("etc/hostname");
        assert_eq!(fs::read_to_string(&path).expect("read"), "api\n");
        let before = fs::metadata(&path).expect("meta").modified().expect("time");
        write_names(root.path(), "api", None);
        assert_eq!(fs::metadata(&path).expect("meta").modified().expect("time"), before);
    }

    #[test]
    fn a_workspace_of_the_image_is_left_alone() {
        let root = tempfile::tempdir().expect("folder");
        let nobody = Identity { uid: 0, gid: 0, groups: vec![], home: None };
        make_workspace(root.path(), &nobody).expect("made");
        fs::set_permissions(root.path().join("workspace"), fs::Permissions::from_mode(0o700)).expect("chmod");
        make_workspace(root.path(), &nobody).expect("kept");
        let mode = fs::metadata(root.path().join("workspace")).expect("meta").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}
