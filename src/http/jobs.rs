//! Jobs: how they stand, and what may be asked of them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, Request, State as Shared};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio_postgres::Client;

use super::Told;
use super::answer::{Answer, to_the_end};
use super::asked::{Name, Sent};
use crate::job::spec::Spec;
use crate::job::tune as tuning;
use crate::state::job::{self, Changed};
use crate::state::quarantine as set_aside;
use crate::state::status::{self, SliceStatus};
use crate::state::submission::{self, Tuned};
use crate::state::{Actor, State, approval};

/// Slices, and rows in quarantine, that are told; how many there are, the status says.
const ROWS_AT_MOST: i64 = 1000;

/// How long a list of all jobs is told again.
const JOBS_HOLD_FOR: Duration = Duration::from_millis(500);
/// A batch takes some 50 ms; one that takes longer than this waits for locks.
const LONGEST_WAIT_FOR_A_BATCH: Duration = Duration::from_secs(5);

type Peer = ConnectInfo<SocketAddr>;

/// As `status --json`. Of many who ask at a time the database is asked once.
pub(super) async fn list(Shared(place): Told) -> Result<Response, Answer> {
    let answer = |json: Bytes| ([(header::CONTENT_TYPE, "application/json")], json).into_response();
    let mut known = place.jobs.clone().lock_owned().await;
    if let Some((at, json)) = &*known
        && at.elapsed() < JOBS_HOLD_FOR
    {
        return Ok(answer(json.clone()));
    }
    let client = place.reading().await?;
    to_the_end(async move {
        let jobs = status::list(&**client, &place.state).await?;
        let json = serde_json::to_vec(&jobs).map_err(|error| no_json(&error))?;
        let json = Bytes::from(json);
        *known = Some((Instant::now(), json.clone()));
        Ok(answer(json))
    })
    .await
}

/// What was told of all jobs is not told again after a change.
pub(super) async fn forget_list(Shared(place): Told, request: Request, next: Next) -> Response {
    let answer = next.run(request).await;
    *place.jobs.lock().await = None;
    answer
}

fn no_json(error: &serde_json::Error) -> Answer {
    Answer::new(StatusCode::INTERNAL_SERVER_ERROR, format!("a status is no JSON: {error}"))
}

/// One job, with its spec.
pub(super) async fn one(Shared(place): Told, Name(name): Name) -> Result<Json<Value>, Answer> {
    let client = place.reading().await?;
    to_the_end(async move {
        let status = status::of(&**client, &place.state, &name).await?;
        let record = job::load(&**client, &place.state, &name).await?;
        let mut answer = serde_json::to_value(status).map_err(|error| no_json(&error))?;
        answer["spec"] = Spec::as_written(&record.spec);
        Ok(Json(answer))
    })
    .await
}

/// The slices of a job's present pass.
pub(super) async fn slices(Shared(place): Told, Name(name): Name) -> Result<Json<Vec<SliceStatus>>, Answer> {
    let client = place.reading().await?;
    to_the_end(async move {
        let slices = status::slices(&**client, &place.state, &name, ROWS_AT_MOST).await?;
        if slices.is_empty() {
            // Or there is no such job.
            job::load(&**client, &place.state, &name).await?;
        }
        Ok(Json(slices))
    })
    .await
}

/// The rows that could not be changed.
pub(super) async fn quarantine(Shared(place): Told, Name(name): Name) -> Result<Json<Vec<Value>>, Answer> {
    let client = place.reading().await?;
    to_the_end(async move {
        let rows = set_aside::list(&**client, &place.state, &name, ROWS_AT_MOST).await?;
        if rows.is_empty() {
            job::load(&**client, &place.state, &name).await?;
        }
        let told = |row: &set_aside::Quarantined| json!({ "key": row.key, "sqlstate": row.sqlstate, "message": row.message, "at": row.at });
        Ok(Json(rows.iter().map(told).collect()))
    })
    .await
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Pause {
    /// After so long it goes on by itself.
    #[serde(rename = "for", with = "humantime_serde")]
    resume_after: Option<Duration>,
    /// Not to wait for the batch in flight.
    no_wait: bool,
}

pub(super) async fn pause(
    Shared(place): Told,
    ConnectInfo(peer): Peer,
    Name(name): Name,
    Sent(body): Sent,
) -> Result<Json<Value>, Answer> {
    let Pause { resume_after, no_wait } = read(&body)?;
    let mut client = place.changing().await?;
    to_the_end(async move {
        job::pause(&**client, &place.state, &name, resume_after, &actor(peer)).await?;
        let until = resume_after.map_or(String::new(), |time| {
            format!(", and resumes by itself in {}", humantime::format_duration(time))
        });
        let in_flight = in_flight(&mut client, &place.state, &name, no_wait).await?;
        let told = format!("job {name} is paused{until}; {in_flight}");
        Ok(Json(json!({ "told": told })))
    })
    .await
}

/// Waits for the batch in flight, if it ends soon: a request is no place to wait for long.
async fn in_flight(
    client: &mut Client,
    state: &State,
    name: &str,
    no_wait: bool,
) -> Result<&'static str, Answer> {
    if no_wait {
        return Ok("a batch may still be in flight");
    }
    Ok(if job::quiesce_within(client, state, name, LONGEST_WAIT_FOR_A_BATCH).await? {
        "no batch is in flight"
    } else {
        "its last batch is still in flight"
    })
}

