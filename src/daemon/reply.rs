//! What the routes answer with: JSON, NDJSON streams, and errors with their HTTP status.

use std::io;

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::Stream;
use iii_protocol::api::{ErrorBody, ErrorCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// An error on its way to the client.
#[derive(Debug)]
pub(super) struct ApiError(pub ErrorBody);

impl ApiError {
    pub(super) fn bad_request(message: impl Into<String>) -> ApiError {
        ApiError(ErrorBody { code: ErrorCode::BadRequest, message: message.into(), hint: None })
    }

    pub(super) fn internal(message: impl Into<String>) -> ApiError {
        let hint = "this is a defect of iii; the daemon's own output may say more".to_owned();
        ApiError(ErrorBody { code: ErrorCode::Internal, message: message.into(), hint: Some(hint) })
    }

    pub(super) fn shutting_down() -> ApiError {
        ApiError(ErrorBody {
            code: ErrorCode::ShuttingDown,
            message: "the daemon is going down".to_owned(),
            hint: Some("start it again with `iii`".to_owned()),
        })
    }
}

impl From<ErrorBody> for ApiError {
    fn from(body: ErrorBody) -> ApiError {
        ApiError(body)
    }
}

/// The HTTP status of each error code.
pub(super) fn status_of(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::BadRequest => StatusCode::BAD_REQUEST,
        ErrorCode::NotFound => StatusCode::NOT_FOUND,
        ErrorCode::Conflict => StatusCode::CONFLICT,
        ErrorCode::BadConfig => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorCode::Image => StatusCode::BAD_GATEWAY,
        ErrorCode::Host | ErrorCode::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (status_of(self.0.code), axum::Json(self.0)).into_response()
    }
}

/// Reads a JSON body; an empty one is the default, so that `curl -X POST` needs no body.
pub(super) fn body_or_default<T: DeserializeOwned + Default>(body: &Bytes) -> Result<T, ApiError> {
    if body.iter().all(u8::is_ascii_whitespace) { Ok(T::default()) } else { parse_body(body) }
}

/// Reads a JSON body.
pub(super) fn parse_body<T: DeserializeOwned>(body: &Bytes) -> Result<T, ApiError> {
    serde_json::from_slice(body)
        .map_err(|e| ApiError::bad_request(format!("the request's body is not what this route takes: {e}")))
}

/// One JSON value and a newline.
pub(super) fn json_line<T: Serialize>(value: &T) -> Bytes {
    let mut line = serde_json::to_vec(value).expect("bodies of the API always serialise");
    line.push(b'\n');
    line.into()
}

/// A stream of lines. It is pulled by the client: a slow one costs nothing but its connection.
pub(super) fn ndjson(lines: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Response {
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}
