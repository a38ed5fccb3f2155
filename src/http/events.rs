//! The audit log.

use axum::Json;
use axum::extract::{Query, State as Shared};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Told;
use super::answer::{Answer, to_the_end};
use crate::state::event;

const EVENTS_AT_MOST: i64 = 1000;
const EVENTS: i64 = 100;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    /// Of this job only.
    job: Option<String>,
    /// Later than this one.
    #[serde(default)]
    after: i64,
    /// So many at most, the latest.
    limit: Option<i64>,
}

pub(super) async fn list(
    Shared(place): Told,
    asked: Result<Query<Asked>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Vec<Value>>, Answer> {
    let Query(asked) = asked.map_err(|error| Answer::wrong(error.body_text()))?;
    let limit = asked.limit.unwrap_or(EVENTS);
    if !(1..=EVENTS_AT_MOST).contains(&limit) {
        return Err(Answer::wrong(format!("limit is a whole number from 1 to {EVENTS_AT_MOST}")));
    }
    let client = place.reading().await?;
    to_the_end(async move {
        let events = event::list(&**client, &place.state, asked.job.as_deref(), asked.after, limit).await?;
        let told = events.iter().map(|event| {
            json!({ "id": event.id, "at": event.at, "job": event.job, "kind": event.kind, "actor": event.actor,
                    "role": event.role, "reason": event.reason })
        });
        Ok(Json(told.collect()))
    })
    .await
}
