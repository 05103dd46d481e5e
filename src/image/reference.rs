//! Image references as Docker users write them: `busybox`, `ghcr.io/o/w:1.2`, `localhost:5050/x@sha256:...`.
//!
//! `grammar` is Docker's own; this adds what that lacks: IPv6 registries, which registries are spoken to
//! over plain http, and errors that say what is wrong with the text.

mod grammar;

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use oci_client::Reference as OciReference;

use super::digest::{Digest, DigestError};
use grammar::{DOCKER_HUB, Parts};

/// The host that answers for [`DOCKER_HUB`].
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";
/// Its oldest name, which references may still have.
const DOCKER_HUB_INDEX: &str = "index.docker.io";
const DEFAULT_TAG: &str = "latest";
/// The longest repository, in bytes; Docker's own limit.
const MAX_REPOSITORY: usize = 255;
/// Longest worker name config.yaml allows.
const MAX_WORKER_NAME_BYTES: usize = 63;

/// A reference with everything Docker's shorthands leave out filled in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing there.
    #[error("the image reference is empty")]
    Empty,
    /// `https://...`.
    #[error("`{text}` is a URL; an image reference has no `{scheme}://`")]
    Url {
        /// What was written.
        text: String,
        /// The part in front of `://`.
        scheme: String,
    },
    /// Upper case in the repository.
    #[error("`{text}`: repository names are lower case")]
    UpperCase {
        /// What was written.
        text: String,
    },
    /// A port that is no port.
    #[error("`{text}`: `{port}` is not a port")]
    Port {
        /// What was written.
        text: String,
        /// The bad part.
        port: String,
    },
    /// A bad digest.
    #[error("`{text}`: {source}")]
    Digest {
        /// What was written.
        text: String,
        /// What is wrong with it.
        source: DigestError,
    },
    /// Too long a repository.
    #[error("`{text}`: the repository is longer than 255 characters")]
    TooLong {
        /// What was written.
        text: String,
    },
    /// Anything else.
    #[error("`{text}` is not an image reference such as `redis:7` or `ghcr.io/org/worker:1.0`")]
    Form {
        /// What was written.
        text: String,
    },
}

