//! HTTP request to actor message to reply; the table is in [`iii_protocol::api`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::stream;
use iii_protocol::api::{
    DaemonInfo, ErrorBody, ErrorCode, LogsQuery, PullEvent, PullRequest, ReloadReply, StopRequest,
    WorkerList, WorkerStatus, WorkerType,
};
use ractor::rpc::CallResult;
use ractor::{ActorRef, RpcReplyPort};
use tokio::sync::{mpsc, watch};

use super::logs::LogSource;
use super::reply::{ApiError, body_or_default, json_line, ndjson, parse_body};
use super::server::closed;
use super::sessions::{self, Sessions};
use crate::actors::messages::{SupervisorMsg, WorkerView};
use crate::actors::worker::developers::Developer;
use crate::home::{Home, ProjectId};

/// The largest request body. Every one the API knows is far smaller.
pub const MAX_BODY_BYTES: usize = 64 * 1024;
/// How long the root supervisor may take for an answer. It never waits for the outside, so that this is
/// only reached when it is stuck.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How many events of a pull may wait for a slow client before progress is skipped.
pub const PULL_QUEUE: usize = 64;

/// What the routes work with.
#[derive(Debug)]
pub struct Edge {
    /// The root of the supervisor tree.
    pub supervisor: ActorRef<SupervisorMsg>,
    /// Who we are.
    pub info: DaemonInfo,
    /// Where the machines' sockets are.
    pub home: Home,
    /// Whose machines.
    pub project: ProjectId,
    /// What the sessions share.
    pub sessions: Sessions,
    /// True once the supervisor tree has ended: open streams come to their end.
    pub closing: watch::Receiver<bool>,
}

type Ctx = State<Arc<Edge>>;
type Reply<T> = Result<Json<T>, ApiError>;
type Name = Result<Path<String>, PathRejection>;
type Body = Result<Bytes, BytesRejection>;

/// All routes.
pub fn router(edge: Arc<Edge>) -> Router {
    Router::new()
        .route("/v1/daemon", get(daemon))
        .route("/v1/workers", get(list))
        .route("/v1/workers/{name}", get(status))
        .route("/v1/workers/{name}/watch", get(watch_worker))
        .route("/v1/workers/{name}/develop", post(develop))
        .route("/v1/workers/{name}/start", post(start))
        .route("/v1/workers/{name}/stop", post(stop))
        .route("/v1/workers/{name}/restart", post(restart))
        .route("/v1/workers/{name}/logs", get(logs))
        .route("/v1/workers/{name}/session", post(session))
        .route("/v1/images/pull", post(pull))
        .route("/v1/reload", post(reload))
        .fallback(no_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(edge)
}

impl Edge {
    /// Asks the root and waits for its answer.
    pub async fn call<T: Send + 'static>(
        &self,
        message: impl FnOnce(RpcReplyPort<T>) -> SupervisorMsg,
    ) -> Result<T, ErrorBody> {
        let error = match self.supervisor.call(message, Some(CALL_TIMEOUT)).await {
            Ok(CallResult::Success(value)) => return Ok(value),
            Ok(CallResult::Timeout) => {
                ApiError::internal(format!("the supervisor did not answer within {CALL_TIMEOUT:?}"))
            }
            // The root is gone, or went while it had the question: it only ever ends with the daemon.
            Ok(CallResult::SenderError) | Err(_) => ApiError::shutting_down(),
        };
        Err(error.0)
    }

    pub(super) async fn view(&self, name: &str) -> Result<WorkerView, ErrorBody> {
        self.call(|reply| SupervisorMsg::View { name: name.to_owned(), reply }).await?
    }
}

async fn daemon(State(edge): Ctx) -> Json<DaemonInfo> {
    Json(edge.info.clone())
}

async fn list(State(edge): Ctx) -> Reply<WorkerList> {
    Ok(Json(edge.call(|reply| SupervisorMsg::List { reply }).await?))
}

async fn status(State(edge): Ctx, name: Name) -> Reply<WorkerStatus> {
    let view = edge.view(&path(name)?).await?;
    let status = view.status.borrow().clone();
    Ok(Json(status))
}

async fn start(State(edge): Ctx, name: Name) -> Reply<WorkerStatus> {
    let name = path(name)?;
    Ok(Json(edge.call(|reply| SupervisorMsg::Start { name, reply }).await??))
}

async fn stop(State(edge): Ctx, name: Name, body: Body) -> Reply<WorkerStatus> {
    let name = path(name)?;
    let StopRequest { grace_ms } = body_or_default(&bytes(body)?)?;
    Ok(Json(edge.call(|reply| SupervisorMsg::Stop { name, grace_ms, reply }).await??))
}

async fn restart(State(edge): Ctx, name: Name, body: Body) -> Reply<WorkerStatus> {
    let name = path(name)?;
    let StopRequest { grace_ms } = body_or_default(&bytes(body)?)?;
    Ok(Json(edge.call(|reply| SupervisorMsg::Restart { name, grace_ms, reply }).await??))
}

async fn reload(State(edge): Ctx) -> Reply<ReloadReply> {
    Ok(Json(edge.call(|reply| SupervisorMsg::Reload { reply }).await??))
}

