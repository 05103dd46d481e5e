//! The whole tree with a fake launcher, fake images and paused time: one file per behaviour.

mod adoption;
mod commands;
mod config;
mod failures;
mod fakes;
mod images;
mod project;
mod shutdown;
mod watch;
