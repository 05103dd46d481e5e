//! Which config.yaml a command is about.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Environment variable that names the config file, below `--config` and above the search.
pub const CONFIG_PATH_ENV: &str = "III_CONFIG_PATH";
/// The file that is looked for.
pub const CONFIG_FILE: &str = "config.yaml";

/// What a config file says that is written because there is none yet.
pub const STARTER: &str = "\
# The workers that `iii` keeps alive. `iii worker add IMAGE` writes here, and so may you:
#
#   - name: hello
#     image: docker.io/library/hello-world:latest
#     config:
#       GREETING: hi
#
# A running `iii` follows every change of this file.
workers: []
";

/// `--config`, else III_CONFIG_PATH (an empty one counts as unset), else config.yaml in `cwd` or the nearest
/// parent that has one, else config.yaml in `cwd`, which then does not exist. Relative paths start from `cwd`.
pub fn find_config(flag: Option<&Path>, env: Option<&OsStr>, cwd: &Path) -> PathBuf {
    if let Some(path) = flag {
        return cwd.join(path);
    }
    if let Some(path) = env.filter(|path| !path.is_empty()) {
        return cwd.join(path);
    }
    cwd.ancestors()
        .map(|folder| folder.join(CONFIG_FILE))
        // A link that leads nowhere is still the file that is meant: reading it then says what is wrong.
        .find(|path| path.is_file() || path.is_symlink())
        .unwrap_or_else(|| cwd.join(CONFIG_FILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_wins_over_the_variable_and_that_over_the_search() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a").join("b");
        std::fs::create_dir_all(&deep).unwrap();
        let find = |flag: Option<&str>, env: Option<&str>| {
            find_config(flag.map(Path::new), env.map(OsStr::new), &deep)
        };

        assert_eq!(find(None, None), deep.join("config.yaml"));
        std::fs::write(dir.path().join("config.yaml"), "").unwrap();
        assert_eq!(find(None, None), dir.path().join("config.yaml"));
        std::fs::create_dir(dir.path().join("a").join("config.yaml")).unwrap();
        assert_eq!(find(None, None), dir.path().join("config.yaml"), "a folder of that name is not the file");
        std::fs::write(deep.join("config.yaml"), "").unwrap();
        assert_eq!(find(None, None), deep.join("config.yaml"));

        assert_eq!(find(None, Some("/x/y.yaml")), Path::new("/x/y.yaml"));
        assert_eq!(find(None, Some("y.yaml")), deep.join("y.yaml"));
        assert_eq!(find(None, Some("")), deep.join("config.yaml"));
        assert_eq!(find(Some("z.yaml"), Some("/x/y.yaml")), deep.join("z.yaml"));
    }

    #[test]
    fn the_starter_file_is_valid_and_has_no_workers() {
        let config = crate::config::load::parse(STARTER, Path::new("config.yaml"), &|_| None).unwrap();
        assert_eq!(config.workers, []);
    }
}
