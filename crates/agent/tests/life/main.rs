//! A worker's life as the shim sees it: the real agent, as a plain process, over a Unix socket.

mod at_random;
mod client;
mod contract;
mod ends;
mod holds;
mod output;
mod restarts;
mod session_ends;
mod sessions;
mod shim;
mod starts;
mod terminals;
mod updates;
