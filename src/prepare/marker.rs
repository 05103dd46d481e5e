//! The marker of what has run on a disk ([`crate::project::install_key`]), beside that disk.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Failed, MARKER_NAME, note};
use crate::fsutil::write_atomic;
use crate::project::install_key::{Difference, Key, Marker, differences};

/// One of the two scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Script {
    /// Once per disk.
    Setup,
    /// When what it depends on has changed.
    Install,
}

impl Script {
    /// As users know it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Script::Setup => "setup",
            Script::Install => "install",
        }
    }
}

/// The marker and its file.
#[derive(Debug)]
pub(super) struct Kept {
    path: PathBuf,
    marker: Marker,
}

impl Kept {
    /// What cannot be read is as good as nothing: both scripts run again.
    pub(super) fn read(folder: &Path) -> Kept {
        let path = folder.join(MARKER_NAME);
        let none = || Marker::new(None, None);
        let marker = match fs::read(&path) {
            Ok(bytes) => Marker::parse(&bytes).unwrap_or_else(|error| {
                note(format!("{error}; setup and install run again"));
                none()
            }),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    note(format!("cannot read {}: {error}; setup and install run again", path.display()));
                }
                none()
            }
        };
        Kept { path, marker }
    }

    /// Why the script has to run; empty if it need not.
    pub(super) fn why(&self, script: Script, now: &Key) -> Vec<Difference> {
        differences(self.key(script).as_ref(), now)
    }

    /// Notes that the script ran with `key`, or with `None` that it cannot be said to have.
    pub(super) fn set(&mut self, script: Script, key: Option<Key>) -> Result<(), Failed> {
        if *self.key(script) == key {
            return Ok(());
        }
        match script {
            Script::Setup => self.marker.setup = key,
            Script::Install => self.marker.install = key,
        }
        let failed = |error: &dyn std::fmt::Display| Failed::new(script.name(), error.to_string());
        let bytes = self.marker.to_bytes().map_err(|e| failed(&e))?;
        write_atomic(&self.path, &bytes).map_err(|e| failed(&e))
    }

    fn key(&self, script: Script) -> &Option<Key> {
        match script {
            Script::Setup => &self.marker.setup,
            Script::Install => &self.marker.install,
        }
    }
}
