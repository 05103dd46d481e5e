//! The guest's door to its engine (`iii_protocol::engine` is the contract): what connects to a port of the loopback is
//! carried to the host, and there to the engine and nowhere else.
//!
//! ```text
//!   accept ── a thread per connection ── dial the host
//!               │  reader   frames of the host become deeds; waits for nothing else
//!               │  out      the program's bytes -> host, within its window
//!               └─ in       queue of one window -> the program
//! ```
//!
//! A connection whose other end is lost, or never was, ends with a reset: to the program that is not the end of what its
//! engine had to say.

use std::fs::File;
use std::io::{self, BufReader, Read as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use iii_protocol::engine::{KIND_CREDIT, KIND_DATA, KIND_END, MAX_CONNECTIONS, MAX_DATA_BYTES};
use iii_protocol::frame::{HEADER_BYTES, header, read_frame};
use iii_protocol::session::parse_credit;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt::Linger};

use crate::console;
use crate::session::{
    Connection, ConnectionReader, Inbound, Next, Outbound, poll_again, spawn, wait_for, write_all,
};

/// How long accepting rests when the machine is out of something and no connection ends.
const ACCEPT_REST: Duration = Duration::from_secs(1);

/// Makes a connection to the host.
pub(crate) type Dial = Arc<dyn Fn() -> io::Result<OwnedFd> + Send + Sync>;

/// Where the workload looks for its engine, and the way from there to the host.
pub(crate) struct EngineDoor {
    pub(crate) listeners: Vec<TcpListener>,
    pub(crate) dial: Dial,
}

impl EngineDoor {
    /// Carries connections from now on, for as long as the process lives.
    pub(crate) fn open(self) -> io::Result<()> {
        let places = Arc::new(Places::default());
        for listener in self.listeners {
            let (dial, places) = (Arc::clone(&self.dial), Arc::clone(&places));
            spawn(move || accept_all(&listener, &dial, &places))?;
        }
        Ok(())
    }
}

/// How many connections there are, of [`MAX_CONNECTIONS`].
#[derive(Default)]
struct Places {
    taken: Mutex<usize>,
    changed: Condvar,
}

/// One of them, for as long as it lives.
struct Place(Arc<Places>);

impl Places {
    fn take(self: &Arc<Places>) -> Place {
        let full = |taken: &mut usize| *taken >= MAX_CONNECTIONS;
        let taken = self.changed.wait_while(self.lock(), full);
        *taken.unwrap_or_else(PoisonError::into_inner) += 1;
        Place(Arc::clone(self))
    }

    fn rest(&self) {
        // Whatever it is that wakes or not: accepting is simply tried again.
        drop(self.changed.wait_timeout(self.lock(), ACCEPT_REST));
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.lock() -= 1;
        self.0.changed.notify_all();
    }
}

fn accept_all(listener: &TcpListener, dial: &Dial, places: &Arc<Places>) {
    loop {
        let place = places.take();
        match listener.accept() {
            Ok((program, _)) => {
                let dial = Arc::clone(dial);
                let spawned = spawn(move || {
                    let _place = place;
                    serve(program, &dial);
                });
                if let Err(error) = spawned {
                    console::say(format_args!("a connection to the engine is dropped: {error}"));
                }
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::ECONNABORTED) => {}
                Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS) => {
                    drop(place);
                    places.rest();
                }
                _ => {
                    console::say(format_args!("no more connections to the engine: {error}"));
                    return;
                }
            },
        }
    }
}

/// Carries one connection to its end.
fn serve(program: TcpStream, dial: &Dial) {
    // Frames of the engine are answered at once; a kernel without the option is only slower.
    let _ = program.set_nodelay(true);
    let program = File::from(OwnedFd::from(program));
    let carried = dial().and_then(|host| carry(&program, host));
    if carried.is_err() {
        // Closing it is then a reset.
        let _ = setsockopt(&program, Linger, &libc::linger { l_onoff: 1, l_linger: 0 });
    }
}

