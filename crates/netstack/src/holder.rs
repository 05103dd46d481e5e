//! Which process has a port, as far as this user may know: the kernel's tables of sockets name an inode, and the
//! descriptors of processes lead to it (proc(5)).

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use iii_protocol::network::Transport;

/// State of a listening TCP socket in /proc/net/tcp.
const LISTENING: &str = "0A";
/// State of an unconnected UDP socket.
const UNCONNECTED: &str = "07";

/// The process that has a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its id.
    pub pid: u32,
    /// Its name, as the kernel has it: at most 15 bytes.
    pub name: String,
}

impl Holder {
    pub(crate) fn told(&self) -> String {
        format!(", which {} (process {}) has", self.name, self.pid)
    }
}

/// Looks for who has `address`. `None` when nobody has, or it is not for us to see.
pub(crate) fn find_holder(transport: Transport, address: SocketAddr) -> Option<Holder> {
    let (tables, state) = match transport {
        Transport::Tcp => (["/proc/net/tcp", "/proc/net/tcp6"], LISTENING),
        Transport::Udp => (["/proc/net/udp", "/proc/net/udp6"], UNCONNECTED),
    };
    let inode = tables.iter().find_map(|table| {
        let text = fs::read_to_string(table).ok()?;
        text.lines().skip(1).find_map(|line| inode_of(line, state, address))
    })?;
    process_with(&format!("socket:[{inode}]"))
}

/// The inode of a line of the table, if its socket stands in the way of `address`.
fn inode_of(line: &str, state: &str, address: SocketAddr) -> Option<u64> {
    let mut words = line.split_ascii_whitespace();
    let (ip, port) = words.nth(1)?.rsplit_once(':')?;
    if u16::from_str_radix(port, 16).ok()? != address.port() || words.nth(1)? != state {
        return None;
    }
    let ip = read_ip(ip)?;
    let is_same = ip == address.ip() || ip.is_unspecified() || address.ip().is_unspecified();
    // After the state: queues, timer, retransmissions, user, timeout.
    if is_same { words.nth(5)?.parse().ok() } else { None }
}

/// An address as the kernel prints it: words of 32 bits in the machine's byte order.
fn read_ip(text: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(text.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    if text.len() == 8 {
        return Some(IpAddr::from(word(0)?));
    }
    let mut bytes = [0; 16];
    for (index, chunk) in bytes.chunks_exact_mut(4).enumerate() {
        chunk.copy_from_slice(&word(index * 8)?);
    }
    Some(IpAddr::from(bytes).to_canonical())
}

fn process_with(target: &str) -> Option<Holder> {
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { continue };
        let has = |link: &Path| fs::read_link(link).is_ok_and(|to| to.as_os_str() == target);
        if descriptors.flatten().any(|descriptor| has(&descriptor.path())) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(Holder { pid, name: name.trim().to_owned() });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel_are_read() {
        let line =
            "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000  0 4242 1 0";
        let at = |address: &str| inode_of(line, LISTENING, address.parse().unwrap());
        if cfg!(target_endian = "little") {
            assert_eq!(at("127.0.0.1:8080"), Some(4242));
            assert_eq!(at("0.0.0.0:8080"), Some(4242));
            assert_eq!(at("127.0.0.2:8080"), None);
            assert_eq!(at("127.0.0.1:8081"), None);
        }
        assert_eq!(inode_of("nonsense", LISTENING, "127.0.0.1:1".parse().unwrap()), None);
    }
}
