//! Registries that speak TLS: whom to trust is the user's to say.

use serde_json::json;

use crate::scenarios::{Bed, SERVE, shell_layer};
use crate::support::registry::tls::{AUTHORITY, Certificate, NAME};
use crate::support::registry::{Registry, image};

/// A bed, and beside it a registry that only a proxy leads to, with the image `web`.
struct Secure {
    bed: Bed,
    registry: Registry,
    reference: String,
}

impl Secure {
    fn new(certificate: Certificate) -> Secure {
        let registry = Registry::start_tls(certificate);
        let config = json!({ "Entrypoint": ["/bin/sh", "-c", SERVE] });
        registry.push("web", "latest", &image(&[shell_layer()], config));
        Secure { bed: Bed::new(), registry, reference: format!("{NAME}/web:latest") }
    }

    /// The way to the registry, and whom to trust: one certificate, PEM.
    fn env(&self, trusted: &[u8]) -> Vec<(&'static str, String)> {
        let file = self.bed.project().join("trusted.pem");
        std::fs::write(&file, trusted).unwrap();
        let proxy = format!("http://{}", self.registry.address());
        vec![
            ("HTTPS_PROXY", proxy.clone()),
            ("https_proxy", proxy),
            ("NO_PROXY", String::new()),
            ("no_proxy", String::new()),
            ("SSL_CERT_FILE", file.to_str().unwrap().to_owned()),
        ]
    }

    /// `worker add`, without a daemon: code and stderr.
    fn add(&self, trusted: &[u8]) -> (Option<i32>, String) {
        let mut command = self.bed.command(&["worker", "add", &self.reference]);
        let output = command.envs(self.env(trusted)).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn is_refused(&self, trusted: &[u8], why: &str) {
        let (code, said) = self.add(trusted);
        assert_eq!(code, Some(1), "{said}");
        let told = format!("error: the TLS certificate of {NAME} is not trusted: ");
        assert!(said.contains(&told) && said.contains(why), "{said}");
        assert!(said.contains("hint: ") && said.contains("SSL_CERT_FILE"), "{said}");
        assert_eq!(self.registry.requests("/v2/"), 0, "nothing is said to a stranger");
    }
}

#[test]
fn a_certificate_of_an_authority_that_nobody_named_is_refused() {
    // Another's certificate is trusted, so that the system's store need not exist.
    Secure::new(Certificate::Good).is_refused(Certificate::SelfSigned.pem(), "UnknownIssuer");
}

#[test]
fn a_self_signed_certificate_is_refused() {
    Secure::new(Certificate::SelfSigned).is_refused(AUTHORITY, "UnknownIssuer");
}

#[test]
fn a_certificate_that_has_run_out_or_is_anothers_is_refused_whoever_issued_it() {
    Secure::new(Certificate::Expired).is_refused(AUTHORITY, "expired");
    Secure::new(Certificate::OtherName).is_refused(AUTHORITY, "not valid for name");
}

#[test]
fn an_authority_in_ssl_cert_file_is_trusted() {
    let secure = Secure::new(Certificate::Good);
    let (code, said) = secure.add(AUTHORITY);
    assert_eq!(code, Some(0), "{said}");
    let config = std::fs::read_to_string(secure.bed.config()).unwrap();
    assert!(config.contains(&secure.reference), "{config}");
    assert!(secure.registry.requests("/blobs/") > 0, "it came from there");
}

#[test]
fn a_daemon_that_was_told_of_an_authority_pulls_by_it() {
    let secure = Secure::new(Certificate::Good);
    let env = secure.env(AUTHORITY);
    let env: Vec<_> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let _daemon = secure.bed.daemon_with(&env);
    secure.bed.ok(&["worker", "add", &secure.reference]);
    secure.bed.wait_log("web", "ready\n");
}
