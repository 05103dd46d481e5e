//! What oci-client's errors mean: for the user, and for whether another attempt may help.

use std::error::Error;
use std::io;

use oci_client::errors::{DigestError, OciDistributionError, OciEnvelope, OciErrorCode};

use crate::image::error::ImageError;
use crate::image::reference::Reference;

/// The most of a registry's own words that goes into an error.
const MAX_REASON_CHARS: usize = 300;

const UNREACHABLE_HOST: io::ErrorKind = io::ErrorKind::HostUnreachable;
const UNREACHABLE_NETWORK: io::ErrorKind = io::ErrorKind::NetworkUnreachable;

/// What was asked for.
pub(super) struct Subject<'a> {
    pub(super) reference: &'a Reference,
    /// Who was asked.
    pub(super) host: String,
    /// `the manifest`, `layer sha256:...`
    pub(super) what: String,
    /// A blob that the manifest names: the registry has the image, or should.
    pub(super) is_blob: bool,
}

/// Whether another attempt may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// No: the answer would be the same.
    GiveUp,
    /// It may.
    Retry,
    /// It may, but not soon.
    RetryLater,
}

/// An attempt that failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: ImageError,
    pub(super) remedy: Remedy,
}

impl Failure {
    pub(super) fn fatal(error: ImageError) -> Failure {
        Failure { error, remedy: Remedy::GiveUp }
    }

    fn transient(error: ImageError) -> Failure {
        Failure { error, remedy: Remedy::Retry }
    }

    pub(super) fn is_unauthorized(&self) -> bool {
        matches!(self.error, ImageError::Unauthorized { .. })
    }
}

