//! Asks the daemon: HTTP/1.1 and JSON over its Unix socket, one connection per request.

use std::io;
use std::path::{Path, PathBuf};

use bytes::{Buf as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use hyper::http::request::Builder;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use iii_protocol::api::{ErrorBody, LogsQuery};
use iii_protocol::log::LogRecord;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::exit::Failure;

/// The largest reply that is not a stream.
pub const MAX_REPLY_BYTES: usize = 16 * 1024 * 1024;
/// The longest line of a stream.
pub const MAX_LINE_BYTES: usize = 1024 * 1024;

/// Where the daemon of a project answers, if it runs.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on the socket.
    #[error("no daemon is running")]
    NoDaemon,
    /// The daemon answered with an error.
    #[error("{}", .0.message)]
    Refused(ErrorBody),
    /// It was there, and went away before the answer was whole.
    #[error("the daemon went away: {0}")]
    Gone(String),
    /// The socket cannot be used.
    #[error("cannot reach the daemon at {}: {source}", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The answer is none we know.
    #[error("the daemon's answer cannot be read: {0}")]
    BadReply(String),
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        let message = error.to_string();
        match error {
            ClientError::Refused(body) => body.into(),
            ClientError::NoDaemon => Failure::failed(message).hint("start it with `iii`"),
            ClientError::Gone(_) => {
                Failure::failed(message).hint("start it again with `iii`; it takes over what still runs")
            }
            ClientError::Unreachable { .. } => Failure::failed(message),
            ClientError::BadReply(_) => Failure::failed(message)
                .hint("the daemon may be of another version than this command: restart `iii`"),
        }
    }
}

impl Client {
    /// A client for the daemon that listens on `socket`; connects with each request.
    pub fn new(socket: &Path) -> Client {
        Client { socket: socket.to_owned() }
    }

    /// Whether somebody listens.
    pub async fn is_daemon_running(&self) -> Result<bool, ClientError> {
        match self.connect().await {
            Ok(_) => Ok(true),
            Err(ClientError::NoDaemon) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// `GET`, one JSON value back.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        read_json(self.send(Method::GET, path, None).await?).await
    }

    /// `POST` of a JSON body, one JSON value back.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        read_json(self.send(Method::POST, path, Some(to_json(body)?)).await?).await
    }

    /// `GET`, a stream of lines back.
    pub async fn get_lines(&self, path: &str) -> Result<Lines, ClientError> {
        Ok(Lines::new(self.send(Method::GET, path, None).await?))
    }

    /// `POST` of a JSON body, a stream of lines back.
    pub async fn post_lines(&self, path: &str, body: &impl Serialize) -> Result<Lines, ClientError> {
        Ok(Lines::new(self.send(Method::POST, path, Some(to_json(body)?)).await?))
    }