pub(super) async fn resume(
    Shared(place): Told,
    ConnectInfo(peer): Peer,
    Name(name): Name,
    Sent(body): Sent,
) -> Result<Json<Value>, Answer> {
    read::<Nothing>(&body)?;
    let client = place.changing().await?;
    to_the_end(async move {
        let changed = job::resume(&**client, &place.state, &name, &actor(peer)).await?;
        Ok(told(&name, &changed, "goes on"))
    })
    .await
}

pub(super) async fn cancel(
    Shared(place): Told,
    ConnectInfo(peer): Peer,
    Name(name): Name,
    Sent(body): Sent,
) -> Result<Json<Value>, Answer> {
    read::<Nothing>(&body)?;
    let mut client = place.changing().await?;
    to_the_end(async move {
        let changed = job::cancel(&**client, &place.state, &name, &actor(peer)).await?;
        let in_flight = in_flight(&mut client, &place.state, &name, false).await?;
        let done = format!("is cancelled; what it has changed stays changed; {in_flight}");
        Ok(told(&name, &changed, &done))
    })
    .await
}

pub(super) async fn retry(
    Shared(place): Told,
    ConnectInfo(peer): Peer,
    Name(name): Name,
    Sent(body): Sent,
) -> Result<Json<Value>, Answer> {
    read::<Nothing>(&body)?;
    let client = place.changing().await?;
    to_the_end(async move {
        let changed = job::retry(&**client, &place.state, &name, &actor(peer)).await?;
        Ok(told(&name, &changed, "goes on from its cursor"))
    })
    .await
}

pub(super) async fn approve(
    Shared(place): Told,
    ConnectInfo(peer): Peer,
    Name(name): Name,
    Sent(body): Sent,
) -> Result<Json<Value>, Answer> {
    read::<Nothing>(&body)?;
    let client = place.changing().await?;
    to_the_end(async move {
        let stage = approval::approve(&**client, &place.state, &name, &actor(peer)).await?;
        Ok(Json(json!({ "told": match stage {
            Some(stage) => format!("job {name}: the {stage} is approved"),
            None => format!("job {name} waits for no approval: nothing to do"),
        } })))
    })
    .await
}

/// `{"workers": 4, "batch.target_duration": "100ms", "limits.max_retries": null}`, the keys of `tune`; null takes one
/// out.
pub(super) async fn tune(
    Shared(place): Told,
    ConnectInfo(peer): Peer,
    Name(name): Name,
    Sent(body): Sent,
) -> Result<Json<Value>, Answer> {
    let wanted: Map<String, Value> = read(&body)?;
    if wanted.is_empty() {
        return Err(Answer::wrong("nothing to tune: send an object such as {\"rows_per_second\": 5000}"));
    }
    let changes = wanted.iter().map(|(key, value)| change(key, value)).collect::<Result<Vec<_>, _>>()?;
    let mut client = place.changing().await?;
    to_the_end(async move {
        let mut known = job::load(&**client, &place.state, &name).await?;
        known.spec = Spec::as_written(&known.spec);
        let spec =
            tuning::apply(&known.spec, &changes).map_err(|problems| Answer::wrong(problems.join("; ")))?;
        let tuned =
            submission::tune(&mut client, &place.state, &known, &spec.to_json(), &actor(peer)).await?;
        Ok(Json(json!({ "told": match tuned {
            Tuned::Unchanged => format!("job {name} is tuned so already: nothing to do"),
            Tuned::Changed { told, .. } => format!("job {name}: {told}"),
        } })))
    })
    .await
}

/// As `tune` takes it on the command line.
fn change(key: &str, value: &Value) -> Result<String, Answer> {
    if value.is_null() {
        return Ok(format!("{key}="));
    }
    let value = toml::Value::try_from(value)
        .map_err(|error| Answer::wrong(format!("{key}: a value that no job file can have: {error}")))?;
    Ok(format!("{key}={value}"))
}

/// A body that is not there says nothing.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Nothing {}

fn read<T: for<'de> Deserialize<'de> + Default>(body: &Bytes) -> Result<T, Answer> {
    if body.is_empty() {
        return Ok(T::default());
    }
    let unreadable = |error| Answer::wrong(format!("the body cannot be read: {error}"));
    // An object first: a list would do as well for what has named fields.
    let object: Map<String, Value> = serde_json::from_slice(body).map_err(unreadable)?;
    serde_json::from_value(Value::Object(object)).map_err(unreadable)
}

/// For the audit log.
fn actor(peer: SocketAddr) -> Actor {
    Actor(format!("HTTP from {}", peer.ip()))
}

fn told(name: &str, changed: &Changed, done: &str) -> Json<Value> {
    Json(json!({ "told": match changed {
        Changed::Done => format!("job {name} {done}"),
        Changed::Already(state) => format!("job {name} is already {state}: nothing to do"),
    } }))
}
