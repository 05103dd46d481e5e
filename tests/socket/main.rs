//! The CLI and the daemon's edge, over a real Unix socket, with a supervisor that does as it is told.

#![expect(unreachable_pub, reason = "shared by the files of this test only")]

mod commands;
mod develop;
mod end;
mod entries;
mod fake;
mod limits;
mod logs;
mod projects;
mod routes;
mod sessions;
