//! Copies from folder to folder, by friends and by enemies.

mod hostile;
mod peers;
mod places;
mod tree;
mod trees;
