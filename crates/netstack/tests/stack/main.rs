//! The stack against a guest of the test, and servers of the test on the host's loopback.

mod dns;
mod guest;
mod hostile;
mod ports;
mod tcp;
mod udp;
