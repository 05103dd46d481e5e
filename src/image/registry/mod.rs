//! Speaking to a registry (distribution-spec): names become manifests, digests become files.
//!
//! `client` keeps the HTTP clients, `failure` turns what went wrong into an answer for the user and says
//! whether trying again may help, `retry` says when, `manifest` reads what comes back, `blobs` streams it
//! to disk. Requests, tokens and redirects are oci-client's.

mod blobs;
mod client;
mod config;
mod endpoint;
mod failure;
mod manifest;
mod retry;

use std::time::Duration;

use oci_client::client::BlobResponse;
use oci_client::manifest::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE,
};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference as OciReference, RegistryOperation};
use tokio::sync::OnceCell;

pub(super) use blobs::BlobStore;
pub(super) use client::Clients;
pub(super) use config::{ConfigFile, MAX_CONFIG_BYTES, parse_config};
pub(super) use endpoint::Endpoint;
pub use endpoint::RegistrySettings;
pub(super) use manifest::{Blob, ImageManifest, Platform};

use super::digest::Digest;
use super::error::ImageError;
use super::reference::Reference;
use failure::{Failure, Subject};
use manifest::Document;
use retry::Retries;

/// How an image index may point to another: more than this is no image but a puzzle.
const MAX_INDEX_DEPTH: usize = 3;
/// A manifest that takes longer is given up: it is a small document.
const MANIFEST_TIMEOUT: Duration = Duration::from_secs(60);
const ACCEPTED: &[&str] = &[
    OCI_IMAGE_INDEX_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE,
    IMAGE_MANIFEST_LIST_MEDIA_TYPE,
    IMAGE_MANIFEST_MEDIA_TYPE,
];

/// The bounds of a download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferLimits {
    /// Layers on the way at the same time.
    pub parallel_layers: usize,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// How long a connection may be silent.
    pub stall_timeout: Duration,
    /// Attempts after the first one that bring nothing, per manifest or blob.
    pub retries: u32,
    /// Before the first retry; doubled each time.
    pub first_delay: Duration,
    /// The cap of the delay.
    pub max_delay: Duration,
}

/// [`TransferLimits::parallel_layers`] by default.
pub const PARALLEL_LAYERS: usize = 4;
/// [`TransferLimits::connect_timeout`] by default.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// [`TransferLimits::stall_timeout`] by default.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// [`TransferLimits::retries`] by default.
pub const RETRIES: u32 = 4;
/// [`TransferLimits::first_delay`] by default.
pub const FIRST_DELAY: Duration = Duration::from_millis(200);
/// [`TransferLimits::max_delay`] by default.
pub const MAX_DELAY: Duration = Duration::from_secs(5);

impl Default for TransferLimits {
    fn default() -> TransferLimits {
        TransferLimits {
            parallel_layers: PARALLEL_LAYERS,
            connect_timeout: CONNECT_TIMEOUT,
            stall_timeout: STALL_TIMEOUT,
            retries: RETRIES,
            first_delay: FIRST_DELAY,
            max_delay: MAX_DELAY,
        }
    }
}

/// One repository of one registry, as seen by one pull.
pub(super) struct Remote<'a> {
    client: Client,
    reference: &'a Reference,
    /// Who is asked.
    endpoint: Endpoint,
    limits: &'a TransferLimits,
    /// Set once the registry was asked whether it wants a token.
    token: OnceCell<()>,
}

