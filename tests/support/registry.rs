//! An OCI registry in this process, on loopback, that can be told to misbehave.
//!
//! It runs on a thread and runtime of its own, so blocking tests and tests with a runtime use it alike.
//! Manifests and blobs are kept in memory; every request is counted. Nothing here ever sleeps: a slow blob
//! waits at a [`Gate`] until the test opens it.

mod images;
mod server;
pub(crate) mod tls;

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::sync::{Semaphore, oneshot};

pub(crate) use images::{
    Packing, TestImage, TestLayer, Tree, docker_media_types, host_architecture, image, image_for, index,
    layer, layer_of, manifest_media_type,
};

/// Long enough for a loaded machine; only a test that fails takes it.
const PATIENCE: Duration = Duration::from_secs(20);

/// `sha256:<hex>` of bytes.
pub(crate) fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Bytes that do not compress and are the same in every run.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// A running registry; it ends when dropped.
pub(crate) struct Registry {
    address: SocketAddr,
    state: Arc<State>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Holds the answers to requests for one blob back.
#[derive(Clone)]
pub(crate) struct Gate {
    arrived: Arc<Semaphore>,
    opened: Arc<Semaphore>,
}

impl Gate {
    fn new() -> Gate {
        Gate { arrived: Arc::new(Semaphore::new(0)), opened: Arc::new(Semaphore::new(0)) }
    }

    /// Waits until a request is at the gate. Each request is reported once.
    pub(crate) async fn arrived(&self) {
        let arrived = tokio::time::timeout(PATIENCE, self.arrived.acquire()).await;
        arrived.expect("nobody comes to the gate").expect("gates are never closed").forget();
    }

    /// Lets every request through, those that come later too.
    pub(crate) fn open(&self) {
        self.opened.add_permits(1);
    }