fn carry(program: &File, host: OwnedFd) -> io::Result<()> {
    let flags = nix::fcntl::OFlag::O_NONBLOCK;
    nix::fcntl::fcntl(program, nix::fcntl::FcntlArg::F_SETFL(flags))?;
    let connection = Arc::new(Connection::new(host));
    let (inbound, outbound) = (Arc::new(Inbound::new()?), Arc::new(Outbound::new()?));

    let (theirs, its_inbound, its_outbound) =
        (Arc::clone(&connection), Arc::clone(&inbound), Arc::clone(&outbound));
    let reader = spawn(move || {
        follow(&theirs, &its_inbound, &its_outbound);
        its_inbound.cancel();
        its_outbound.lose();
        theirs.close();
    })?;
    let mut source = program.try_clone()?;
    let (theirs, its_outbound) = (Arc::clone(&connection), Arc::clone(&outbound));
    let out = spawn(move || {
        // An error of the program's end is the end of all of it.
        carry_out(&mut source, &its_outbound, &theirs).inspect_err(|_| theirs.close())
    });
    let out = out.inspect_err(|_| connection.close())?;
    let carried_in = carry_in(program, &inbound, &connection).inspect_err(|_| connection.close());
    let carried_out =
        out.join().unwrap_or_else(|_| Err(io::Error::other("a thread of the connection ended")));
    // Both have said END, or one of them cannot go on: the host is left to say nothing more.
    connection.close();
    let _ = reader.join();
    carried_in.and(carried_out)
}

/// Does what the host says until it has left or broken the contract, which is the same.
fn follow(connection: &Arc<Connection>, inbound: &Inbound, outbound: &Outbound) {
    let mut stream = BufReader::with_capacity(MAX_DATA_BYTES, ConnectionReader(Arc::clone(connection)));
    while let Ok(Some(frame)) = read_frame(&mut stream) {
        let goes_on = match frame.kind {
            KIND_DATA if frame.payload.len() <= MAX_DATA_BYTES && !inbound.has_ended() => {
                inbound.push(&frame.payload).is_ok()
            }
            KIND_END if frame.payload.is_empty() => {
                inbound.end();
                true
            }
            KIND_CREDIT => parse_credit(&frame.payload).is_some_and(|bytes| outbound.credited(bytes).is_ok()),
            _ => false,
        };
        if !goes_on {
            return;
        }
    }
}

