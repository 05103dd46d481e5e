//! What every command knows: the project it is about.

use std::io;
use std::path::{Path, PathBuf};

use iii_protocol::api::ErrorBody;

use super::client::{Client, ClientError};
use super::exit::Failure;
use crate::config::load;
use crate::config::locate::{CONFIG_PATH_ENV, find_config};
use crate::config::schema::Config;
use crate::config::suggest::suggest;
use crate::home::{Home, ProjectId};

/// The project a command is about.
#[derive(Debug, Clone)]
pub struct Context {
    /// Where everything is kept.
    pub home: Home,
    /// config.yaml: canonical, though it need not exist.
    pub config: PathBuf,
    /// Names the project in paths.
    pub project: ProjectId,
}

impl Context {
    /// From the command line's `--config`, the environment and the current folder.
    pub fn find(flag: Option<&Path>) -> Result<Context, Failure> {
        let home =
            Home::from_env().map_err(|e| Failure::failed(e.to_string()).hint("set HOME or III_HOME"))?;
        let cwd = std::env::current_dir()
            .map_err(|e| Failure::failed(format!("the current folder cannot be found: {e}")))?;
        let found = find_config(flag, std::env::var_os(CONFIG_PATH_ENV).as_deref(), &cwd);
        Context::new(home, &found)
    }

    /// For this config file, which need not exist, though its folder must.
    pub fn new(home: Home, config: &Path) -> Result<Context, Failure> {
        let config = canonical(config).map_err(|e| {
            Failure::usage(format!("cannot find {}: {e}", config.display()))
                .hint("check the path in --config or III_CONFIG_PATH")
        })?;
        Ok(Context { project: ProjectId::of(&config), home, config })
    }

    /// A client for this project's daemon.
    pub fn client(&self) -> Client {
        Client::new(&self.home.daemon_socket(&self.project))
    }

    /// `ClientError::NoDaemon` with the project it is about.
    pub fn explain(&self, error: ClientError) -> Failure {
        match error {
            ClientError::NoDaemon => {
                Failure::failed(format!("no daemon is running for {}", self.config.display()))
                    .hint("start it with `iii`")
            }
            other => other.into(),
        }
    }

    /// The config file, read and checked.
    pub fn load(&self) -> Result<Config, Failure> {
        load::load(&self.config).map_err(|e| {
            if e.is_missing() {
                Failure::failed(format!("there is no {}", self.config.display()))
                    .hint("`iii worker add REF` creates it, and so does `iii`")
            } else {
                Failure::from(ErrorBody::from(&e))
            }
        })
    }

    /// Like [`Context::load`]; no file is a file without workers.
    pub fn load_or_empty(&self) -> Result<Option<Config>, Failure> {
        if self.config.exists() { self.load().map(Some) } else { Ok(None) }
    }

    /// There is no worker of this name, but perhaps one that was meant.
    pub fn unknown(&self, name: &str, names: &[String]) -> Failure {
        let failure = Failure::failed(format!("there is no worker `{name}` in {}", self.config.display()));
        match suggest(name, names.iter().map(String::as_str)) {
            Some(meant) => failure.hint(format!("did you mean `{meant}`?")),
            None => failure.hint("`iii worker list` shows all workers"),
        }
    }
}

/// `canonicalize` for a file that need not exist.
fn canonical(path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let name = path.file_name().ok_or(e)?;
            let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            Ok(folder.canonicalize()?.join(name))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_file_that_is_still_to_be_made_has_the_project_it_will_have() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("real");
        std::fs::create_dir(&folder).unwrap();
        std::os::unix::fs::symlink(&folder, dir.path().join("link")).unwrap();
        let path = dir.path().join("link").join("config.yaml");
        let before = canonical(&path).unwrap();
        std::fs::write(&path, "").unwrap();
        assert_eq!(before, path.canonicalize().unwrap());
        assert!(canonical(&dir.path().join("no").join("config.yaml")).is_err());
    }
}
