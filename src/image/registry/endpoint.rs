//! Which server is asked for an image: the registry's own, or the mirror that the user named for it. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::image::reference::{Reference, canonical_registry, is_loopback, is_plain_http};

/// What the user says about registries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistrySettings {
    /// Spoken to over plain http: `host` or `host:port` each. Loopback registries always are.
    pub insecure: Vec<String>,
    /// Registry to the server, `host[:port]`, that is asked in its place.
    pub mirrors: BTreeMap<String, String>,
}

/// A server and how it is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::image) struct Endpoint {
    /// `host[:port]`.
    pub(in crate::image) host: String,
    pub(super) plain_http: bool,
}

impl Endpoint {
    /// The registry's own server.
    pub(in crate::image) fn own(reference: &Reference, settings: &RegistrySettings) -> Endpoint {
        let plain_http = reference.plain_http(&settings.insecure);
        Endpoint { host: reference.host().to_owned(), plain_http }
    }

    /// The mirror of the reference's registry, if there is one.
    pub(in crate::image) fn mirror(reference: &Reference, settings: &RegistrySettings) -> Option<Endpoint> {
        let registry = reference.registry().to_ascii_lowercase();
        let mirrors = settings.mirrors.iter();
        let (_, host) = mirrors.into_iter().find(|(name, _)| canonical_registry(name) == registry)?;
        let plain_http = is_plain_http(host, &settings.insecure);
        Some(Endpoint { host: host.clone(), plain_http })
    }

    pub(super) fn is_loopback(&self) -> bool {
        is_loopback(&self.host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_is_asked_for_its_registry_and_no_other() {
        let mirrors =
            [("docker.io", "localhost:5050"), ("GHCR.io", "mirror.lan"), ("r.lan:5000", "slow.lan:80")];
        let settings = RegistrySettings {
            insecure: vec!["slow.lan:80".to_owned()],
            mirrors: mirrors.into_iter().map(|(name, host)| (name.to_owned(), host.to_owned())).collect(),
        };
        for (reference, expected) in [
            ("redis:7", Some(("localhost:5050", true))),
            ("index.docker.io/library/redis", Some(("localhost:5050", true))),
            ("ghcr.io/o/w", Some(("mirror.lan", false))),
            ("r.lan:5000/w", Some(("slow.lan:80", true))),
            ("r.lan/w", None),
            ("quay.io/o/w", None),
        ] {
            let mirror = Endpoint::mirror(&reference.parse().unwrap(), &settings);
            let found = mirror.as_ref().map(|mirror| (mirror.host.as_str(), mirror.plain_http));
            assert_eq!(found, expected, "{reference}");
        }
        for name in ["index.docker.io", "registry-1.docker.io", "Docker.IO"] {
            let mirrors = [(name.to_owned(), "m".to_owned())].into();
            let settings = RegistrySettings { mirrors, ..RegistrySettings::default() };
            assert!(Endpoint::mirror(&"redis".parse().unwrap(), &settings).is_some(), "{name}");
        }
    }
}
