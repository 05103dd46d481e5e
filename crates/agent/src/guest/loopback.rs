//! Brings `lo` up with one rtnetlink message; the kernel gives it 127.0.0.1/8 and ::1 by itself.
//!
//! Source of the layout: rtnetlink(7) and netlink(7). `nlmsghdr` (16 bytes: length, type, flags, sequence,
//! port) and `ifinfomsg` (16 bytes: family, pad, type, index, flags, change), all in native byte order.

use std::io;
use std::os::fd::AsRawFd as _;

use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

/// `lo` is the first interface of every network namespace.
const LOOPBACK_INDEX: i32 = 1;
const HEADER_BYTES: usize = 16;
const MESSAGE_BYTES: u32 = 32;
/// More than the header and the error number that an answer is read for.
const ANSWER_BYTES: usize = 512;

/// Sets the loopback interface up.
pub(super) fn bring_up() -> io::Result<()> {
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    sendto(socket.as_raw_fd(), &request(), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = [0u8; ANSWER_BYTES];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    check(&answer[..length])
}

fn request() -> Vec<u8> {
    let up = u32::try_from(libc::IFF_UP).unwrap_or_default();
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_ACK).unwrap_or_default();
    let mut message = Vec::with_capacity(MESSAGE_BYTES as usize);
    message.extend_from_slice(&MESSAGE_BYTES.to_ne_bytes());
    message.extend_from_slice(&libc::RTM_NEWLINK.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    message.extend_from_slice(&1u32.to_ne_bytes()); // sequence number
    message.extend_from_slice(&0u32.to_ne_bytes()); // port: the kernel fills it in
    message.extend_from_slice(&[0, 0]); // AF_UNSPEC, padding
    message.extend_from_slice(&0u16.to_ne_bytes()); // device type: not looked at
    message.extend_from_slice(&LOOPBACK_INDEX.to_ne_bytes());
    message.extend_from_slice(&up.to_ne_bytes()); // flags
    message.extend_from_slice(&up.to_ne_bytes()); // which of the flags to change
    message
}

/// An acknowledgement is an NLMSG_ERROR whose number is 0.
fn check(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let error = answer
        .get(HEADER_BYTES..HEADER_BYTES + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map(i32::from_ne_bytes);
    match (kind.map(i32::from), error) {
        (Some(libc::NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(libc::NLMSG_ERROR), Some(error)) => Err(io::Error::from_raw_os_error(-error)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "not an rtnetlink acknowledgement")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sched::{CloneFlags, unshare};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn programs_reach_each_other_on_localhost() {
        // In a thread of its own: the new network namespace must not leak into other tests.
        let done = std::thread::spawn(|| {
            if unshare(CloneFlags::CLONE_NEWNET).is_err() {
                eprintln!("SKIPPED: a network namespace needs root");
                return;
            }
            assert!(
                TcpListener::bind("127.0.0.1:0").and_then(|it| TcpStream::connect(it.local_addr()?)).is_err()
            );
            bring_up().expect("lo comes up");
            for address in ["127.0.0.1:0", "[::1]:0"] {
                let listener = TcpListener::bind(address).expect(address);
                TcpStream::connect(listener.local_addr().expect("address")).expect(address);
            }
        });
        done.join().expect("checks");
    }

    #[test]
    fn a_refusal_of_the_kernel_is_its_error_number() {
        let mut answer = [0u8; 36];
        answer[4..6].copy_from_slice(&u16::try_from(libc::NLMSG_ERROR).expect("small").to_ne_bytes());
        assert!(check(&answer).is_ok());
        answer[16..20].copy_from_slice(&(-libc::EPERM).to_ne_bytes());
        assert_eq!(check(&answer).unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert_eq!(check(&answer[..10]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
