//! A worker's life as the shim sees it: the real agent, as a plain process, over a Unix socket.

mod ends;
mod output;
mod shim;
mod starts;