    async fn pass(&self) {
        self.arrived.add_permits(1);
        // The permit goes back at once: an open gate stays open.
        drop(self.opened.acquire().await.expect("gates are never closed"));
    }
}

/// How a blob is served wrongly.
#[derive(Clone, Default)]
struct Misbehaviour {
    /// Remaining connections that break, each after so many bytes of its body.
    breaks: Vec<usize>,
    gate: Option<Gate>,
    /// After these many bytes of the body, wait at the gate instead of before the head.
    gate_after: Option<usize>,
    /// Served instead of the real bytes.
    replaced: Option<Vec<u8>>,
}

#[derive(Default)]
struct Inner {
    /// `repository` and tag or digest to media type and bytes.
    manifests: HashMap<(String, String), (String, Vec<u8>)>,
    blobs: HashMap<String, Vec<u8>>,
    misbehaviour: HashMap<String, Misbehaviour>,
    /// Path to statuses that are answered instead, first to last.
    statuses: HashMap<String, Vec<u16>>,
    requests: HashMap<String, usize>,
    bytes_served: HashMap<String, u64>,
    /// Where each request for a blob began.
    offsets: HashMap<String, Vec<usize>>,
    needs_token: bool,
    /// Tokens of an earlier generation are refused.
    token_generation: usize,
    tokens_issued: usize,
    ignores_range: bool,
    refuses_tokens: bool,
}

#[derive(Default)]
struct State {
    inner: Mutex<Inner>,
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Registry {
    /// Starts an empty registry on a free port of 127.0.0.1.
    pub(crate) fn start() -> Registry {
        Registry::start_as(None)
    }

    /// Likewise, but it speaks TLS as [`tls::NAME`], and is reached through the proxy at its address (`HTTPS_PROXY`).
    pub(crate) fn start_tls(certificate: tls::Certificate) -> Registry {
        Registry::start_as(Some(certificate))
    }

    fn start_as(certificate: Option<tls::Certificate>) -> Registry {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind loopback");
        listener.set_nonblocking(true).expect("non-blocking listener");
        let address = listener.local_addr().expect("local address");
        let state = Arc::new(State::default());
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("test-registry".into()).spawn({
            let state = state.clone();
            move || server::run(listener, certificate, address, state, stopped)
        });
        Registry { address, state, stop: Some(stop), thread: Some(thread.expect("start a thread")) }
    }

    /// `127.0.0.1:<port>`.
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// `127.0.0.1:<port>/<rest>`.
    pub(crate) fn reference(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    /// Puts an image under a tag; says the manifest's digest.
    pub(crate) fn push(&self, repository: &str, tag: &str, image: &TestImage) -> String {
        self.push_blobs(image);
        self.push_manifest(repository, tag, &image.media_type, image.manifest.clone())
    }

    /// Puts images and an index over them under a tag; says the index's digest. Platforms are
    /// `linux/amd64` or `linux/arm64/v8`.
    pub(crate) fn push_index(&self, repository: &str, tag: &str, images: &[(&str, &TestImage)]) -> String {
        for (_, image) in images {
            let digest = digest(&image.manifest);
            self.push(repository, &digest, image);
        }
        let (media_type, body) = index(images);
        self.push_manifest(repository, tag, &media_type, body)
    }

    /// Puts any document under a tag and under its digest.
    pub(crate) fn push_manifest(
        &self,
        repository: &str,
        tag: &str,
        media_type: &str,
        body: Vec<u8>,
    ) -> String {
        let digest = digest(&body);
        let mut inner = self.state.lock();
        for name in [tag, &digest] {
            let key = (repository.to_owned(), name.to_owned());
            inner.manifests.insert(key, (media_type.to_owned(), body.clone()));
        }
        digest
    }

    /// Puts the config and layers of an image.
    pub(crate) fn push_blobs(&self, image: &TestImage) {
        let mut inner = self.state.lock();
        inner.blobs.insert(digest(&image.config), image.config.clone());
        for layer in &image.layers {
            inner.blobs.insert(layer.digest(), layer.blob.clone());
        }
    }

    /// Puts all that an OCI layout folder holds, its index's only manifest under a tag.
    pub(crate) fn load_oci_layout(&self, folder: &std::path::Path, repository: &str, tag: &str) {
        let read = |path: std::path::PathBuf| {
            std::fs::read(&path)
                .unwrap_or_else(|e| panic!("{}: {e} (run scripts/make-images)", path.display()))
        };
        let index: serde_json::Value = serde_json::from_slice(&read(folder.join("index.json"))).unwrap();
        let [descriptor] = index["manifests"].as_array().unwrap().as_slice() else {
            panic!("{} holds more than one image", folder.display());
        };
        let blobs = folder.join("blobs/sha256");
        for blob in std::fs::read_dir(&blobs).unwrap() {
            let bytes = read(blob.unwrap().path());
            self.state.lock().blobs.insert(digest(&bytes), bytes);
        }
        let manifest = descriptor["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
        let media_type = descriptor["mediaType"].as_str().unwrap();
        self.push_manifest(repository, tag, media_type, read(blobs.join(manifest)));
    }

    /// From now on every request needs a bearer token, which anybody gets from `/token`.
    pub(crate) fn require_token(&self) {
        self.state.lock().needs_token = true;
    }

    /// Refuses the tokens given out so far; new ones are good.
    pub(crate) fn revoke_tokens(&self) {
        self.state.lock().token_generation += 1;
    }

    /// From now on nobody gets a token.
    pub(crate) fn refuse_tokens(&self) {
        let mut inner = self.state.lock();
        inner.needs_token = true;
        inner.refuses_tokens = true;
    }

    /// Answers Range requests with the whole blob.
    pub(crate) fn ignore_range(&self) {
        self.state.lock().ignores_range = true;
    }

    /// The next connections for a blob break after so many bytes of their body, one entry each.
    pub(crate) fn break_after(&self, digest: &str, bytes: &[usize]) {
        self.state.lock().misbehaviour.entry(digest.to_owned()).or_default().breaks = bytes.to_vec();
    }

    /// Requests for a blob wait at the gate before they are answered.
    pub(crate) fn gate(&self, digest: &str) -> Gate {
        let gate = Gate::new();
        self.state.lock().misbehaviour.entry(digest.to_owned()).or_default().gate = Some(gate.clone());
        gate
    }

    /// Requests for a blob get so many bytes of the body, then wait at the gate.
    pub(crate) fn gate_after(&self, digest: &str, bytes: usize) -> Gate {
        let gate = self.gate(digest);
        self.state.lock().misbehaviour.entry(digest.to_owned()).or_default().gate_after = Some(bytes);
        gate
    }

    /// Serves other bytes under a digest; `None` serves the right ones again.
    pub(crate) fn replace_blob(&self, digest: &str, bytes: Option<Vec<u8>>) {
        self.state.lock().misbehaviour.entry(digest.to_owned()).or_default().replaced = bytes;
    }

    /// Forgets a blob.
    pub(crate) fn remove_blob(&self, digest: &str) {
        self.state.lock().blobs.remove(digest);
    }

    /// Answers the next requests for a path (`/v2/<repository>/manifests/<tag>`...) with these statuses.
    pub(crate) fn fail_next(&self, path: &str, statuses: &[u16]) {
        self.state.lock().statuses.insert(path.to_owned(), statuses.to_vec());
    }

    /// How many requests came for paths that contain a text.
    pub(crate) fn requests(&self, part: &str) -> usize {
        self.state.lock().requests.iter().filter(|(path, _)| path.contains(part)).map(|(_, n)| n).sum()
    }

    /// How many bytes of a blob were sent, all connections together.
    pub(crate) fn bytes_served(&self, digest: &str) -> u64 {
        self.state.lock().bytes_served.get(digest).copied().unwrap_or(0)
    }

    /// The first byte of each request for a blob, in order.
    pub(crate) fn offsets(&self, digest: &str) -> Vec<usize> {
        self.state.lock().offsets.get(digest).cloned().unwrap_or_default()
    }

    /// How many tokens were given out.
    pub(crate) fn tokens_issued(&self) -> usize {
        self.state.lock().tokens_issued
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A registry that panicked has made its test fail already.
            let _ = thread.join();
        }
    }
}