impl Subject<'_> {
    fn host(&self) -> String {
        self.host.clone()
    }

    /// What an error of a whole request means.
    pub(super) fn classify(&self, error: OciDistributionError) -> Failure {
        match error {
            OciDistributionError::RequestError(error) if error.is_connect() => {
                self.connect(&error, error.is_timeout())
            }
            OciDistributionError::RequestError(error) if error.is_builder() || error.is_redirect() => {
                self.registry(innermost(&error))
            }
            OciDistributionError::RequestError(error) if error.is_timeout() => self.timed_out(),
            OciDistributionError::RequestError(error) => self.broken(innermost(&error)),
            OciDistributionError::IoError(error) => self.broken(innermost(&error)),
            OciDistributionError::ServerError { code, message, .. } => self.status(code, &message),
            OciDistributionError::RegistryError { envelope, .. } => self.envelope(&envelope),
            OciDistributionError::UnauthorizedError { .. } => self.unauthorized("status 401"),
            OciDistributionError::AuthenticationFailure(reason) => self.token_refused(&reason),
            OciDistributionError::DigestError(DigestError::VerificationError { expected, actual }) => {
                Failure::fatal(ImageError::DigestMismatch {
                    reference: self.reference.to_string(),
                    what: self.what.clone(),
                    expected,
                    actual,
                })
            }
            OciDistributionError::DigestError(error) => Failure::fatal(ImageError::Malformed {
                reference: self.reference.to_string(),
                reason: format!("{}: {error}", self.what),
            }),
            error => self.registry(innermost(&error)),
        }
    }

    /// The stream of a body ended early.
    pub(super) fn broken(&self, reason: String) -> Failure {
        Failure::transient(ImageError::Interrupted { host: self.host(), what: self.what.clone(), reason })
    }

    /// Nothing came for too long.
    pub(super) fn timed_out(&self) -> Failure {
        self.broken("no data came in time".to_owned())
    }

    /// At first contact the user hears at once that nobody answers; once the registry has answered, it may
    /// only be restarting.
    fn connect(&self, error: &(dyn Error + 'static), timed_out: bool) -> Failure {
        let host = self.host();
        let reason = innermost(error);
        let text = chain(error).join(": ");
        let has = |needles: &[&str]| needles.iter().any(|needle| text.contains(needle));
        let kind = io_kind(error);
        let unless_blob = if self.is_blob { Remedy::Retry } else { Remedy::GiveUp };
        if kind == Some(io::ErrorKind::ConnectionRefused) {
            Failure { error: ImageError::Refused { host }, remedy: unless_blob }
        } else if has(&["dns error", "failed to lookup address"]) {
            Failure { error: ImageError::Dns { host, reason }, remedy: unless_blob }
        } else if has(&["InvalidContentType", "corrupt message"]) {
            Failure::fatal(ImageError::Tls { host, reason, plain: true })
        } else if has(&["certificate"]) {
            Failure::fatal(ImageError::Certificate { host, reason })
        } else if has(&["received fatal alert", "HandshakeFailure", "ProtocolVersion"]) {
            Failure::fatal(ImageError::Tls { host, reason, plain: false })
        } else if timed_out || matches!(kind, Some(UNREACHABLE_HOST | UNREACHABLE_NETWORK)) {
            let reason = if timed_out { "no answer in time".to_owned() } else { reason };
            Failure { error: ImageError::Connect { host, reason }, remedy: unless_blob }
        } else {
            Failure::transient(ImageError::Connect { host, reason })
        }
    }

    fn status(&self, code: u16, message: &str) -> Failure {
        let reason = format!("status {code}{}", said(message));
        match code {
            401 | 403 => self.unauthorized(&reason),
            404 => self.not_found(),
            429 => self.rate_limited(reason),
            408 | 500..=599 => Failure { remedy: Remedy::Retry, ..self.registry(reason) },
            _ => self.registry(reason),
        }
    }

    /// The JSON errors of the distribution-spec; oci-client drops the status that came with them.
    fn envelope(&self, envelope: &OciEnvelope) -> Failure {
        let Some(first) = envelope.errors.first() else { return self.registry("an empty error".to_owned()) };
        let code = serde_json::to_value(&first.code).ok();
        let code = code.as_ref().and_then(|c| c.as_str()).unwrap_or("UNKNOWN").to_owned();
        let reason = format!("{code}{}", said(&first.message));
        match first.code {
            OciErrorCode::Unauthorized | OciErrorCode::Denied => self.unauthorized(&reason),
            OciErrorCode::ManifestUnknown
            | OciErrorCode::NameUnknown
            | OciErrorCode::NotFound
            | OciErrorCode::BlobUnknown
            | OciErrorCode::ManifestBlobUnknown => self.not_found(),
            OciErrorCode::Toomanyrequests => self.rate_limited(reason),
            OciErrorCode::NameInvalid => self.not_found(),
            _ => self.registry(reason),
        }
    }

    fn not_found(&self) -> Failure {
        if self.is_blob {
            return self.registry("it is not there, though the manifest names it".to_owned());
        }
        Failure::fatal(ImageError::NotFound {
            reference: self.reference.to_string(),
            docker_hub: self.reference.registry() == "docker.io",
        })
    }

    fn unauthorized(&self, reason: &str) -> Failure {
        Failure::fatal(ImageError::Unauthorized {
            host: self.host(),
            reference: self.reference.to_string(),
            reason: reason.to_owned(),
        })
    }

    /// The token service's refusal; its status is lost, its words are all there is.
    fn token_refused(&self, reason: &str) -> Failure {
        match serde_json::from_str::<OciEnvelope>(reason) {
            Ok(envelope) if !envelope.errors.is_empty() => {
                let failure = self.envelope(&envelope);
                match failure.remedy {
                    Remedy::RetryLater => failure,
                    _ => self.unauthorized(&format!("no token{}", said(&envelope.errors[0].message))),
                }
            }
            _ => self.unauthorized(&format!("no token{}", said(reason))),
        }
    }

    fn rate_limited(&self, reason: String) -> Failure {
        let error = ImageError::RateLimited { host: self.host(), reason };
        Failure { error, remedy: Remedy::RetryLater }
    }

    fn registry(&self, reason: String) -> Failure {
        let what = format!("the request for {}", self.what);
        Failure::fatal(ImageError::Registry { host: self.host(), what, reason })
    }
}

/// `: <what the registry said>` on one line and not too long, or nothing.
fn said(message: &str) -> String {
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.is_empty() {
        true => String::new(),
        false => format!(": {}", line.chars().take(MAX_REASON_CHARS).collect::<String>()),
    }
}

/// The error and what caused it, outermost first.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
}

/// Every cause's text, outermost first.
fn chain(error: &(dyn Error + 'static)) -> Vec<String> {
    causes(error).map(|e| e.to_string()).collect()
}

/// The text of the deepest cause: the one that says something.
pub(super) fn innermost(error: &(dyn Error + 'static)) -> String {
    chain(error).pop().unwrap_or_default()
}

/// The kind of the first I/O error among the causes.
fn io_kind(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    causes(error).find_map(|e| e.downcast_ref::<io::Error>()).map(io::Error::kind)
}
