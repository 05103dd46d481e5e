//! The stack against a guest of the test, and servers of the test on the host's loopback.

mod guest;
mod tcp;
