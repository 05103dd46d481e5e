//! Why an image is not ready, told to the user: what, where, why, and what to do next.

use iii_protocol::api::{ErrorBody, ErrorCode};

use super::digest::Digest;
use crate::fsutil::{LockError, PathError};

/// Everything that can stand between a reference and its root disk.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file that is being downloaded, built or recorded.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The lock of an image.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The root disk was refused or could not be written.
    #[error("cannot build the root disk of {reference}: {reason}")]
    Build {
        /// Which image.
        reference: String,
        /// What the builder says.
        reason: String,
    },
    /// No room for the root disk.
    #[error("cannot build the root disk of {reference}: {reason}")]
    BuildDiskFull {
        /// Which image.
        reference: String,
        /// What the builder says.
        reason: String,
    },
    /// The TLS certificate of the registry is not trusted.
    #[error("the TLS certificate of {host} is not trusted: {reason}")]
    Certificate {
        /// The registry's host.
        host: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A connection could not be made for another reason than those that have their own variant.
    #[error("cannot connect to {host}: {reason}")]
    Connect {
        /// The registry's host.
        host: String,
        /// What the system said.
        reason: String,
    },
    /// Content that is not what its digest says.
    #[error("{what} of {reference} does not match its digest: expected {expected}, got {actual}")]
    DigestMismatch {
        /// Which image.
        reference: String,
        /// `the manifest`, `a layer`...
        what: String,
        /// What was announced.
        expected: String,
        /// What came.
        actual: String,
    },
    /// The registry's host has no address.
    #[error("cannot find the registry {host}: its name does not resolve ({reason})")]
    Dns {
        /// The registry's host.
        host: String,
        /// What the resolver said.
        reason: String,
    },
    /// A connection that broke or stalled, too often.
    #[error("the download of {what} from {host} broke off: {reason}")]
    Interrupted {
        /// The registry's host.
        host: String,
        /// The manifest or a layer.
        what: String,
        /// What the last attempt ended with.
        reason: String,
    },
    /// The manifest or config is not what the image-spec says.
    #[error("{reference} is malformed: {reason}")]
    Malformed {
        /// Which image.
        reference: String,
        /// What is wrong.
        reason: String,
    },
    /// A mirror failed, otherwise than by not having the image.
    #[error("the mirror of {registry} fails: {error}")]
    Mirror {
        /// Whose mirror it is.
        registry: String,
        /// How it failed; names the mirror's host.
        error: Box<ImageError>,
    },
    /// A mirror has no such image, and its registry failed too.
    #[error("the mirror {mirror} has no {reference}, and {registry} itself fails: {error}")]
    NotMirrored {
        /// Which image.
        reference: String,
        /// Whose mirror it is.
        registry: String,
        /// The mirror's host.
        mirror: String,
        /// How the registry failed.
        error: Box<ImageError>,
    },
    /// The registry has no such repository, tag or digest.
    #[error("there is no image {reference}")]
    NotFound {
        /// Which image.
        reference: String,
        /// Whether it is one of Docker Hub's.
        docker_hub: bool,
    },
    /// Something else is kept under that name: a chart, a signature, a WebAssembly module.
    #[error("{reference} is not a container image but {media_type}")]
    NotAnImage {
        /// Which image.
        reference: String,
        /// What it says it is.
        media_type: String,
    },
    /// No image for this kind of machine.
    #[error("{reference} has no image for {wanted}; it has {}", list(available))]
    Platform {
        /// Which image.
        reference: String,
        /// `linux/amd64`...
        wanted: String,
        /// The platforms there are.
        available: Vec<String>,
    },
    /// The registry limits how often one may ask.
    #[error("{host} refuses further requests for now: {reason}")]
    RateLimited {
        /// The registry's host.
        host: String,
        /// What the registry said.
        reason: String,
    },
    /// Nobody listens.
    #[error("cannot connect to {host}: connection refused")]
    Refused {
        /// The registry's host.
        host: String,
    },
    /// The registry answered with an error of its own.
    #[error("{host} answered {what} with an error: {reason}")]
    Registry {
        /// The registry's host.
        host: String,
        /// The request for...
        what: String,
        /// Status and message.
        reason: String,
    },
    /// The HTTP client could not be set up.
    #[error("cannot set up HTTPS: {reason}")]
    Setup {
        /// What it said.
        reason: String,
    },
    /// The TLS handshake failed.
    #[error("the TLS handshake with {host} failed: {reason}")]
    Tls {
        /// The registry's host.
        host: String,
        /// What rustls said.
        reason: String,
        /// The answer was not TLS at all: the registry speaks plain http.
        plain: bool,
    },
    /// More bytes than announced.
    #[error("a layer of {reference} is longer than announced: {digest} should have {announced} bytes")]
    TooLong {
        /// Which image.
        reference: String,
        /// Which blob.
        digest: Digest,
        /// The manifest's size of it, bytes.
        announced: u64,
    },
    /// Not for everybody, or not there: registries do not tell which.
    #[error("{host} does not let us pull {reference} ({reason})")]
    Unauthorized {
        /// The registry's host.
        host: String,
        /// Which image.
        reference: String,
        /// What the registry said.
        reason: String,
    },
    /// A layer in a format that cannot be read.
    #[error("{reference} has a layer of the unsupported type {media_type}")]
    UnsupportedLayer {
        /// Which image.
        reference: String,
        /// The layer's media type.
        media_type: String,
    },
    /// A task of ours panicked: a defect.
    #[error("internal error while preparing {reference}: {reason}")]
    Internal {
        /// Which image.
        reference: String,
        /// The panic's message.
        reason: String,
    },
}