/// What the program sends, until it has said all.
fn carry_out(source: &mut File, outbound: &Outbound, connection: &Connection) -> io::Result<()> {
    let mut frame = vec![0u8; HEADER_BYTES + MAX_DATA_BYTES];
    loop {
        let view = outbound.view();
        if view.lost {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let size = view.room().min(MAX_DATA_BYTES);
        let mut fds = vec![PollFd::new(outbound.wake.as_fd(), PollFlags::POLLIN)];
        fds.extend((size > 0).then(|| PollFd::new(source.as_fd(), PollFlags::POLLIN)));
        poll_again(&mut fds, PollTimeout::NONE)?;
        if !fds.get(1).is_some_and(|fd| fd.any().unwrap_or(true)) {
            continue;
        }
        match source.read(&mut frame[HEADER_BYTES..HEADER_BYTES + size]) {
            Ok(0) => return connection.send(KIND_END, &[]),
            Ok(read) => {
                outbound.sent(read);
                let head = header(KIND_DATA, read).map_err(io::Error::other)?;
                frame[..HEADER_BYTES].copy_from_slice(&head);
                connection.send_encoded(&frame[..HEADER_BYTES + read])?;
            }
            Err(error) if [io::ErrorKind::Interrupted, io::ErrorKind::WouldBlock].contains(&error.kind()) => {
            }
            Err(error) => return Err(error),
        }
    }
}

/// What the engine sends, until it has said all.
fn carry_in(program: &File, inbound: &Inbound, connection: &Connection) -> io::Result<()> {
    let mut target = program.try_clone()?;
    loop {
        match inbound.next() {
            Next::Data(bytes) => {
                write_all(&mut target, &bytes, inbound)?;
                inbound.taken(bytes.len(), connection)?;
            }
            Next::End => return Ok(shutdown(program.as_raw_fd(), Shutdown::Write)?),
            Next::Cancelled => return Err(io::ErrorKind::ConnectionAborted.into()),
            Next::Nothing => wait_for(&inbound.wake)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::{Receiver, channel};

    use iii_protocol::frame::{Frame, write_frame};
    use iii_protocol::session::{WINDOW_BYTES, credit_payload};

    use super::*;

    /// A door to hosts that the test plays.
    fn door() -> (std::net::SocketAddr, Receiver<UnixStream>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, hosts) = channel();
        let dial: Dial = Arc::new(move || {
            let (ours, theirs) = UnixStream::pair()?;
            sender.send(theirs).map_err(io::Error::other)?;
            Ok(ours.into())
        });
        EngineDoor { listeners: vec![listener], dial }.open().unwrap();
        (address, hosts)
    }

    fn next(host: &mut UnixStream) -> Frame {
        read_frame(host).unwrap().unwrap()
    }

    #[test]
    fn bytes_go_both_ways_and_each_way_ends_by_itself() {
        let (address, hosts) = door();
        let mut program = TcpStream::connect(address).unwrap();
        let mut host = hosts.recv().unwrap();
        program.write_all(b"hello").unwrap();
        assert_eq!(next(&mut host), Frame { kind: KIND_DATA, payload: b"hello".to_vec() });
        program.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(next(&mut host), Frame { kind: KIND_END, payload: Vec::new() });
        write_frame(&mut host, KIND_DATA, b"answer").unwrap();
        write_frame(&mut host, KIND_END, &[]).unwrap();
        let mut answer = String::new();
        program.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "answer");
        assert!(read_frame(&mut host).unwrap().is_none(), "the guest closes first");
    }

    #[test]
    fn a_lost_engine_is_a_reset_and_not_an_end() {
        let (address, hosts) = door();
        for said in [&b""[..], b"half an ans"] {
            let mut program = TcpStream::connect(address).unwrap();
            let mut host = hosts.recv().unwrap();
            if !said.is_empty() {
                write_frame(&mut host, KIND_DATA, said).unwrap();
                let mut heard = vec![0; said.len()];
                program.read_exact(&mut heard).unwrap();
                assert_eq!(heard, said);
            }
            drop(host);
            let error = program.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    }

    #[test]
    fn a_program_that_resets_is_lost_to_the_host() {
        let (address, hosts) = door();
        let program = TcpStream::connect(address).unwrap();
        let mut host = hosts.recv().unwrap();
        setsockopt(&program, Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
        drop(program);
        assert!(read_frame(&mut host).unwrap().is_none(), "no END before the end");
    }

    #[test]
    fn a_side_that_does_not_read_stops_the_other_at_its_window_and_nothing_else() {
        let (address, hosts) = door();
        let mut program = TcpStream::connect(address).unwrap();
        let mut host = hosts.recv().unwrap();
        // The program reads nothing and sends without end; the host takes one window's worth and no more.
        let mut sender = program.try_clone().unwrap();
        let flood = std::thread::spawn(move || sender.write_all(&vec![7u8; 64 * WINDOW_BYTES]));
        for _ in 0..WINDOW_BYTES / MAX_DATA_BYTES {
            write_frame(&mut host, KIND_DATA, &vec![9u8; MAX_DATA_BYTES]).unwrap();
        }
        let mut taken = 0;
        while taken < WINDOW_BYTES {
            let frame = next(&mut host);
            if frame.kind == KIND_DATA {
                taken += frame.payload.len();
            }
        }
        assert_eq!(taken, WINDOW_BYTES);
        // With credit it goes on, although the program still has not read.
        write_frame(&mut host, KIND_CREDIT, &credit_payload(u32::try_from(WINDOW_BYTES).unwrap())).unwrap();
        while taken < 2 * WINDOW_BYTES {
            let frame = next(&mut host);
            if frame.kind == KIND_DATA {
                taken += frame.payload.len();
            }
        }
        let mut heard = vec![0; WINDOW_BYTES];
        program.read_exact(&mut heard).unwrap();
        assert!(heard.iter().all(|byte| *byte == 9));
        drop(host);
        assert!(flood.join().unwrap().is_err());
    }

    #[test]
    fn a_host_that_breaks_the_contract_loses_the_connection() {
        for (kind, payload) in [
            (9, vec![]),
            (KIND_DATA, vec![0; MAX_DATA_BYTES + 1]),
            (KIND_CREDIT, credit_payload(1).to_vec()),
            (KIND_END, vec![1]),
        ] {
            let (address, hosts) = door();
            let mut program = TcpStream::connect(address).unwrap();
            let mut host = hosts.recv().unwrap();
            write_frame(&mut host, kind, &payload).unwrap();
            assert!(program.read(&mut [0]).is_err(), "kind {kind}");
        }
    }
}
