//! The supervisor tree: a root, one actor per worker, an image puller and a config watcher.

pub mod messages;
