//! Statements on jobs that wait for a person: `hold_before`.

use postgres_types::Type;
use tokio_postgres::GenericClient;

use super::{Actor, State, StateError, job};

/// Approves what a job waits for. Tells the stage, `start` or `finish`; none when it waits for no approval.
pub async fn approve(
    client: &impl GenericClient,
    state: &State,
    name: &str,
    actor: &Actor,
) -> Result<Option<String>, StateError> {
    let row = client
        .query_typed_opt(
            &state.sql(
                "WITH waiting AS (
                     SELECT j.name, stage
                     FROM {s}.job j LEFT JOIN {s}.finish f ON f.job = j.name
                     CROSS JOIN unnest(ARRAY['start', 'finish']) AS stage
                     WHERE j.name = $1 AND {s}.is_on_hold(j.spec, j.approved, stage)
                       AND CASE stage
                               WHEN 'start' THEN j.state IN ('pending', 'paused') AND j.started_at IS NULL
                               ELSE j.state IN ('finishing', 'paused') AND f.job IS NOT NULL END
                     FOR UPDATE OF j
                 ), approved AS (
                     UPDATE {s}.job j SET approved = j.approved || w.stage FROM waiting w WHERE j.name = w.name
                     RETURNING j.name, w.stage
                 ), told AS (
                     INSERT INTO {s}.event (job, kind, actor, reason)
                     SELECT name, 'approved', $2, 'the ' || stage || ' may go on' FROM approved
                 )
                 SELECT stage FROM approved",
            ),
            &[(&name, Type::TEXT), (&actor.0, Type::TEXT)],
        )
        .await?;
    if row.is_none() {
        // Or there is no such job.
        job::load(client, state, name).await?;
    }
    Ok(row.map(|row| row.get(0)))
}