impl<'a> Remote<'a> {
    /// Nothing is sent yet.
    pub(super) async fn new(
        clients: &Clients,
        reference: &'a Reference,
        endpoint: Endpoint,
        limits: &'a TransferLimits,
    ) -> Result<Remote<'a>, ImageError> {
        let client = clients.get(reference, &endpoint, limits).await?;
        Ok(Remote { client, reference, endpoint, limits, token: OnceCell::new() })
    }

    /// The manifest of the image for `platform`, and its digest.
    pub(super) async fn resolve(&self, platform: &Platform) -> Result<(Digest, ImageManifest), ImageError> {
        let mut wanted = self.reference.wanted(&self.endpoint.host);
        for _ in 0..=MAX_INDEX_DEPTH {
            let (digest, body) = self.manifest(&wanted).await?;
            match manifest::parse(self.reference, &body)? {
                Document::Image(image) => return Ok((digest, image)),
                Document::Index(entries) => {
                    let chosen = platform.choose(&entries).ok_or_else(|| ImageError::Platform {
                        reference: self.reference.to_string(),
                        wanted: platform.to_string(),
                        available: manifest::platforms(&entries),
                    })?;
                    let digest = manifest::digest(self.reference, &chosen.digest)?;
                    wanted = self.reference.at(&self.endpoint.host, &digest);
                }
            }
        }
        Err(ImageError::Malformed {
            reference: self.reference.to_string(),
            reason: format!("image indexes point to each other more than {MAX_INDEX_DEPTH} deep"),
        })
    }

    async fn manifest(&self, wanted: &OciReference) -> Result<(Digest, Vec<u8>), ImageError> {
        let subject = self.subject(None);
        let mut retries = Retries::new(self.limits);
        loop {
            let asked = tokio::time::timeout(MANIFEST_TIMEOUT, self.ask_manifest(wanted, &subject)).await;
            match asked.unwrap_or_else(|_| Err(subject.timed_out())) {
                Ok(answer) => return Ok(answer),
                Err(failure) => retries.wait(failure).await?,
            }
        }
    }

    async fn ask_manifest(
        &self,
        wanted: &OciReference,
        subject: &Subject<'_>,
    ) -> Result<(Digest, Vec<u8>), Failure> {
        self.token.get_or_try_init(|| self.authenticate(subject)).await?;
        // A body that does not hash to the digest that was asked for is refused by the client.
        let (body, _) = self
            .client
            .pull_manifest_raw(wanted, &RegistryAuth::Anonymous, ACCEPTED)
            .await
            .map_err(|error| subject.classify(error))?;
        Ok((Digest::of(&body), body.to_vec()))
    }

    /// Gets a token if the registry wants one. oci-client would do it by itself but hide its failure.
    async fn authenticate(&self, subject: &Subject<'_>) -> Result<(), Failure> {
        self.client
            .auth(
                &self.reference.wanted(&self.endpoint.host),
                &RegistryAuth::Anonymous,
                RegistryOperation::Pull,
            )
            .await
            .map(drop)
            .map_err(|error| subject.classify(error))
    }

    /// Opens a blob at an offset; the answer may be the whole blob all the same.
    async fn open_blob(
        &self,
        blob: &Blob,
        offset: u64,
        subject: &Subject<'_>,
    ) -> Result<BlobResponse, Failure> {
        match self.ask_blob(blob, offset, subject).await {
            // The token may have run out on the way; a fresh one is tried once.
            Err(failure) if failure.is_unauthorized() => {
                self.authenticate(subject).await?;
                self.ask_blob(blob, offset, subject).await
            }
            answer => answer,
        }
    }

    async fn ask_blob(
        &self,
        blob: &Blob,
        offset: u64,
        subject: &Subject<'_>,
    ) -> Result<BlobResponse, Failure> {
        let repository = self.reference.at(&self.endpoint.host, &blob.digest);
        let digest = blob.digest.to_string();
        let answer = match offset {
            0 => self.client.pull_blob_stream(&repository, digest.as_str()).await.map(BlobResponse::Full),
            _ => self.client.pull_blob_stream_partial(&repository, digest.as_str(), offset, None).await,
        };
        answer.map_err(|error| subject.classify(error))
    }

    /// What errors are about: a blob by its `kind`, or the manifest.
    fn subject(&self, blob: Option<(&Blob, &str)>) -> Subject<'a> {
        Subject {
            reference: self.reference,
            host: self.endpoint.host.clone(),
            what: blob.map_or("the manifest".to_owned(), |(blob, kind)| format!("{kind} {}", blob.digest)),
            is_blob: blob.is_some(),
        }
    }
}

#[cfg(test)]
mod tests;
