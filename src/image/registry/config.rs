//! Reading an image's config blob (image-spec `config.md`); `null`, absent and empty are the same.

use serde::Deserialize;

use super::manifest::or_default;
use crate::image::types::ImageConfig;

/// A config is a small document; it is the only blob that is read into memory.
pub(in crate::image) const MAX_CONFIG_BYTES: u64 = 8 * 1024 * 1024;

/// What a pull needs of the config blob.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::image) struct ConfigFile {
    /// `linux`, or empty.
    pub(in crate::image) os: String,
    /// `amd64`..., or empty.
    pub(in crate::image) architecture: String,
    /// Digests of the uncompressed layers, bottom first; empty when the config has none.
    pub(in crate::image) diff_ids: Vec<String>,
    /// How to run it.
    pub(in crate::image) config: ImageConfig,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Raw {
    #[serde(deserialize_with = "or_default")]
    os: String,
    #[serde(deserialize_with = "or_default")]
    architecture: String,
    #[serde(deserialize_with = "or_default")]
    config: RawConfig,
    #[serde(deserialize_with = "or_default")]
    rootfs: RawRootfs,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawConfig {
    #[serde(deserialize_with = "or_default")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    env: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    working_dir: String,
    #[serde(deserialize_with = "or_default")]
    user: String,
    #[serde(deserialize_with = "or_default")]
    stop_signal: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawRootfs {
    #[serde(deserialize_with = "or_default")]
    diff_ids: Vec<String>,
}

/// Reads a config blob.
pub(in crate::image) fn parse_config(bytes: &[u8]) -> Result<ConfigFile, serde_json::Error> {
    let raw: Raw = serde_json::from_slice(bytes)?;
    let RawConfig { entrypoint, cmd, env, working_dir, user, stop_signal } = raw.config;
    Ok(ConfigFile {
        os: raw.os,
        architecture: raw.architecture,
        diff_ids: raw.rootfs.diff_ids,
        config: ImageConfig { entrypoint, cmd, env, working_dir, user, stop_signal },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_fields_are_tolerated() {
        let all_null = br#"{"os":null,"architecture":null,"created":"yesterday","history":null,"rootfs":null,
            "config":{"Entrypoint":null,"Cmd":null,"Env":null,"WorkingDir":null,"User":null,"StopSignal":null,
                      "Labels":null,"ExposedPorts":null,"Volumes":null,"OnBuild":null}}"#;
        assert_eq!(parse_config(all_null).unwrap(), ConfigFile::default());
        assert_eq!(parse_config(br#"{"config":null}"#).unwrap(), ConfigFile::default());
        assert_eq!(parse_config(b"{}").unwrap(), ConfigFile::default());
        assert!(parse_config(b"7").is_err());
    }

    #[test]
    fn what_a_machine_needs_is_read() {
        let bytes = br#"{"os":"linux","architecture":"arm64","rootfs":{"type":"layers","diff_ids":["sha256:1"]},
            "config":{"Entrypoint":["/e"],"Cmd":["c"],"Env":["A=b"],"WorkingDir":"/w","User":"u:g","StopSignal":"3"}}"#;
        let read = parse_config(bytes).unwrap();
        assert_eq!((read.os.as_str(), read.architecture.as_str()), ("linux", "arm64"));
        assert_eq!(read.diff_ids, ["sha256:1"]);
        let config = read.config;
        assert_eq!(
            (config.entrypoint, config.cmd, config.env),
            (vec!["/e".into()], vec!["c".into()], vec!["A=b".into()])
        );
        assert_eq!(
            (config.working_dir, config.user, config.stop_signal),
            ("/w".into(), "u:g".into(), "3".into())
        );
    }
}
