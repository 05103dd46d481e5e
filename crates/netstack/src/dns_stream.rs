//! The gateway's DNS by TCP (RFC 1035, 4.2.2; RFC 7766): one end of a guest's connection. One question at a time: the
//! next is not read before the answer to the last was taken, so what waits is bounded by the guest's own window.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::resolver::{Carrier, First, TCP_IDLE, ask, look};
use crate::stack::Shared;

/// Bytes of the length before each message.
const LENGTH_BYTES: usize = 2;

/// The stack's end of a connection to the gateway's DNS.
pub(crate) struct DnsStream {
    shared: Rc<Shared>,
    /// The message that is being received, with its length.
    question: RefCell<Vec<u8>>,
    /// The answer that is being sent, and how much of it was.
    answer: RefCell<(Vec<u8>, usize)>,
    is_asking: Cell<bool>,
    is_finished: Cell<bool>,
    is_idle: Cell<bool>,
    last_used: Cell<Instant>,
    changed: Notify,
    this: std::rc::Weak<DnsStream>,
}

impl std::fmt::Debug for DnsStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DnsStream").finish_non_exhaustive()
    }
}

impl DnsStream {
    pub(crate) fn new(shared: Rc<Shared>) -> Rc<DnsStream> {
        Rc::new_cyclic(|this| DnsStream {
            shared,
            question: RefCell::default(),
            answer: RefCell::default(),
            is_asking: Cell::new(false),
            is_finished: Cell::new(false),
            is_idle: Cell::new(false),
            last_used: Cell::new(Instant::now()),
            changed: Notify::new(),
            this: this.clone(),
        })
    }

    /// Takes bytes of the guest, up to the end of one message.
    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_asking.get() || !self.answer.borrow().0.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.last_used.set(Instant::now());
        let mut question = self.question.borrow_mut();
        let length = match *question.as_slice() {
            [high, low, ..] => LENGTH_BYTES + usize::from(u16::from_be_bytes([high, low])),
            _ => LENGTH_BYTES,
        };
        let taken = bytes.len().min(length - question.len());
        question.extend_from_slice(&bytes[..taken]);
        if question.len() == length && length > LENGTH_BYTES {
            let message = question.split_off(LENGTH_BYTES);
            question.clear();
            drop(question);
            self.begin(&message);
        } else if *question == [0, 0] {
            // A message of no bytes means nothing.
            question.clear();
        }
        Ok(taken)
    }

    fn begin(&self, message: &[u8]) {
        match look(&self.shared, message) {
            First::Answer(answer) => self.put(&answer.unwrap_or_default()),
            First::Ask(inquiry) => {
                self.is_asking.set(true);
                let (shared, this) = (Rc::clone(&self.shared), self.this.clone());
                tokio::task::spawn_local(async move {
                    let answer = ask(&shared, inquiry, Carrier::Tcp).await;
                    if let Some(stream) = this.upgrade() {
                        stream.is_asking.set(false);
                        stream.put(&answer);
                    }
                });
            }
        }
    }

    fn put(&self, answer: &[u8]) {
        if let Ok(length @ 1..) = u16::try_from(answer.len()) {
            let mut framed = length.to_be_bytes().to_vec();
            framed.extend_from_slice(answer);
            *self.answer.borrow_mut() = (framed, 0);
        }
        self.changed.notify_one();
    }

    /// Gives bytes of an answer.
    pub(crate) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut answer = self.answer.borrow_mut();
        let (bytes, done) = &mut *answer;
        if bytes.is_empty() {
            let is_over = (self.is_finished.get() && !self.is_asking.get()) || self.is_idle.get();
            return if is_over { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        }
        let count = buffer.len().min(bytes.len() - *done);
        buffer[..count].copy_from_slice(&bytes[*done..*done + count]);
        *done += count;
        if *done == bytes.len() {
            *answer = (Vec::new(), 0);
            self.last_used.set(Instant::now());
            // The next question may come.
            self.changed.notify_one();
        }
        Ok(count)
    }

    /// The guest sends no more.
    pub(crate) fn finish(&self) {
        self.is_finished.set(true);
        self.changed.notify_one();
    }

    /// Returns when reading or writing may do something else than before.
    pub(crate) async fn changed(&self) {
        if self.is_idle.get() || self.is_asking.get() || !self.answer.borrow().0.is_empty() {
            return self.changed.notified().await;
        }
        let end = self.last_used.get() + TCP_IDLE;
        if timeout_at(end, self.changed.notified()).await.is_err() {
            self.is_idle.set(true);
        }
    }
}
