//! The daemon's folder, lock and socket: one daemon per project, and only its user may talk to it.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

use crate::fsutil::{LockError, LockFile, PathError, create_private_dir};
use crate::home::{HOME_ENV, Home, MAX_SOCKET_PATH_BYTES, ProjectId};

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another daemon serves this project.
    #[error("a daemon for {} is running already{}", config.display(), of(holder))]
    AlreadyRunning {
        /// The project's config file.
        config: PathBuf,
        /// `pid N`, if it wrote that.
        holder: String,
    },
    /// The kernel takes no path this long.
    #[error(
        "the socket's path is {} bytes long, the system allows {MAX_SOCKET_PATH_BYTES}: {}",
        path.as_os_str().len(), path.display()
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// A folder, the lock or the socket could not be made.
    #[error(transparent)]
    Path(#[from] PathError),
}

fn of(holder: &str) -> String {
    if holder.is_empty() { String::new() } else { format!(" ({holder})") }
}

impl SocketError {
    /// What to do next.
    pub fn hint(&self) -> Option<String> {
        match self {
            SocketError::AlreadyRunning { .. } => {
                Some("`iii worker list` shows what it does; end it with Ctrl-C or `kill` first".to_owned())
            }
            SocketError::PathTooLong { .. } => {
                Some(format!("set {HOME_ENV} to a folder with a shorter path, such as ~/.iii"))
            }
            SocketError::Path(e) if e.is_disk_full() => Some("free some disk space".to_owned()),
            SocketError::Path(_) => None,
        }
    }
}

/// The place of one daemon: held from before its socket exists until after it is gone.
#[derive(Debug)]
pub struct Place {
    socket: PathBuf,
    // Released last: whoever holds the lock may remove the socket.
    _lock: LockFile,
}

impl Place {
    /// Takes the project's lock. Refused when another daemon has it.
    pub fn take(home: &Home, project: &ProjectId, config: &Path) -> Result<Place, SocketError> {
        let socket = home.daemon_socket(project);
        if socket.as_os_str().as_bytes().len() > MAX_SOCKET_PATH_BYTES {
            return Err(SocketError::PathTooLong { path: socket });
        }
        let folder = home.run(project);
        create_private_dir(&folder)?;
        // It may be an old one with another mode.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))
            .map_err(PathError::new("close to others the folder", &folder))?;
        let mut lock = match LockFile::try_acquire(&folder.join("iii.lock")) {
            Ok(lock) => lock,
            Err(LockError::Held { holder, .. }) => {
                return Err(SocketError::AlreadyRunning { config: config.to_owned(), holder });
            }
            Err(LockError::Path(e)) => return Err(e.into()),
        };
        lock.set_holder(&format!("pid {}", std::process::id()))?;
        Ok(Place { socket, _lock: lock })
    }

    /// Binds the socket; one left by a daemon that was killed is replaced, which the lock allows.
    pub fn bind(&self) -> Result<UnixListener, SocketError> {
        match fs::remove_file(&self.socket) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(PathError::new("remove the old socket", &self.socket)(e).into());
            }
            _ => {}
        }
        let listener = UnixListener::bind(&self.socket).map_err(PathError::new("listen on", &self.socket))?;
        // Nobody else could connect in between: the folder is closed to others.
        fs::set_permissions(&self.socket, fs::Permissions::from_mode(0o600))
            .map_err(PathError::new("close to others the socket", &self.socket))?;
        Ok(listener)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Nothing to tell if it is gone already: the next daemon replaces what is left.
        let _ = fs::remove_file(&self.socket);
    }
}

/// Whether the process at the other end is the daemon's own user, or root.
pub(super) fn may_talk(stream: &UnixStream) -> bool {
    match stream.peer_cred() {
        Ok(peer) if is_welcome(peer.uid(), nix::unistd::geteuid().as_raw()) => true,
        Ok(peer) => {
            tracing::warn!(uid = peer.uid(), "refused a connection of another user");
            false
        }
        Err(e) => {
            tracing::warn!(error = %e, "refused a connection of an unknown user");
            false
        }
    }
}

fn is_welcome(peer: u32, own: u32) -> bool {
    peer == own || peer == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(home: &Path) -> Result<Place, SocketError> {
        let config = Path::new("/p/config.yaml");
        Place::take(&Home::at(home), &ProjectId::of(config), config)
    }

    #[tokio::test]
    async fn a_second_daemon_is_refused_with_the_pid_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = place(dir.path()).unwrap();
        let error = place(dir.path()).unwrap_err();
        let pid = std::process::id();
        assert_eq!(error.to_string(), format!("a daemon for /p/config.yaml is running already (pid {pid})"));
        assert!(error.hint().is_some());
        drop(first);
        place(dir.path()).unwrap();
    }

    #[tokio::test]
    async fn a_socket_left_by_a_killed_daemon_is_replaced_and_the_own_one_removed() {
        let dir = tempfile::tempdir().unwrap();
        let first = place(dir.path()).unwrap();
        let socket = first.socket.clone();
        // What kill -9 leaves: a socket nobody listens on.
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let _listener = first.bind().unwrap();
        UnixStream::connect(&socket).await.unwrap();
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(socket.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        drop(first);
        assert!(!socket.exists());
    }

    #[test]
    fn a_home_too_deep_for_a_socket_is_told_with_its_length() {
        let error = place(Path::new(&format!("/{}", "d".repeat(120)))).unwrap_err();
        assert!(matches!(error, SocketError::PathTooLong { .. }), "{error}");
        assert!(error.to_string().contains("bytes long, the system allows 107"), "{error}");
        assert!(error.hint().unwrap().contains("III_HOME"));
    }

    #[test]
    fn only_the_own_user_and_root_may_talk() {
        assert!(is_welcome(1000, 1000));
        assert!(is_welcome(0, 1000));
        assert!(!is_welcome(1001, 1000));
        assert!(!is_welcome(1000, 0));
    }
}