fn list(platforms: &[String]) -> String {
    match platforms {
        [] => "none".to_owned(),
        platforms => platforms.join(", "),
    }
}

impl ImageError {
    /// What the user can do next, if there is something.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            ImageError::Mirror { error, .. } => {
                let named = "the mirror is named under `registries:` in config.yaml";
                match error.hint() {
                    Some(hint) => format!("{hint}; {named}"),
                    None => named.to_owned(),
                }
            }
            ImageError::NotMirrored { error, .. } => return error.hint(),
            ImageError::Path(e) | ImageError::Lock(LockError::Path(e)) => match e.is_disk_full() {
                true => DISK_FULL_HINT.to_owned(),
                false => return None,
            },
            ImageError::BuildDiskFull { .. } => DISK_FULL_HINT.to_owned(),
            ImageError::Certificate { .. } => {
                "if the registry uses a private authority, add it to the system's certificate store or name \
                 a file with it in SSL_CERT_FILE"
                    .to_owned()
            }
            ImageError::Connect { .. } | ImageError::Interrupted { .. } => {
                "check the network and try again; what has been downloaded is kept".to_owned()
            }
            ImageError::DigestMismatch { .. } | ImageError::TooLong { .. } => {
                "the registry, or a proxy on the way, sends damaged data; try again or push the image anew"
                    .to_owned()
            }
            ImageError::Dns { .. } => "check the registry's name and the network's DNS".to_owned(),
            ImageError::NotFound { docker_hub: true, .. } => {
                "check the spelling; a name without a registry, such as `redis:7`, is looked up on docker.io"
                    .to_owned()
            }
            ImageError::NotFound { .. } => "check the repository's name and the tag".to_owned(),
            ImageError::NotAnImage { .. } => {
                "a worker needs a container image: check the reference".to_owned()
            }
            ImageError::Platform { wanted, .. } => {
                format!("build and push the image for {wanted} too, or choose another tag")
            }
            ImageError::RateLimited { .. } => "wait a few minutes and try again".to_owned(),
            ImageError::Refused { host } => {
                format!("is the registry running? Nothing listens at {host}")
            }
            ImageError::Setup { .. } => {
                "install the system's certificate store (Debian: `ca-certificates`) or name a file with \
                 certificates in SSL_CERT_FILE"
                    .to_owned()
            }
            ImageError::Tls { host, plain: true, .. } => format!(
                "{host} seems to speak plain http: name it under `insecure_registries:` in config.yaml or in \
                 III_INSECURE_REGISTRIES"
            ),
            ImageError::Unauthorized { .. } => {
                "it is private or does not exist: iii pulls without credentials, so check the spelling or make \
                 the repository public"
                    .to_owned()
            }
            ImageError::UnsupportedLayer { .. } => {
                "push the image with layers as tar, tar+gzip or tar+zstd".to_owned()
            }
            ImageError::Lock(LockError::Held { .. })
            | ImageError::Build { .. }
            | ImageError::Malformed { .. }
            | ImageError::Registry { .. }
            | ImageError::Tls { plain: false, .. }
            | ImageError::Internal { .. } => return None,
        };
        Some(hint)
    }

    /// Whether the disk, or the user's share of it, is full.
    pub fn is_disk_full(&self) -> bool {
        match self {
            ImageError::Path(e) | ImageError::Lock(LockError::Path(e)) => e.is_disk_full(),
            ImageError::BuildDiskFull { .. } => true,
            _ => false,
        }
    }
}

const DISK_FULL_HINT: &str = "free some space where III_HOME (~/.iii by default) is, then try again; what has \
                              been downloaded is kept";

impl From<&ImageError> for ErrorBody {
    fn from(error: &ImageError) -> ErrorBody {
        let code = match error {
            ImageError::Mirror { error, .. } | ImageError::NotMirrored { error, .. } => {
                ErrorBody::from(&**error).code
            }
            _ if error.is_disk_full() => ErrorCode::Host,
            ImageError::Path(_) | ImageError::Lock(_) => ErrorCode::Host,
            ImageError::Internal { .. } => ErrorCode::Internal,
            _ => ErrorCode::Image,
        };
        ErrorBody { code, message: error.to_string(), hint: error.hint() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_the_hosts_fault_and_a_missing_image_is_not() {
        let full = ImageError::Path(PathError {
            action: "write",
            path: "/x".into(),
            source: std::io::ErrorKind::StorageFull.into(),
        });
        let body = ErrorBody::from(&full);
        assert_eq!(body.code, ErrorCode::Host);
        assert!(body.hint.unwrap().contains("free some space"));

        let missing =
            ImageError::NotFound { reference: "docker.io/library/bsybox:latest".into(), docker_hub: true };
        let body = ErrorBody::from(&missing);
        assert_eq!(body.code, ErrorCode::Image);
        assert_eq!(body.message, "there is no image docker.io/library/bsybox:latest");
        assert!(body.hint.unwrap().contains("spelling"));
    }
}