    async fn connect(&self) -> Result<UnixStream, ClientError> {
        UnixStream::connect(&self.socket).await.map_err(|source| match source.kind() {
            // No socket, or one that a killed daemon left.
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NoDaemon,
            // It ended while we stood in line.
            io::ErrorKind::ConnectionReset => ClientError::Gone(source.to_string()),
            _ => ClientError::Unreachable { path: self.socket.clone(), source },
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<Response<Incoming>, ClientError> {
        let request = Request::builder().method(method).uri(path).header(CONTENT_TYPE, "application/json");
        let response = self.ask(request, body.unwrap_or_default()).await?;
        if response.status().is_success() { Ok(response) } else { Err(refusal(response).await) }
    }

    /// `POST` that turns the connection into one of `protocol`. With it comes what was received behind the
    /// daemon's answer already.
    pub async fn upgrade(&self, path: &str, protocol: &str) -> Result<(UnixStream, Bytes), ClientError> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, protocol);
        let response = self.ask(request, Bytes::new()).await?;
        match response.status() {
            StatusCode::SWITCHING_PROTOCOLS => {}
            status if status.is_success() => {
                return Err(ClientError::BadReply(format!("HTTP status {status}")));
            }
            _ => return Err(refusal(response).await),
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(gone)?;
        let parts = upgraded
            .downcast::<TokioIo<UnixStream>>()
            .map_err(|_| ClientError::BadReply("the connection is none of ours".to_owned()))?;
        Ok((parts.io.into_inner(), parts.read_buf))
    }

    async fn ask(&self, request: Builder, body: Bytes) -> Result<Response<Incoming>, ClientError> {
        let stream = self.connect().await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(gone)?;
        // Ends with the response's body, or when that is dropped.
        tokio::spawn(connection.with_upgrades());
        let request = request
            .header(HOST, "iii")
            .body(Full::new(body))
            .map_err(|e| ClientError::BadReply(format!("no such request: {e}")))?;
        sender.send_request(request).await.map_err(gone)
    }
}

async fn refusal(response: Response<Incoming>) -> ClientError {
    let status = response.status();
    match read_body(response).await.map(|body| serde_json::from_slice(&body)) {
        Ok(Ok(error)) => ClientError::Refused(error),
        Ok(Err(_)) => ClientError::BadReply(format!("HTTP status {status}")),
        Err(e) => e,
    }
}

fn gone(error: impl std::fmt::Display) -> ClientError {
    ClientError::Gone(error.to_string())
}

fn to_json(body: &impl Serialize) -> Result<Bytes, ClientError> {
    serde_json::to_vec(body).map(Bytes::from).map_err(|e| ClientError::BadReply(e.to_string()))
}

async fn read_body(response: Response<Incoming>) -> Result<Bytes, ClientError> {
    match Limited::new(response.into_body(), MAX_REPLY_BYTES).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(e) if e.is::<LengthLimitError>() => {
            Err(ClientError::BadReply(format!("it is longer than {MAX_REPLY_BYTES} bytes")))
        }
        Err(e) => Err(gone(e)),
    }
}

async fn read_json<T: DeserializeOwned>(response: Response<Incoming>) -> Result<T, ClientError> {
    parse(&read_body(response).await?)
}

fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(json).map_err(|e| ClientError::BadReply(e.to_string()))
}

/// A reply that comes line by line.
#[derive(Debug)]
pub struct Lines {
    body: Incoming,
    waiting: BytesMut,
}

impl Lines {
    fn new(response: Response<Incoming>) -> Lines {
        Lines { body: response.into_body(), waiting: BytesMut::new() }
    }

    /// The next line without its newline; `None` is the orderly end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.waiting[searched..].iter().position(|&byte| byte == b'\n') {
                let line = self.waiting.split_to(searched + at).freeze();
                self.waiting.advance(1);
                return Ok(Some(line));
            }
            searched = self.waiting.len();
            if searched > MAX_LINE_BYTES {
                return Err(ClientError::BadReply(format!("a line is longer than {MAX_LINE_BYTES} bytes")));
            }
            match self.body.frame().await {
                None if self.waiting.is_empty() => return Ok(None),
                None => return Err(gone("the last line is not whole")),
                Some(frame) => {
                    if let Ok(data) = frame.map_err(gone)?.into_data() {
                        self.waiting.extend_from_slice(&data);
                    }
                }
            }
        }
    }

    /// Whether the next line is here already.
    pub fn has_line(&self) -> bool {
        self.waiting.contains(&b'\n')
    }

    /// Like [`Lines::next`], as JSON.
    pub async fn next_json<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        self.next().await?.map(|line| parse(&line)).transpose()
    }

    /// Like [`Lines::next`], as a log record.
    pub async fn next_record(&mut self) -> Result<Option<LogRecord>, ClientError> {
        let Some(line) = self.next().await? else { return Ok(None) };
        LogRecord::from_line(&line).map(Some).map_err(|e| ClientError::BadReply(e.to_string()))
    }
}

/// The path of one worker's route.
pub fn worker_path(name: &str, route: &str) -> String {
    let mut path = String::from("/v1/workers/");
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-' => path.push(char::from(byte)),
            // Not a worker's name, but the daemon should be the one to say so.
            _ => path.push_str(&format!("%{byte:02X}")),
        }
    }
    if !route.is_empty() {
        path.push('/');
        path.push_str(route);
    }
    path
}

/// The path of a log query.
pub fn logs_path(name: &str, query: &LogsQuery) -> String {
    let mut parts = vec![format!("follow={}", query.follow), format!("previous={}", query.previous)];
    parts.extend(query.tail.map(|tail| format!("tail={tail}")));
    parts.extend(query.events.then(|| "events=true".to_owned()));
    // A timestamp is digits, `-`, `:`, `.`, `T` and `Z`: all of them may stand in a query.
    parts.extend(query.since.map(|since| format!("since={since}")));
    format!("{}?{}", worker_path(name, "logs"), parts.join("&"))
}
