//! The outer half of a connection: a socket of the host, or the gateway's DNS.

use std::io;
use std::net::Shutdown;
use std::rc::Rc;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::dns_stream::DnsStream;

/// What a connection waits for at its outer half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Wants {
    /// There is room for what it may bring.
    pub(crate) read: bool,
    /// There is something for it.
    pub(crate) write: bool,
}

/// The outer half.
#[derive(Debug)]
pub(crate) enum Outside {
    /// A connection of the host.
    Host(TcpStream),
    /// Questions to the gateway.
    Dns(Rc<DnsStream>),
}

impl Outside {
    /// Takes what there is, without waiting; 0 is the end.
    pub(crate) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Outside::Host(stream) => stream.try_read(buffer),
            Outside::Dns(stream) => stream.try_read(buffer),
        }
    }

    /// Gives what it takes, without waiting.
    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Outside::Host(stream) => stream.try_write(bytes),
            Outside::Dns(stream) => stream.try_write(bytes),
        }
    }

    /// The guest sends no more.
    pub(crate) fn finish(&self) {
        match self {
            // It may be gone already, which reading shows.
            Outside::Host(stream) => drop(SockRef::from(stream).shutdown(Shutdown::Write)),
            Outside::Dns(stream) => stream.finish(),
        }
    }

    /// Makes closing it a reset.
    pub(crate) fn reset_on_close(&self) {
        if let Outside::Host(stream) = self {
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }

    /// The error that arrived without being asked for: a reset.
    pub(crate) fn take_error(&self) -> Option<io::Error> {
        match self {
            Outside::Host(stream) => {
                let error = stream.take_error().ok().flatten();
                // Once taken, it is to wake nobody any more.
                let _ = stream
                    .try_io(Interest::ERROR, || io::Result::<()>::Err(io::ErrorKind::WouldBlock.into()));
                error
            }
            Outside::Dns(_) => None,
        }
    }

    /// Returns when something that is wanted may be possible, or there is an error to take.
    pub(crate) async fn ready(&self, wants: Wants) {
        match self {
            Outside::Host(stream) => {
                let mut interest = Interest::ERROR;
                if wants.read {
                    interest |= Interest::READABLE;
                }
                if wants.write {
                    interest |= Interest::WRITABLE;
                }
                // An error of the runtime's would show in reading.
                let _ = stream.ready(interest).await;
            }
            Outside::Dns(stream) => stream.changed().await,
        }
    }
}
