//! The daemon: socket, routes, signals.
