//! What this host can do.
