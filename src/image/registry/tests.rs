//! Failures of connections, which need a registry that is not on loopback or not a registry at all. The
//! client is told not to treat loopback as plain http.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use super::*;

/// Answers one connection with some bytes; says where.
fn answering(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let mut connection = connection;
            let _ = connection.read(&mut [0; 1024]);
            let _ = connection.write_all(answer);
        }
    });
    address.to_string()
}

async fn resolve(registry: &str, plain_http: bool) -> ImageError {
    let reference: Reference = format!("{registry}/x:1").parse().unwrap();
    let limits = TransferLimits { retries: 0, ..TransferLimits::default() };
    let endpoint = Endpoint { host: registry.to_owned(), plain_http };
    let remote = Remote::new(&Clients::default(), &reference, endpoint, &limits).await.unwrap();
    remote.resolve(&Platform::host()).await.unwrap_err()
}

#[tokio::test]
async fn https_to_a_plain_http_registry_says_how_to_allow_it() {
    let registry =
        answering(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.");
    let error = resolve(&registry, false).await;
    assert!(matches!(error, ImageError::Tls { plain: true, .. }), "{error:?}");
    assert!(error.hint().unwrap().contains("insecure_registries:"));
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_named() {
    let error = resolve("registry.invalid", false).await;
    assert!(matches!(error, ImageError::Dns { .. }), "{error:?}");
    assert!(error.to_string().contains("registry.invalid"), "{error}");
}

#[tokio::test]
async fn a_port_nobody_listens_at_is_refused() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for plain_http in [true, false] {
        let error = resolve(&address.to_string(), plain_http).await;
        assert!(matches!(error, ImageError::Refused { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_manifest_that_is_no_json_is_malformed() {
    let registry = answering(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 6\r\n\r\n<html>");
    let error = resolve(&registry, true).await;
    assert!(matches!(error, ImageError::Malformed { .. }), "{error:?}");
}