impl Reference {
    /// `docker.io`, `localhost:5050`...
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// `library/busybox`...
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` when neither tag nor digest was written.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, which wins over the tag.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Whether this registry is spoken to without TLS: a loopback one, or one named in `insecure`
    /// (`host` for every port of it, or `host:port`).
    pub fn plain_http(&self, insecure: &[String]) -> bool {
        is_plain_http(&self.registry, insecure)
    }

    /// `host[:port]` of the server that answers for the registry.
    pub fn host(&self) -> &str {
        match self.registry.as_str() {
            DOCKER_HUB => DOCKER_HUB_HOST,
            registry => registry,
        }
    }

    /// The same repository at a digest, for a server that need not be the registry's own.
    pub(super) fn at(&self, host: &str, digest: &Digest) -> OciReference {
        OciReference::with_digest(host.to_owned(), self.repository.clone(), digest.to_string())
    }

    /// What to ask such a server for: the digest if there is one, else the tag.
    pub(super) fn wanted(&self, host: &str) -> OciReference {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => self.at(host, digest),
            (None, tag) => OciReference::with_tag(
                host.to_owned(),
                self.repository.clone(),
                tag.as_deref().unwrap_or(DEFAULT_TAG).to_owned(),
            ),
        }
    }
}

/// Whether a server (`host[:port]`) is spoken to without TLS, see [`Reference::plain_http`].
pub(super) fn is_plain_http(server: &str, insecure: &[String]) -> bool {
    is_loopback(server) || insecure.iter().any(|named| is_named(server, named))
}

/// Whether a server is on this machine: `localhost`, `127.0.0.0/8`, `[::1]`.
pub(super) fn is_loopback(server: &str) -> bool {
    let (host, _) = split_port(server);
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
        || bare.is_some_and(|h| h.parse::<Ipv6Addr>().is_ok_and(|ip| ip.is_loopback()))
}

fn is_named(server: &str, named: &str) -> bool {
    let named = named.trim();
    let (host, port) = split_port(server);
    match split_port(named) {
        (name, None) => name.eq_ignore_ascii_case(host),
        (name, named_port) => name.eq_ignore_ascii_case(host) && named_port == port,
    }
}

/// The registry as references have it: Docker Hub answers to several names.
pub(super) fn canonical_registry(name: &str) -> String {
    let name = name.to_ascii_lowercase();
    match name.as_str() {
        DOCKER_HUB_HOST | DOCKER_HUB_INDEX => DOCKER_HUB.to_owned(),
        _ => name,
    }
}

/// The name a worker gets when the user gives none: the last part of the repository.
pub fn default_worker_name(reference: &Reference) -> String {
    let last = reference.repository.rsplit('/').next().unwrap_or_default();
    last.chars().take(MAX_WORKER_NAME_BYTES).collect()
}

/// `host[:port]` taken apart; brackets of an IPv6 address stay with the host.
fn split_port(registry: &str) -> (&str, Option<&str>) {
    match registry.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (registry, None),
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Reference, ReferenceError> {
        let owned = || text.to_owned();
        if text.trim().is_empty() {
            return Err(ReferenceError::Empty);
        }
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(ReferenceError::Url { text: owned(), scheme: scheme.to_owned() });
        }
        // The grammar knows no IPv6 hosts; `localhost` stands in for one while the rest is read.
        let ipv6 = match text.split_once('/') {
            Some((host, rest)) if host.starts_with('[') => Some((ipv6_host(host, text)?, rest)),
            _ => None,
        };
        let stand_in;
        let read = match ipv6 {
            Some((_, rest)) => {
                stand_in = format!("localhost/{rest}");
                stand_in.as_str()
            }
            None => text,
        };
        let digest = match read.split_once('@') {
            Some((_, digest)) => Some(
                digest
                    .parse::<Digest>()
                    .map_err(|source| ReferenceError::Digest { text: owned(), source })?,
            ),
            None => None,
        };
        let Some(Parts { registry, repository, tag, .. }) = grammar::scan(read) else {
            return Err(form_or_case(text));
        };
        if repository.len() > MAX_REPOSITORY {
            return Err(ReferenceError::TooLong { text: owned() });
        }
        let registry = ipv6.map_or(registry, |(host, _)| host);
        let (_, port) = split_port(registry);
        if let Some(port) = port.filter(|p| p.parse::<u16>().map_or(true, |port| port == 0)) {
            return Err(ReferenceError::Port { text: owned(), port: port.to_owned() });
        }
        let registry = if registry == DOCKER_HUB_HOST { DOCKER_HUB } else { registry };
        let tag = tag.or(digest.is_none().then_some(DEFAULT_TAG)).map(str::to_owned);
        Ok(Reference { registry: registry.to_owned(), repository, tag, digest })
    }
}

/// Checks `[address]` or `[address]:port`.
fn ipv6_host<'a>(host: &'a str, text: &str) -> Result<&'a str, ReferenceError> {
    let (address, _) = split_port(host);
    let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']'));
    match bare.is_some_and(|a| a.parse::<Ipv6Addr>().is_ok()) {
        true => Ok(host),
        false => Err(ReferenceError::Form { text: text.to_owned() }),
    }
}

/// Upper case is the commonest mistake; everything else is told by an example.
fn form_or_case(text: &str) -> ReferenceError {
    let text = text.to_owned();
    match grammar::scan(&text.to_ascii_lowercase()).is_some() {
        true => ReferenceError::UpperCase { text },
        false => ReferenceError::Form { text },
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(text: &str) -> Reference {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn docker_shorthands_are_filled_in() {
        let digest = Digest::of(b"x");
        for (text, canonical) in [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("busybox:1.36", "docker.io/library/busybox:1.36".to_owned()),
            ("docker.io/busybox", "docker.io/library/busybox:latest".to_owned()),
            ("index.docker.io/library/busybox", "docker.io/library/busybox:latest".to_owned()),
            ("registry-1.docker.io/library/busybox", "docker.io/library/busybox:latest".to_owned()),
            ("org/worker", "docker.io/org/worker:latest".to_owned()),
            ("ghcr.io/my-org/my-worker:1.0", "ghcr.io/my-org/my-worker:1.0".to_owned()),
            ("localhost/x", "localhost/x:latest".to_owned()),
            ("localhost:5050/x", "localhost:5050/x:latest".to_owned()),
            ("host:5000/a/b/c:t", "host:5000/a/b/c:t".to_owned()),
            ("[::1]:5000/a/b:t", "[::1]:5000/a/b:t".to_owned()),
            ("[::1]/a", "[::1]/a:latest".to_owned()),
            (&format!("busybox@{digest}"), format!("docker.io/library/busybox@{digest}")),
            (&format!("h.io/x:1@{digest}"), format!("h.io/x:1@{digest}")),
        ] {
            assert_eq!(reference(text).to_string(), canonical, "{text}");
            assert_eq!(reference(&canonical).to_string(), canonical, "canonical form is stable");
        }
    }

    #[test]
    fn a_bad_reference_says_what_is_wrong() {
        for (text, message) in [
            ("", "the image reference is empty"),
            ("  ", "the image reference is empty"),
            ("https://ghcr.io/x", "`https://ghcr.io/x` is a URL; an image reference has no `https://`"),
            ("ghcr.io/Org/x", "`ghcr.io/Org/x`: repository names are lower case"),
            ("host:99999/x", "`host:99999/x`: `99999` is not a port"),
            (
                "x@sha256:12",
                "`x@sha256:12`: `sha256:12` is not a digest of the form sha256:<64 lower-case hex digits>",
            ),
            ("a b", "`a b` is not an image reference such as `redis:7` or `ghcr.io/org/worker:1.0`"),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap_err().to_string(), message);
        }
        for text in ["x:", ":tag", "[::1", "[zz]/x", "x/../y", "-x", "x:ta g", "a//b", "../x"] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_loopback_and_named_registries_are_plain_http() {
        let named = ["reg.local:5000".to_owned(), " Other ".to_owned(), "[fd00::1]:80".to_owned()];
        for text in [
            "localhost/x",
            "localhost:1/x",
            "127.0.0.1:5000/x",
            "127.9.9.9/x",
            "[::1]:5000/x",
            "reg.local:5000/x",
            "other:443/x",
            "[fd00::1]:80/x",
        ] {
            assert!(reference(text).plain_http(&named), "{text}");
        }
        for text in ["busybox", "reg.local:5001/x", "reg.local/x", "localhost.evil.io/x", "128.0.0.1:80/x"] {
            assert!(!reference(text).plain_http(&named), "{text}");
        }
    }

    #[test]
    fn docker_io_is_answered_by_its_registry_host() {
        assert_eq!(reference("busybox").host(), "registry-1.docker.io");
        assert_eq!(reference("quay.io/x/y").host(), "quay.io");
    }

    #[test]
    fn a_worker_is_named_after_its_image() {
        assert_eq!(default_worker_name(&reference("ghcr.io/my-org/my-worker:latest")), "my-worker");
        assert_eq!(default_worker_name(&reference("busybox")), "busybox");
    }
}
