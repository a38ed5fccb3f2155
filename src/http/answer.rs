//! What is answered when something cannot be: `{"error": "..."}` with a status that says whose fault it is.

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio_postgres::error::SqlState;

use crate::database::ConnectError;
use crate::state::StateError;

/// When a database that is away may be back.
const AGAIN_AFTER_SECONDS: u64 = 5;

/// Why a request is not answered as it wants to be.
#[derive(Debug)]
pub(super) struct Answer {
    status: StatusCode,
    error: String,
    /// Seconds after which another try makes sense.
    retry_after: Option<u64>,
}

impl Answer {
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), retry_after: None }
    }

    /// It cannot be answered now.
    pub(super) fn later(error: impl Into<String>) -> Self {
        Self { retry_after: Some(AGAIN_AFTER_SECONDS), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, error) }
    }

    /// The request itself is wrong.
    pub(super) fn wrong(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(json!({ "error": self.error }))).into_response();
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl From<ConnectError> for Answer {
    fn from(error: ConnectError) -> Self {
        match error {
            // Not the pool whose size can be set.
            ConnectError::PoolExhausted(_) => {
                Self::later("too many requests are being answered already; try again")
            }
            error => Self::later(error.to_string()),
        }
    }
}

impl From<StateError> for Answer {
    fn from(error: StateError) -> Self {
        let status = match &error {
            StateError::UnknownJob { .. } => StatusCode::NOT_FOUND,
            StateError::WrongState { .. } | StateError::ChangedMeanwhile { .. } => StatusCode::CONFLICT,
            // A name with a zero byte, a time beyond all times.
            StateError::Database(refused) if refused.code().is_some_and(is_of_bad_data) => {
                StatusCode::BAD_REQUEST
            }
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        if status == StatusCode::SERVICE_UNAVAILABLE {
            Self::later(error.to_string())
        } else {
            Self::new(status, error.to_string())
        }
    }
}

/// Class 22, data exception.
fn is_of_bad_data(code: &SqlState) -> bool {
    code.code().starts_with("22")
}

/// What is served at no such path.
pub(super) async fn no_such_path() -> Answer {
    Answer::new(StatusCode::NOT_FOUND, "nothing is served at this path: /api/v1/openapi.json lists what is")
}

/// What is served at the path, but not by this method.
pub(super) async fn wrong_method() -> Answer {
    Answer::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "this path is not served by this method: see the header Allow",
    )
}

/// Does what was begun to its end, also when nobody waits for it any more: the server would go on with a statement in any
/// case, and the connection's place in the pool is free only when it has answered. So whoever asks and hangs up, over and
/// over, has no more of the server's sessions at work than the pool has places.
pub(super) async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Answer>> + Send + 'static,
) -> Result<T, Answer> {
    tokio::spawn(work).await.unwrap_or_else(|error| {
        Err(Answer::new(StatusCode::INTERNAL_SERVER_ERROR, format!("a request was not carried out: {error}")))
    })
}
