//! Reading manifests and indexes (image-spec `manifest.md`, `image-index.md`, and Docker's schema 2).
//!
//! Only what a pull needs is read, and absent, `null` and empty are the same: real registries hold all
//! three, which stricter readers refuse.

use std::fmt;

use oci_client::manifest::{
    IMAGE_CONFIG_MEDIA_TYPE, IMAGE_DOCKER_CONFIG_MEDIA_TYPE, IMAGE_MANIFEST_LIST_MEDIA_TYPE,
    IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE,
};
use serde::Deserialize;

use crate::image::digest::Digest;
use crate::image::error::ImageError;
use crate::image::reference::Reference;

/// Refused beyond this: each layer costs a request and a lock.
const MAX_LAYERS: usize = 1000;

/// One blob of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::image) struct Blob {
    /// What it must hash to.
    pub(in crate::image) digest: Digest,
    /// How long it must be, bytes.
    pub(in crate::image) size: u64,
    /// What it says it is.
    pub(in crate::image) media_type: String,
}

/// The manifest of one platform's image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::image) struct ImageManifest {
    /// How to run it.
    pub(in crate::image) config: Blob,
    /// Bottom first; one blob may appear more than once.
    pub(in crate::image) layers: Vec<Blob>,
}

/// What a manifest request may be answered with.
pub(super) enum Document {
    Image(ImageManifest),
    Index(Vec<Entry>),
}

/// One line of an index.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Entry {
    #[serde(deserialize_with = "or_default")]
    pub(super) digest: String,
    platform: Option<EntryPlatform>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct EntryPlatform {
    #[serde(deserialize_with = "or_default")]
    os: String,
    #[serde(deserialize_with = "or_default")]
    architecture: String,
    #[serde(deserialize_with = "or_default")]
    variant: String,
}

/// Manifest and index in one: which it is shows by the media type, or by what is there.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Raw {
    #[serde(deserialize_with = "or_default")]
    schema_version: u64,
    #[serde(deserialize_with = "or_default")]
    media_type: String,
    #[serde(deserialize_with = "or_default")]
    artifact_type: String,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Entry>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Descriptor {
    #[serde(deserialize_with = "or_default")]
    media_type: String,
    #[serde(deserialize_with = "or_default")]
    digest: String,
    size: Option<u64>,
}

/// `null` reads as the default.
pub(super) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Reads what a registry answered to a request for a manifest.
pub(super) fn parse(reference: &Reference, body: &[u8]) -> Result<Document, ImageError> {
    let raw: Raw =
        serde_json::from_slice(body).map_err(|e| malformed(reference, format!("manifest: {e}")))?;
    match raw.media_type.as_str() {
        OCI_IMAGE_INDEX_MEDIA_TYPE | IMAGE_MANIFEST_LIST_MEDIA_TYPE => index(raw),
        OCI_IMAGE_MEDIA_TYPE | IMAGE_MANIFEST_MEDIA_TYPE => image(reference, raw),
        "" if raw.manifests.is_some() => index(raw),
        "" if raw.config.is_some() => image(reference, raw),
        "" if raw.schema_version == 1 => Err(not_an_image(reference, "a Docker schema 1 manifest")),
        "" => Err(malformed(reference, "manifest: neither `config` nor `manifests`".to_owned())),
        other => Err(not_an_image(reference, other)),
    }
}

fn index(raw: Raw) -> Result<Document, ImageError> {
    Ok(Document::Index(raw.manifests.unwrap_or_default()))
}

fn image(reference: &Reference, raw: Raw) -> Result<Document, ImageError> {
    let config = raw.config.unwrap_or_default();
    match config.media_type.as_str() {
        IMAGE_CONFIG_MEDIA_TYPE | IMAGE_DOCKER_CONFIG_MEDIA_TYPE => {}
        _ if !raw.artifact_type.is_empty() => return Err(not_an_image(reference, &raw.artifact_type)),
        other => return Err(not_an_image(reference, other)),
    }
    let layers = raw.layers.unwrap_or_default();
    if layers.len() > MAX_LAYERS {
        return Err(malformed(reference, format!("{} layers, at most {MAX_LAYERS} are read", layers.len())));
    }
    let layers = layers.into_iter().map(|layer| blob(reference, layer)).collect::<Result<_, _>>()?;
    Ok(Document::Image(ImageManifest { config: blob(reference, config)?, layers }))
}

fn blob(reference: &Reference, descriptor: Descriptor) -> Result<Blob, ImageError> {
    let size = descriptor
        .size
        .ok_or_else(|| malformed(reference, format!("manifest: {} has no size", descriptor.digest)))?;
    let digest = digest(reference, &descriptor.digest)?;
    Ok(Blob { digest, size, media_type: descriptor.media_type })
}

/// A digest out of a manifest: used in paths, so it must be well-formed.
pub(super) fn digest(reference: &Reference, text: &str) -> Result<Digest, ImageError> {
    text.parse().map_err(|e| malformed(reference, format!("manifest: {e}")))
}

fn malformed(reference: &Reference, reason: String) -> ImageError {
    ImageError::Malformed { reference: reference.to_string(), reason }
}

fn not_an_image(reference: &Reference, media_type: &str) -> ImageError {
    let media_type = if media_type.is_empty() { "something without a type" } else { media_type };
    ImageError::NotAnImage { reference: reference.to_string(), media_type: media_type.to_owned() }
}

/// What a guest on this host can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::image) struct Platform {
    architecture: &'static str,
}

