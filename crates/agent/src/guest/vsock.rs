//! The guest's vsock sockets.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use iii_protocol::session::{SESSION_PORT, WINDOW_BYTES};
use nix::libc::{self, VMADDR_CID_ANY, VMADDR_CID_HOST};
use nix::setsockopt_impl;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, connect, getpeername, listen, setsockopt,
    socket, sockopt::SetStruct,
};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
/// What a session's connection may hold that was not read yet. The kernel's usual 256 KiB are less than a frame of data
/// with its header: the host would stop in each, and wait for word of room. The window is what a client may have on the
/// way at most, and the agent reads at once, so no memory is held for longer by this.
const SESSION_BUFFER_BYTES: u64 = WINDOW_BYTES as u64;

// The options of vsock by their numbers in linux/vm_sockets.h, each with a u64.
const SO_VM_SOCKETS_BUFFER_SIZE: libc::c_int = 0;
const SO_VM_SOCKETS_BUFFER_MAX_SIZE: libc::c_int = 2;

#[derive(Debug, Clone)]
struct BufferSize;
setsockopt_impl!(BufferSize, libc::AF_VSOCK, SO_VM_SOCKETS_BUFFER_SIZE, u64, SetStruct<'_, u64>);

#[derive(Debug, Clone)]
struct BufferMaxSize;
setsockopt_impl!(BufferMaxSize, libc::AF_VSOCK, SO_VM_SOCKETS_BUFFER_MAX_SIZE, u64, SetStruct<'_, u64>);

fn stream() -> nix::Result<OwnedFd> {
    socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
}

/// Listens for sessions.
pub(super) fn listen_for_sessions() -> io::Result<OwnedFd> {
    let socket = stream()?;
    // Inherited by each connection. Less works as well.
    let _ = setsockopt(&socket, BufferMaxSize, &SESSION_BUFFER_BYTES);
    let _ = setsockopt(&socket, BufferSize, &SESSION_BUFFER_BYTES);
    bind(socket.as_raw_fd(), &VsockAddr::new(VMADDR_CID_ANY, SESSION_PORT))?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(socket)
}

/// Connects to a port of the host.
pub(super) fn dial_host(port: u32) -> io::Result<OwnedFd> {
    let socket = stream()?;
    connect(socket.as_raw_fd(), &VsockAddr::new(VMADDR_CID_HOST, port))?;
    Ok(socket)
}

/// Whether the host is at the other end: where the kernel has a loopback for vsock, any process of the guest could be.
pub(super) fn is_from_host(connection: &OwnedFd) -> bool {
    getpeername::<VsockAddr>(connection.as_raw_fd()).is_ok_and(|peer| peer.cid() == VMADDR_CID_HOST)
}
