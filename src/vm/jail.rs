//! What a VMM's process gives up before its guest runs.

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Takes the host's network away from the calling thread and all that it starts, for good: it can make no more sockets
/// but Unix ones. The guest's traffic goes through the socket that the shim gave it, and the shim's stack has the policy.
///
/// Fails when the kernel takes no filter.
pub(super) fn drop_network() -> Result<(), seccompiler::Error> {
    let unix = u64::from(libc::AF_UNIX.unsigned_abs());
    let is_other = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, unix)?;
    let rules = [
        (libc::SYS_socket, vec![SeccompRule::new(vec![is_other])?]),
        // It makes sockets too, past any filter of system calls.
        (libc::SYS_io_uring_setup, Vec::new()),
    ];
    let denied = SeccompAction::Errno(libc::EACCES.unsigned_abs());
    let machine = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules.into_iter().collect(), SeccompAction::Allow, denied, machine)?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&program)
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read as _, Write as _};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;

    #[test]
    fn only_unix_sockets_are_left_also_to_threads_that_come_later() {
        let server = TcpListener::bind("[::1]:0").or_else(|_| TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = server.local_addr().unwrap();
        TcpStream::connect(address).unwrap();
        let tries = move || {
            [
                TcpStream::connect(address).map(drop),
                TcpListener::bind("127.0.0.1:0").map(drop),
                UdpSocket::bind("127.0.0.1:0").map(drop),
            ]
            .map(|tried| tried.map_err(|error| error.kind()))
        };
        let inside = thread::spawn(move || {
            drop_network().unwrap();
            let later = thread::spawn(tries).join().unwrap();
            let (mut one, mut other) = UnixStream::pair().unwrap();
            one.write_all(b"x").unwrap();
            other.read_exact(&mut [0]).unwrap();
            [tries(), later]
        });
        assert_eq!(inside.join().unwrap(), [[Err(ErrorKind::PermissionDenied); 3]; 2]);
        // Nobody else's is gone.
        TcpStream::connect(address).unwrap();
    }
}