impl Platform {
    /// linux on the host's architecture, by its OCI (Go) name.
    pub(in crate::image) fn host() -> Platform {
        Platform {
            architecture: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                "powerpc64" => "ppc64le",
                other => other,
            },
        }
    }

    /// Whether a single image, by its config, runs here. Old builders leave both empty.
    pub(in crate::image) fn runs(&self, os: &str, architecture: &str) -> bool {
        (os.is_empty() || os == "linux") && (architecture.is_empty() || architecture == self.architecture)
    }

    /// The entry to use: the baseline variant first, then whatever is there for the architecture.
    pub(super) fn choose<'e>(&self, entries: &'e [Entry]) -> Option<&'e Entry> {
        let fitting = entries.iter().filter(|entry| match &entry.platform {
            Some(platform) => platform.os == "linux" && platform.architecture == self.architecture,
            // Without a platform there is nothing to choose by; one image alone is what was meant.
            None => entries.len() == 1,
        });
        // `min_by_key` takes the first of equals, as the spec wants.
        fitting.min_by_key(|entry| {
            let variant = entry.platform.as_ref().map_or("", |p| p.variant.as_str()).to_owned();
            let baseline =
                matches!((self.architecture, variant.as_str()), (_, "") | ("amd64", "v1") | ("arm64", "v8"));
            (!baseline, if baseline { String::new() } else { variant })
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linux/{}", self.architecture)
    }
}

/// The platforms of an index for people: without attestations, each once.
pub(super) fn platforms(entries: &[Entry]) -> Vec<String> {
    let mut names: Vec<String> = entries
        .iter()
        .filter_map(|entry| entry.platform.as_ref())
        .filter(|p| p.os != "unknown")
        .map(|p| match p.variant.as_str() {
            "" => format!("{}/{}", p.os, p.architecture),
            variant => format!("{}/{}/{variant}", p.os, p.architecture),
        })
        .collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference() -> Reference {
        "localhost:5000/x".parse().unwrap()
    }

    fn entries(platforms: &[(&str, &str, &str)]) -> Vec<Entry> {
        platforms
            .iter()
            .enumerate()
            .map(|(i, (os, architecture, variant))| Entry {
                digest: format!("{i}"),
                platform: Some(EntryPlatform {
                    os: (*os).to_owned(),
                    architecture: (*architecture).to_owned(),
                    variant: (*variant).to_owned(),
                }),
            })
            .collect()
    }

    #[test]
    fn the_hosts_architecture_is_chosen_with_its_baseline_variant() {
        let arm = Platform { architecture: "arm64" };
        let index = entries(&[
            ("unknown", "unknown", ""),
            ("linux", "amd64", "v3"),
            ("linux", "arm64", "v9"),
            ("linux", "arm64", "v8"),
            ("windows", "arm64", ""),
            ("linux", "amd64", ""),
        ]);
        assert_eq!(arm.choose(&index).unwrap().digest, "3");
        assert_eq!(Platform { architecture: "amd64" }.choose(&index).unwrap().digest, "5");
        assert!(Platform { architecture: "riscv64" }.choose(&index).is_none());
        let only_v9 = entries(&[("linux", "arm64", "v9")]);
        assert_eq!(arm.choose(&only_v9).unwrap().digest, "0");
        assert_eq!(
            platforms(&index),
            ["linux/amd64", "linux/amd64/v3", "linux/arm64/v8", "linux/arm64/v9", "windows/arm64"]
        );
    }

    #[test]
    fn nulls_are_as_good_as_nothing() {
        let digest = Digest::of(b"");
        let body = format!(
            r#"{{"schemaVersion":2,"mediaType":null,"annotations":null,"layers":null,
               "config":{{"mediaType":"{IMAGE_CONFIG_MEDIA_TYPE}","digest":"{digest}","size":2,"urls":null}}}}"#
        );
        let Ok(Document::Image(image)) = parse(&reference(), body.as_bytes()) else { panic!("not an image") };
        assert_eq!(image.layers, []);
        assert_eq!(image.config.size, 2);
        let Ok(Document::Index(entries)) = parse(&reference(), br#"{"schemaVersion":2,"manifests":[]}"#)
        else {
            panic!("not an index")
        };
        assert!(entries.is_empty());
    }

    #[test]
    fn what_is_no_image_is_named() {
        let digest = Digest::of(b"");
        let chart = format!(
            r#"{{"mediaType":"{OCI_IMAGE_MEDIA_TYPE}","layers":[],
               "config":{{"mediaType":"application/vnd.cncf.helm.config.v1+json","digest":"{digest}","size":2}}}}"#
        );
        let error = |body: &str| parse(&reference(), body.as_bytes()).map(drop).unwrap_err().to_string();
        assert_eq!(
            error(&chart),
            "localhost:5000/x:latest is not a container image but application/vnd.cncf.helm.config.v1+json"
        );
        assert!(error(r#"{"schemaVersion":1,"fsLayers":[]}"#).contains("schema 1"));
        assert!(error("<html>").contains("malformed"));
        assert!(error("{}").contains("neither"));
        let path = format!(
            r#"{{"mediaType":"{OCI_IMAGE_MEDIA_TYPE}",
               "config":{{"mediaType":"{IMAGE_CONFIG_MEDIA_TYPE}","digest":"sha256:../../x","size":2}}}}"#
        );
        assert!(error(&path).contains("not a digest"));
        let negative = path.replace("\"size\":2", "\"size\":-1");
        assert!(error(&negative).contains("malformed"));
    }
}
