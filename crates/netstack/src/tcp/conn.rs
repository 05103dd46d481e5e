//! One connection: bytes between the guest's half and the outer half.
//!
//! Nothing lies between the two but the guest half's own buffers: what cannot be written out stays there, which closes
//! the guest's window; what the guest does not take fills them, and the host's socket is not read.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use smoltcp::time::Instant;
use tokio::time::sleep_until;

use super::machine::{End, Machine, Sent};
use super::outside::{Outside, Wants};
use crate::link::Waiter;
use crate::stack::Shared;

/// One connection.
pub(crate) struct Conn {
    machine: RefCell<Machine>,
    outside: Outside,
    /// The outer half was told that the guest sends no more.
    is_guest_finished: Cell<bool>,
    /// The guest was told that the outer half sends no more.
    is_outside_finished: Cell<bool>,
    /// What the task waits for; who changes it wakes the task.
    armed: Cell<Next>,
    waiter: Rc<Waiter>,
}

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Something at the outer half, or a time.
    Wait { wants: Wants, deadline: Option<Instant> },
    /// Nothing: it is over.
    Over,
}

impl Conn {
    pub(crate) fn new(machine: Machine, outside: Outside) -> Rc<Conn> {
        Rc::new(Conn {
            machine: RefCell::new(machine),
            outside,
            is_guest_finished: Cell::new(false),
            is_outside_finished: Cell::new(false),
            armed: Cell::new(Next::Wait { wants: Wants::default(), deadline: None }),
            waiter: Rc::default(),
        })
    }

    /// Takes a packet of the guest, and does at once what it makes possible.
    pub(crate) fn ingress(&self, packet: &[u8], shared: &Shared) -> Next {
        self.machine.borrow_mut().ingress(packet, &shared.link, shared.now());
        let next = self.pump(shared);
        if self.is_news(next) {
            self.waiter.wake();
        }
        next
    }

    /// Whether the task waits for the wrong things. A timer that fires too early costs one look.
    fn is_news(&self, next: Next) -> bool {
        match (self.armed.get(), next) {
            (Next::Wait { wants: armed, deadline: early }, Next::Wait { wants, deadline }) => {
                armed != wants || deadline.is_some_and(|at| early.is_none_or(|early| at < early))
            }
            (Next::Over, _) => false,
            (_, Next::Over) => true,
        }
    }

    /// Ends it with a reset to both sides.
    fn abort(&self, machine: &mut Machine, shared: &Shared) -> Next {
        self.outside.reset_on_close();
        machine.socket().abort();
        // If the link is full the RST is lost, and the guest's next segment brings another.
        machine.egress(&shared.link, shared.now());
        Next::Over
    }

    /// Moves what can be moved.
    pub(crate) fn pump(&self, shared: &Shared) -> Next {
        let mut machine = self.machine.borrow_mut();
        let machine = &mut *machine;
        let Ok(write) = self.to_outside(machine) else {
            return self.abort(machine, shared);
        };
        let mut wants = Wants { read: false, write };
        if !wants.write && !self.is_guest_finished.get() && machine.has_guest_finished() {
            self.is_guest_finished.set(true);
            self.outside.finish();
        }
        if machine.is_established() && !self.is_outside_finished.get() {
            wants.read = match self.to_guest(machine) {
                Ok(is_empty) => is_empty,
                Err(_) => return self.abort(machine, shared),
            };
        }
        let now = shared.now();
        let sent = machine.egress(&shared.link, now);
        match machine.end() {
            // The last bytes of the guest are still to be written out.
            Some(End::Orderly) if wants.write => {}
            Some(End::Orderly) => return Next::Over,
            Some(End::Reset) => {
                self.outside.reset_on_close();
                return Next::Over;
            }
            None => {}
        }
        if sent == Sent::LinkFull {
            shared.link.wake_when_clear(&self.waiter);
            // What is due cannot be done before there is room.
            return Next::Wait { wants, deadline: None };
        }
        Next::Wait { wants, deadline: machine.deadline(now) }
    }

    /// Whether something is left that the outer half does not take now.
    fn to_outside(&self, machine: &mut Machine) -> io::Result<bool> {
        let socket = machine.socket();
        while socket.can_recv() {
            let written = socket.recv(|bytes| match self.outside.try_write(bytes) {
                Ok(count) => (count, Ok(count)),
                Err(error) => (0, Err(error)),
            });
            match written {
                Ok(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(Ok(_)) => {}
                Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Ok(Err(error)) => return Err(error),
                Err(_) => return Ok(false),
            }
        }
        Ok(false)
    }

    /// Whether there is room for more than the outer half has now.
    fn to_guest(&self, machine: &mut Machine) -> io::Result<bool> {
        let socket = machine.socket();
        while socket.can_send() {
            let read = socket.send(|bytes| match self.outside.try_read(bytes) {
                Ok(count) => (count, Ok(count)),
                Err(error) => (0, Err(error)),
            });
            match read {
                Ok(Ok(0)) => {
                    self.is_outside_finished.set(true);
                    socket.close();
                    return Ok(false);
                }
                Ok(Ok(_)) => {}
                Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Ok(Err(error)) => return Err(error),
                Err(_) => return Ok(false),
            }
        }
        Ok(false)
    }

    /// Lives as long as the connection.
    pub(crate) async fn run(self: Rc<Conn>, shared: Rc<Shared>) {
        loop {
            let next = self.pump(&shared);
            self.armed.set(next);
            let Next::Wait { wants, deadline } = next else { return };
            let timer = async {
                match deadline {
                    Some(at) => sleep_until(shared.tokio_time(at)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.waiter.woken() => {}
                () = self.outside.ready(wants) => {
                    if self.outside.take_error().is_some() {
                        self.abort(&mut self.machine.borrow_mut(), &shared);
                        return;
                    }
                }
                () = timer => {}
            }
        }
    }
}
