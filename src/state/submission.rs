//! Statements that register jobs and replace their specs.

use postgres_types::Type;
use serde_json::Value;
use tokio_postgres::{Client, Transaction};

use super::job::{Record, close_gate};
use super::{Actor, State, StateError, event};

/// The sections and keys of a spec that say how fast to go and not what to do: changing them keeps the cursor.
const TUNING: [&str; 5] = ["batch", "limits", "throttle", "schedule", "walk.workers"];

/// What a submission did.
#[derive(Debug, PartialEq, Eq)]
pub enum Submitted {
    /// The job is new.
    New,
    /// The same spec was already known; nothing was changed.
    Unchanged,
    /// Only tuning differs, and the job keeps its own.
    Kept {
        /// The keys that differ.
        difference: String,
    },
    /// Only tuning changed: the job keeps its state, and its walk its place.
    Retuned {
        /// The job's state.
        state: String,
    },
    /// What the job does changed: it starts again from the first row.
    Restarted {
        /// How many rows the walk had scanned under the old spec.
        rows_forgotten: i64,
    },
}

/// What a tuning did.
#[derive(Debug, PartialEq, Eq)]
pub enum Tuned {
    /// The job was as wanted; nothing was changed.
    Unchanged,
    /// The job goes by other figures from its next batches on.
    Changed {
        /// The job's state.
        state: String,
        /// The keys and their new values.
        told: String,
    },
}

/// What is done about a job that is known with another spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// It is refused.
    Refused,
    /// It is refused, unless they differ in tuning only: then the job keeps its own, which `tune` may have set.
    KeepsTuning,
    /// It is replaced.
    Replaced,
}

/// A job as it is submitted.
#[derive(Debug, Clone, Copy)]
pub struct Submission<'a> {
    /// The job's name.
    pub name: &'a str,
    /// The job file as JSON, as this program writes it.
    pub spec: &'a Value,
    /// Writes any spec as this program does: one that was submitted in SQL is kept as it was given.
    pub as_written: fn(&Value) -> Value,
}

/// Registers a job.
pub async fn submit(
    client: &mut Client,
    state: &State,
    submission: Submission<'_>,
    known: Known,
    actor: &Actor,
) -> Result<Submitted, StateError> {
    let Submission { name, spec, .. } = submission;
    let transaction = client.transaction().await?;
    let inserted = transaction
        .execute_typed(
            &state.sql("INSERT INTO {s}.job (name, spec) VALUES ($1, $2) ON CONFLICT DO NOTHING"),
            &[(&name, Type::TEXT), (spec, Type::JSONB)],
        )
        .await?;
    let submitted = if inserted == 1 {
        event::record(&transaction, state, Some(name), "submitted", actor, "the job is new").await?;
        Submitted::New
    } else {
        resubmit(&transaction, state, submission, known, actor).await?
    };
    transaction.commit().await?;
    Ok(submitted)
}

async fn resubmit(
    transaction: &Transaction<'_>,
    state: &State,
    submission: Submission<'_>,
    if_known: Known,
    actor: &Actor,
) -> Result<Submitted, StateError> {
    let Submission { name, spec, as_written } = submission;
    let row = transaction
        .query_typed_one(
            &state.sql("SELECT spec, state FROM {s}.job WHERE name = $1 FOR NO KEY UPDATE"),
            &[(&name, Type::TEXT)],
        )
        .await?;
    let different = differing_keys(&as_written(&row.get(0)), spec);
    if different.is_empty() {
        return Ok(Submitted::Unchanged);
    }
    let difference = different.join(", ");
    match if_known {
        Known::Replaced => {}
        Known::KeepsTuning if only_tuning(&different) => return Ok(Submitted::Kept { difference }),
        Known::KeepsTuning | Known::Refused => {
            return Err(StateError::Different { name: name.to_owned(), difference });
        }
    }
    if only_tuning(&different) {
        store_tuning(transaction, state, name, spec).await?;
        let reason = format!("changed {difference}; the walk goes on from its cursor");
        event::record(transaction, state, Some(name), "replaced", actor, &reason).await?;
        return Ok(Submitted::Retuned { state: row.get(1) });
    }
    close_gate(transaction, state, name).await?;
    let rows_forgotten: i64 = transaction
        .query_typed_one(
            &state.sql("SELECT coalesce(sum(rows_scanned), 0)::bigint FROM {s}.slice WHERE job = $1"),
            &[(&name, Type::TEXT)],
        )
        .await?
        .get(0);
    for table in ["slice", "quarantine", "finish"] {
        transaction
            .execute_typed(
                &state.sql(&format!("DELETE FROM {{s}}.{table} WHERE job = $1")),
                &[(&name, Type::TEXT)],
            )
            .await?;
    }
    transaction
        .execute_typed(
            &state.sql(
                "UPDATE {s}.job SET spec = $2, revision = revision + 1, error = NULL, approved = '{}', key_columns = NULL, key_index = NULL, table_oid = NULL,
                        state = CASE state WHEN 'paused' THEN 'paused' ELSE 'pending' END,
                        table_rows = NULL, started_at = NULL, finished_at = NULL,
                        submitted_at = clock_timestamp()
                 WHERE name = $1",
            ),
            &[(&name, Type::TEXT), (spec, Type::JSONB)],
        )
        .await?;
    let reason = format!(
        "changed {difference}; the walk starts again from the first row ({rows_forgotten} rows had been scanned)"
    );
    event::record(transaction, state, Some(name), "replaced", actor, &reason).await?;
    Ok(Submitted::Restarted { rows_forgotten })
}

