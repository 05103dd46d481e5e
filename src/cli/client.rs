//! Asks the daemon: HTTP/1.1 and JSON over its Unix socket, one connection per request.

use std::io;
use std::path::{Path, PathBuf};

use bytes::{Buf as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
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

/// The most headers of an answer that turns a connection into a session.
const MAX_HEADERS: usize = 32;

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

    /// The socket cannot be used for this reason.
    pub fn unreachable(&self, source: io::Error) -> ClientError {
        ClientError::Unreachable { path: self.socket.clone(), source }
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
            _ => self.unreachable(source),
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

    /// `POST` that turns the connection into one of `protocol`, whose first bytes go out right behind the request: the
    /// answer is not waited for.
    pub async fn upgrade(&self, path: &str, protocol: &str, first: &[u8]) -> Result<Upgraded, ClientError> {
        let stream = self.connect().await?;
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: iii\r\nContent-Length: 0\r\nConnection: upgrade\r\nUpgrade: {protocol}\r\n\r\n"
        );
        let mut unsent = BytesMut::from(head.as_bytes());
        unsent.extend_from_slice(first);
        match stream.try_write(&unsent) {
            Ok(written) => unsent.advance(written),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(gone(e)),
        }
        let mut received = BytesMut::new();
        let (status, body_bytes) = read_head(&stream, &mut unsent, &mut received).await?;
        match status {
            StatusCode::SWITCHING_PROTOCOLS => return Ok(Upgraded { stream, received, unsent }),
            status if status.is_success() => {
                return Err(ClientError::BadReply(format!("HTTP status {status}")));
            }
            _ => {}
        }
        while received.len() < body_bytes {
            read_more(&stream, &mut received).await?;
        }
        Err(refused(status, &received[..body_bytes]))
    }

    async fn ask(&self, request: Builder, body: Bytes) -> Result<Response<Incoming>, ClientError> {
        let stream = self.connect().await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(gone)?;
        // Ends with the response's body, or when that is dropped.
        tokio::spawn(connection);
        let request = request
            .header(HOST, "iii")
            .body(Full::new(body))
            .map_err(|e| ClientError::BadReply(format!("no such request: {e}")))?;
        sender.send_request(request).await.map_err(gone)
    }
}

/// A connection that is no HTTP any more.
#[derive(Debug)]
pub struct Upgraded {
    /// The connection.
    pub stream: UnixStream,
    /// What came behind the daemon's answer already.
    pub received: BytesMut,
    /// What is still to be sent, before anything else.
    pub unsent: BytesMut,
}

/// Reads the head of the answer and takes it off `received`: status, and length of the body. The rest of the request's head goes
/// out meanwhile; what comes behind that, only as far as it is taken at once.
async fn read_head(
    stream: &UnixStream,
    unsent: &mut BytesMut,
    received: &mut BytesMut,
) -> Result<(StatusCode, usize), ClientError> {
    loop {
        let ready = tokio::select! {
            read = read_more(stream, received) => read.map(|()| true),
            _ = stream.writable(), if !unsent.is_empty() => Ok(false),
        };
        if !ready? {
            match stream.try_write(unsent) {
                Ok(written) => unsent.advance(written),
                // The answer may be here all the same.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => unsent.clear(),
            }
            continue;
        }
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let head = response.parse(received).map_err(|e| ClientError::BadReply(e.to_string()))?;
        let httparse::Status::Complete(head_bytes) = head else { continue };
        let status = response.code.and_then(|code| StatusCode::from_u16(code).ok());
        let length =
            response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
        let body_bytes = match length.map(|header| std::str::from_utf8(header.value).map(str::parse)) {
            None => Some(0),
            Some(Ok(Ok(bytes))) if bytes <= MAX_REPLY_BYTES => Some(bytes),
            Some(_) => None,
        };
        let (Some(status), Some(body_bytes)) = (status, body_bytes) else {
            return Err(ClientError::BadReply("its head is none of ours".to_owned()));
        };
        received.advance(head_bytes);
        return Ok((status, body_bytes));
    }
}

/// Reads what comes next, at least something.
async fn read_more(stream: &UnixStream, received: &mut BytesMut) -> Result<(), ClientError> {
    loop {
        stream.readable().await.map_err(gone)?;
        if received.len() > MAX_REPLY_BYTES {
            return Err(ClientError::BadReply(format!("it is longer than {MAX_REPLY_BYTES} bytes")));
        }
        match stream.try_read_buf(received) {
            Ok(0) => return Err(gone("the connection was closed before the answer")),
            Ok(_) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(gone(e)),
        }
    }
}

async fn refusal(response: Response<Incoming>) -> ClientError {
    let status = response.status();
    match read_body(response).await {
        Ok(body) => refused(status, &body),
        Err(e) => e,
    }
}

fn refused(status: StatusCode, body: &[u8]) -> ClientError {
    match serde_json::from_slice(body) {
        Ok(error) => ClientError::Refused(error),
        Err(_) => ClientError::BadReply(format!("HTTP status {status}")),
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
