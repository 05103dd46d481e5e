//! The HTTP side: `/v2/`, `/token`, manifests and blobs.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State as Shared};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use serde_json::json;
use tokio::sync::oneshot;

use super::tls::{Certificate, TlsListener};
use super::{Gate, State, digest};

/// Blobs go out in pieces, so that a broken connection has sent some of them.
const PIECE_BYTES: usize = 16 * 1024;

#[derive(Clone)]
struct Server {
    state: Arc<State>,
    address: SocketAddr,
}

pub(super) fn run(
    listener: TcpListener,
    certificate: Option<Certificate>,
    address: SocketAddr,
    state: Arc<State>,
    stopped: oneshot::Receiver<()>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async move {
        let listener = tokio::net::TcpListener::from_std(listener).expect("listener");
        let app = Router::new().fallback(answer).with_state(Server { state, address });
        let serve = async {
            match certificate {
                None => axum::serve(listener, app).await,
                Some(certificate) => axum::serve(TlsListener::new(listener, certificate), app).await,
            }
        };
        tokio::select! {
            served = serve => served.expect("serve"),
            _ = stopped => {}
        }
    });
}

async fn answer(Shared(server): Shared<Server>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let status = {
        let mut inner = server.state.lock();
        *inner.requests.entry(path.clone()).or_default() += 1;
        match inner.statuses.get_mut(&path) {
            Some(statuses) if !statuses.is_empty() => Some(statuses.remove(0)),
            _ => None,
        }
    };
    if let Some(status) = status {
        return (StatusCode::from_u16(status).expect("a status"), "told to fail").into_response();
    }
    if path == "/token" {
        return server.token(request.uri().query().unwrap_or_default());
    }
    if !server.may_enter(request.headers()) {
        return server.challenge();
    }
    if path == "/v2/" {
        return "{}".into_response();
    }
    let Some(rest) = path.strip_prefix("/v2/") else { return missing("NAME_UNKNOWN") };
    if let Some((repository, name)) = rest.rsplit_once("/manifests/") {
        return server.manifest(repository, name);
    }
    match rest.rsplit_once("/blobs/") {
        Some((_, digest)) => server.blob(digest, request.headers()).await,
        None => missing("NAME_UNKNOWN"),
    }
}

fn token(generation: usize) -> String {
    format!("token-{generation}-for-anybody")
}

fn missing(code: &str) -> Response {
    error(StatusCode::NOT_FOUND, code)
}

fn error(status: StatusCode, code: &str) -> Response {
    (status, json!({"errors": [{"code": code, "message": "from the test registry"}]}).to_string())
        .into_response()
}

impl Server {
    fn may_enter(&self, headers: &HeaderMap) -> bool {
        let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let inner = self.state.lock();
        !inner.needs_token || shown == Some(&format!("Bearer {}", token(inner.token_generation)))
    }

    fn challenge(&self) -> Response {
        let challenge = format!(r#"Bearer realm="http://{}/token",service="test""#, self.address);
        let mut response = error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge.parse().expect("a header"));
        response
    }

    fn token(&self, query: &str) -> Response {
        let mut inner = self.state.lock();
        if inner.refuses_tokens || !query.contains("scope=repository%3A") {
            return error(StatusCode::FORBIDDEN, "DENIED");
        }
        inner.tokens_issued += 1;
        json!({"token": token(inner.token_generation), "expires_in": 300}).to_string().into_response()
    }

    fn manifest(&self, repository: &str, name: &str) -> Response {
        let inner = self.state.lock();
        match inner.manifests.get(&(repository.to_owned(), name.to_owned())) {
            Some((media_type, body)) => {
                let digest = digest(body);
                let headers = [
                    (header::CONTENT_TYPE.as_str(), media_type.as_str()),
                    ("docker-content-digest", &digest),
                ];
                (headers, body.clone()).into_response()
            }
            None => missing("MANIFEST_UNKNOWN"),
        }
    }

    async fn blob(&self, digest: &str, headers: &HeaderMap) -> Response {
        let (bytes, breaks_at, gate, gate_after, ignores_range) = {
            let mut inner = self.state.lock();
            let misbehaviour = inner.misbehaviour.entry(digest.to_owned()).or_default();
            let breaks_at = (!misbehaviour.breaks.is_empty()).then(|| misbehaviour.breaks.remove(0));
            let (gate, gate_after) = (misbehaviour.gate.clone(), misbehaviour.gate_after);
            let replaced = misbehaviour.replaced.clone();
            let Some(bytes) = replaced.or_else(|| inner.blobs.get(digest).cloned()) else {
                return missing("BLOB_UNKNOWN");
            };
            (bytes, breaks_at, gate, gate_after, inner.ignores_range)
        };
        if let (Some(gate), None) = (&gate, gate_after) {
            gate.pass().await;
        }
        let offset = range_start(headers).filter(|_| !ignores_range);
        self.state.lock().offsets.entry(digest.to_owned()).or_default().push(offset.unwrap_or(0));
        let total = bytes.len();
        let body = bytes.get(offset.unwrap_or(0)..).map(<[u8]>::to_vec);
        let Some(body) = body.filter(|body| offset.is_none() || !body.is_empty()) else {
            return StatusCode::RANGE_NOT_SATISFIABLE.into_response();
        };
        let response = Response::builder().header(header::CONTENT_LENGTH, body.len());
        let response = match offset {
            Some(offset) => response
                .status(StatusCode::PARTIAL_CONTENT)
                .header(header::CONTENT_RANGE, format!("bytes {offset}-{}/{total}", total - 1)),
            None => response,
        };
        let gate = gate.filter(|_| gate_after.is_some()).zip(gate_after);
        let body =
            Sending { state: self.state.clone(), digest: digest.to_owned(), body, sent: 0, breaks_at, gate };
        response.body(body.into_body()).expect("a response")
    }
}

fn range_start(headers: &HeaderMap) -> Option<usize> {
    let range = headers.get(header::RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

/// A body on its way out.
struct Sending {
    state: Arc<State>,
    digest: String,
    body: Vec<u8>,
    sent: usize,
    breaks_at: Option<usize>,
    gate: Option<(Gate, usize)>,
}

impl Sending {
    fn into_body(self) -> Body {
        Body::from_stream(stream::unfold(self, |mut sending| async move {
            let piece = sending.next().await?;
            Some((piece, sending))
        }))
    }

    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        if self.breaks_at == Some(self.sent) {
            // Gives the server time to send what it has, so that the break is where it was asked for.
            tokio::task::yield_now().await;
            return Some(Err(io::Error::other("told to break")));
        }
        if let Some((gate, _)) = self.gate.take_if(|(_, after)| *after == self.sent) {
            gate.pass().await;
        }
        let stop = self.breaks_at.into_iter().chain(self.gate.as_ref().map(|(_, after)| *after)).min();
        let end = self.body.len().min(self.sent + PIECE_BYTES).min(stop.unwrap_or(usize::MAX).max(self.sent));
        if end == self.sent {
            return None;
        }
        let piece = Bytes::copy_from_slice(&self.body[self.sent..end]);
        self.sent = end;
        *self.state.lock().bytes_served.entry(self.digest.clone()).or_default() += piece.len() as u64;
        Some(Ok(piece))
    }
}
