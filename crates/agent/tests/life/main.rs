//! A worker's life as the shim sees it: the real agent, as a plain process, over a Unix socket.

mod client;
mod ends;
mod output;
mod sessions;
mod shim;
mod starts;
mod terminals;
