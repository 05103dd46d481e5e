//! The registry over TLS, as [`NAME`], which no DNS knows: clients reach it through a proxy, and this is that proxy too.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;

/// The name of the registry that it stands for.
pub(crate) const NAME: &str = "registry.test";
/// What a client of the proxy asks for.
const CONNECT: &[u8] = b"CONNECT registry.test:443 ";
/// The most bytes of its request.
const MAX_REQUEST_BYTES: usize = 4096;
/// Of the certificates below; `tls/make` made them.
const KEY: &[u8] = include_bytes!("tls/server.key");
/// The certificate of the authority that issued all of them but the self-signed one, PEM.
pub(crate) const AUTHORITY: &[u8] = include_bytes!("tls/authority.pem");

/// What the registry shows of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Certificate {
    /// Nothing is wrong with it, if its authority is trusted.
    Good,
    /// Issued by itself.
    SelfSigned,
    /// Ran out in 2020.
    Expired,
    /// For `other.test`.
    OtherName,
}

impl Certificate {
    /// As it is in a file.
    pub(crate) fn pem(self) -> &'static [u8] {
        match self {
            Certificate::Good => include_bytes!("tls/good.pem"),
            Certificate::SelfSigned => include_bytes!("tls/self-signed.pem"),
            Certificate::Expired => include_bytes!("tls/expired.pem"),
            Certificate::OtherName => include_bytes!("tls/other-name.pem"),
        }
    }
}

/// Takes connections like a proxy, then like the registry behind it.
pub(super) struct TlsListener {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
}

impl TlsListener {
    pub(super) fn new(tcp: TcpListener, certificate: Certificate) -> TlsListener {
        let chain = vec![CertificateDer::from_pem_slice(certificate.pem()).expect("a certificate")];
        let key = PrivateKeyDer::from_pem_slice(KEY).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
            .expect("a TLS server");
        TlsListener { tcp, acceptor: TlsAcceptor::from(Arc::new(config)) }
    }

    async fn shake_hands(&self, mut stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let mut request = Vec::new();
        // Byte by byte: what follows belongs to TLS.
        while !request.ends_with(b"\r\n\r\n") && request.len() < MAX_REQUEST_BYTES {
            request.push(stream.read_u8().await?);
        }
        if !request.starts_with(CONNECT) {
            stream.write_all(b"HTTP/1.1 502 Nobody of that name\r\nContent-Length: 0\r\n\r\n").await?;
            return Err(io::Error::other("asked for somebody else"));
        }
        stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await?;
        self.acceptor.accept(stream).await
    }
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            // Clients that do not trust us leave during the handshake.
            if let Ok((stream, address)) = self.tcp.accept().await
                && let Ok(stream) = self.shake_hands(stream).await
            {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}