/// Changes the tuning of a job, as long as it is as `known`.
pub async fn tune(
    client: &mut Client,
    state: &State,
    known: &Record,
    spec: &Value,
    actor: &Actor,
) -> Result<Tuned, StateError> {
    let different = differing_keys(&known.spec, spec);
    if different.is_empty() {
        return Ok(Tuned::Unchanged);
    }
    let name = &known.name;
    let transaction = client.transaction().await?;
    let row = transaction
        .query_typed_opt(
            &state.sql("SELECT state FROM {s}.job WHERE name = $1 AND revision = $2 FOR NO KEY UPDATE"),
            &[(name, Type::TEXT), (&known.revision, Type::INT4)],
        )
        .await?;
    let Some(row) = row else { return Err(StateError::ChangedMeanwhile { name: name.clone() }) };
    let job_state: String = row.get(0);
    // A failed one may be tuned and then tried again.
    if ["complete", "cancelled"].contains(&job_state.as_str()) {
        return Err(StateError::WrongState { name: name.clone(), state: job_state, wanted: "tuned" });
    }
    store_tuning(&transaction, state, name, spec).await?;
    let value = |key: &String| spec.pointer(&format!("/{}", key.replace('.', "/")));
    let told: Vec<String> = different
        .iter()
        .map(|key| value(key).map_or_else(|| format!("{key} by default"), |value| format!("{key} = {value}")))
        .collect();
    let told = told.join(", ");
    event::record(&transaction, state, Some(name), "tuned", actor, &told).await?;
    transaction.commit().await?;
    Ok(Tuned::Changed { state: job_state, told })
}

async fn store_tuning(
    transaction: &Transaction<'_>,
    state: &State,
    name: &str,
    spec: &Value,
) -> Result<(), StateError> {
    transaction
        .execute_typed(
            &state.sql("UPDATE {s}.job SET spec = $2, revision = revision + 1 WHERE name = $1"),
            &[(&name, Type::TEXT), (spec, Type::JSONB)],
        )
        .await?;
    Ok(())
}

/// Whether all of these keys are tuning.
#[must_use]
pub fn only_tuning(keys: &[String]) -> bool {
    let is_tuning =
        |key: &String| TUNING.iter().any(|section| key == section || key.starts_with(&format!("{section}.")));
    keys.iter().all(is_tuning)
}

#[must_use]
/// The keys, dotted, under which two specs differ: `update.where`, `limits.rows_per_second`.
pub fn differing_keys(known: &Value, new: &Value) -> Vec<String> {
    fn walk(path: &str, known: Option<&Value>, new: Option<&Value>, found: &mut Vec<String>) {
        let empty = serde_json::Map::new();
        match (known, new) {
            (known, new) if known == new => {}
            // A section that one side lacks is an empty one, so that the keys in it are named.
            (Some(Value::Object(_)) | None, Some(Value::Object(_)) | None) => {
                let object = |side: Option<&Value>| {
                    side.and_then(Value::as_object).cloned().unwrap_or_else(|| empty.clone())
                };
                let (known, new) = (object(known), object(new));
                let mut keys: Vec<&String> = known.keys().chain(new.keys()).collect();
                keys.sort();
                keys.dedup();
                for key in keys {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    walk(&path, known.get(key), new.get(key), found);
                }
            }
            _ => found.push(path.to_owned()),
        }
    }
    let mut found = Vec::new();
    walk("", Some(known), Some(new), &mut found);
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn differing_keys_are_named_with_their_section() {
        let known = json!({"table": "t", "update": {"set": {"a": "1"}}, "limits": {"rows_per_second": 5}});
        let new = json!({"table": "t", "update": {"set": {"a": "2"}}, "batch": {"max_rows": 9}});
        assert_eq!(
            differing_keys(&known, &new),
            ["batch.max_rows", "limits.rows_per_second", "update.set.a"]
        );
        assert!(differing_keys(&known, &known).is_empty());
    }
}
