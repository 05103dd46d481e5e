//! Where everything is kept: `III_HOME`, `~/.iii` by default.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Environment variable that replaces `~/.iii`.
pub const HOME_ENV: &str = "III_HOME";
/// Longest path a Unix socket can be bound to, in bytes (`sun_path` less its NUL).
pub const MAX_SOCKET_PATH_BYTES: usize = 107;

/// The folder tree of one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    root: PathBuf,
}

/// Why there is no home.
#[derive(Debug, thiserror::Error)]
#[error("neither {HOME_ENV} nor HOME is set, so there is no place to keep images and workers")]
pub struct NoHome;

impl Home {
    /// A home at `root`, which need not exist yet.
    pub fn at(root: impl Into<PathBuf>) -> Home {
        Home { root: root.into() }
    }

    /// `III_HOME`, else `~/.iii`. Relative values are taken from the current folder.
    pub fn from_env() -> Result<Home, NoHome> {
        let root = match std::env::var_os(HOME_ENV).filter(|v| !v.is_empty()) {
            Some(root) => PathBuf::from(root),
            None => std::env::home_dir().filter(|h| !h.as_os_str().is_empty()).ok_or(NoHome)?.join(".iii"),
        };
        Ok(Home::at(std::path::absolute(&root).unwrap_or(root)))
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Blobs as pulled: `blobs/sha256/<hex>`.
    pub fn blobs(&self) -> PathBuf {
        self.root.join("blobs").join("sha256")
    }

    /// Root disks: `images/<hex of the manifest digest>.erofs` and what belongs to them.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// State of one worker: scratch disk, desired state, exits.
    pub fn managed(&self, worker: &str) -> PathBuf {
        self.root.join("managed").join(worker)
    }

    /// Log files of one worker.
    pub fn logs(&self, worker: &str) -> PathBuf {
        self.root.join("logs").join(worker)
    }

    /// Sockets and locks of one project.
    pub fn run(&self, project: &ProjectId) -> PathBuf {
        self.root.join("run").join(&project.0)
    }

    /// The daemon's socket for one project.
    pub fn daemon_socket(&self, project: &ProjectId) -> PathBuf {
        self.run(project).join("iii.sock")
    }

    /// The shim's folder of one worker.
    pub fn machine_run(&self, project: &ProjectId, worker: &str) -> PathBuf {
        self.run(project).join(worker)
    }

    /// Where a libkrunfw can be put by the user.
    pub fn lib(&self) -> PathBuf {
        self.root.join("lib")
    }
}

/// Names a project in paths: a short hash of its config file's canonical path.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ProjectId(String);

impl ProjectId {
    /// The project of a config file. `config` must be canonical (an absolute path without links).
    pub fn of(config: &Path) -> ProjectId {
        use std::os::unix::ffi::OsStrExt as _;
        let hash = Sha256::digest(config.as_os_str().as_bytes());
        ProjectId(hash[..5].iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The ten hex digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_config_files_are_two_projects() {
        let a = ProjectId::of(Path::new("/a/config.yaml"));
        assert_eq!(a, ProjectId::of(Path::new("/a/config.yaml")));
        assert_ne!(a, ProjectId::of(Path::new("/b/config.yaml")));
        assert_eq!(a.as_str().len(), 10);
    }
}