async fn logs(
    State(edge): Ctx,
    name: Name,
    query: Result<Query<LogsQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let name = path(name)?;
    let Query(query) = query.map_err(|e| ApiError::bad_request(e.body_text()))?;
    if query.follow && query.previous {
        return Err(ApiError::bad_request("`follow` and `previous` exclude each other: the past is over"));
    }
    let view = edge.view(&name).await?;
    let dir = PathBuf::from(&view.status.borrow().log_dir);
    let source = LogSource::open(view, dir, &query)
        .await
        .map_err(|e| ApiError::internal(format!("the log files of `{name}` cannot be read: {e}")))?;
    Ok(ndjson(source.into_stream(name, edge)))
}

async fn session(State(edge): Ctx, name: Name, request: Request) -> Result<Response, ApiError> {
    sessions::open(&edge, &path(name)?, request).await
}

async fn watch_worker(State(edge): Ctx, name: Name) -> Result<Response, ApiError> {
    let name = path(name)?;
    let view = edge.view(&name).await?;
    Ok(Watcher::new(edge, name, view.status, None).into_response())
}

/// The same, and the worker's project is followed for as long as the stream is read.
async fn develop(State(edge): Ctx, name: Name) -> Result<Response, ApiError> {
    let name = path(name)?;
    let view = edge.view(&name).await?;
    if view.status.borrow().worker_type != WorkerType::Local {
        return Err(ApiError(ErrorBody {
            code: ErrorCode::Conflict,
            message: format!("`{name}` is no local project: it has no files to follow"),
            hint: Some("`iii worker add ./my-project` adds one".to_owned()),
        }));
    }
    let as_one = view.developers.join();
    Ok(Watcher::new(edge, name, view.status, Some(as_one)).into_response())
}

/// One client's view of one worker. A `watch` channel keeps the newest status only: whoever reads
/// slowly skips states in between, and nothing piles up.
struct Watcher {
    edge: Arc<Edge>,
    name: String,
    status: watch::Receiver<WorkerStatus>,
    closing: watch::Receiver<bool>,
    fresh: bool,
    /// Held by one who works on the project.
    as_one: Option<Developer>,
}

impl Watcher {
    fn new(
        edge: Arc<Edge>,
        name: String,
        status: watch::Receiver<WorkerStatus>,
        as_one: Option<Developer>,
    ) -> Watcher {
        Watcher { closing: edge.closing.clone(), edge, name, status, fresh: true, as_one }
    }

    fn into_response(self) -> Response {
        ndjson(stream::unfold(self, |mut watcher| async move {
            let line = watcher.next().await?;
            Some((Ok(line), watcher))
        }))
    }

    async fn next(&mut self) -> Option<Bytes> {
        if !std::mem::take(&mut self.fresh) {
            let changed = tokio::select! {
                changed = self.status.changed() => changed.is_ok(),
                () = closed(&mut self.closing) => return None,
            };
            if !changed {
                // The worker's actor is gone: removed, or replaced after a defect of ours.
                let view = self.edge.view(&self.name).await.ok()?;
                self.status = view.status;
                self.status.has_changed().ok()?;
                self.as_one = self.as_one.take().map(|_| view.developers.join());
            }
        }
        let line = json_line(&*self.status.borrow_and_update());
        Some(line)
    }
}

async fn pull(State(edge): Ctx, body: Body) -> Result<Response, ApiError> {
    let request: PullRequest = parse_body(&bytes(body)?)?;
    let (events, receiver) = mpsc::channel(PULL_QUEUE);
    edge.supervisor.cast(SupervisorMsg::Pull { request, events }).map_err(|_| ApiError::shutting_down())?;
    let closing = edge.closing.clone();
    let start = Some((receiver, closing));
    Ok(ndjson(stream::unfold(start, |state| async move {
        let (mut receiver, mut closing) = state?;
        let event = tokio::select! {
            biased;
            event = receiver.recv() => event.unwrap_or_else(|| {
                PullEvent::Failed { error: ApiError::internal("the pull ended without a result").0 }
            }),
            () = closed(&mut closing) => {
                PullEvent::Failed { error: ApiError::shutting_down().0 }
            }
        };
        let last = matches!(event, PullEvent::Done { .. } | PullEvent::Failed { .. });
        Some((Ok(json_line(&event)), (!last).then_some((receiver, closing))))
    })))
}

async fn no_route(method: Method, uri: Uri) -> ApiError {
    ApiError(ErrorBody {
        code: ErrorCode::NotFound,
        message: format!("there is no route {method} {}", uri.path()),
        hint: Some("the client may be of another version than the daemon: restart `iii`".to_owned()),
    })
}

async fn wrong_method(method: Method, uri: Uri) -> Response {
    let error = ApiError::bad_request(format!("{} does not answer {method}", uri.path()));
    (StatusCode::METHOD_NOT_ALLOWED, Json(error.0)).into_response()
}

/// Answers whatever is asked on a connection above the limit.
pub(super) fn refusing_router() -> Router {
    Router::new().fallback(|| async {
        ApiError(ErrorBody {
            code: ErrorCode::Host,
            message: format!(
                "the daemon serves {} connections already, its limit",
                super::server::MAX_CONNECTIONS
            ),
            hint: Some("end some `iii worker logs --follow`, then try again".to_owned()),
        })
    })
}

fn path(name: Name) -> Result<String, ApiError> {
    name.map(|Path(name)| name).map_err(|e| ApiError::bad_request(e.body_text()))
}

fn bytes(body: Body) -> Result<Bytes, ApiError> {
    body.map_err(|e| ApiError::bad_request(format!("the request's body cannot be read: {}", e.body_text())))
}
