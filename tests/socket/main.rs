//! The CLI and the daemon's edge, over a real Unix socket, with a supervisor that does as it is told.

mod commands;
mod end;
mod fake;
mod limits;
mod logs;
mod routes;
