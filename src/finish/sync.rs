//! The trigger that keeps new rows in step with a job while it runs: it does to every row that is written and matches
//! `where` what the job does to those that were there.
//!
//! Its function belongs to the role of the daemon and runs with that role's rights and under the settings of a batch,
//! so that an expression means in it what it means in the job, whoever writes the row. It is skipped for the job's own
//! batches, which say so by a setting: [`crate::walk::batch::WALKING`].

use std::time::Duration;

use postgres_types::Type;
use tokio_postgres::{Client, Error, GenericClient};

use super::facts;
use super::obstacle;
use super::step::{last_text, lock_sql};
use crate::database::{Failure, describe, identifier, literal};
use crate::state::finish::{ACCESS_EXCLUSIVE, Took, tell_sql};
use crate::state::{Actor, State, StateError, sync_trigger};
use crate::walk::batch::{KEY_TEXT_SETTINGS, WALKING};
use crate::walk::keyset::{Table, enclosed};
use crate::walk::operation::hidden;

/// A job whose new rows are kept in step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sync {
    /// The job.
    pub job: String,
    /// Its table.
    pub table: Table,
    /// Columns and the SQL expressions of their new values.
    pub set: Vec<(String, String)>,
    /// Which rows.
    pub filter: String,
}

/// What came of an attempt to make the trigger, or to drop it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is as wanted.
    Done,
    /// Somebody is in the way of the lock.
    Busy(String),
}

/// The lock that CREATE TRIGGER takes: reading goes on, writing waits.
const MAKING: &str = "SHARE ROW EXCLUSIVE";
/// The record of the new values within the function: a name that no column has.
const VALUES: &str = "\"backfilld values\"";

/// The trigger's name. The last one fires last, after those of the application, whose values it then sees.
#[must_use]
pub fn trigger_name(job: &str) -> String {
    super::cut_name("zz_backfilld_", job, "")
}

/// The function's name, with its schema.
fn function_sql(state: &State, job: &str) -> String {
    format!("{}.{}", identifier(state.schema()), identifier(&super::cut_name("sync_", job, "")))
}

impl Sync {
    /// The query that gives the new values of the row that `row` selects; no row where `where` does not match.
    #[must_use]
    pub fn values_sql(&self, row: &str, into: &str) -> String {
        let values: Vec<String> = self
            .set
            .iter()
            .map(|(column, expression)| format!("{} AS {}", enclosed(expression), identifier(column)))
            .collect();
        format!(
            "SELECT {}{into}\nFROM ({row}) AS {}\nWHERE {}",
            values.join(",\n       "),
            identifier(&self.table.name),
            hidden(&self.filter)
        )
    }

    /// The body of the trigger's function. It does nothing once the job has ended: until a daemon drops it, the columns
    /// that it writes may go.
    #[must_use]
    pub fn body(&self, state_schema: &str) -> String {
        let assigned: Vec<String> = self
            .set
            .iter()
            .map(|(column, _)| format!("    NEW.{0} := {VALUES}.{0};", identifier(column)))
            .collect();
        format!(
            "#variable_conflict use_column\nDECLARE {VALUES} record;\nBEGIN\nIF NOT EXISTS (SELECT FROM {}.job j WHERE j.name = {} AND j.state NOT IN ('complete', 'cancelled')) THEN\n    RETURN NEW;\nEND IF;\n{};\nIF FOUND THEN\n{}\nEND IF;\nRETURN NEW;\nEND",
            identifier(state_schema),
            literal(&self.job),
            self.values_sql("SELECT NEW.*", &format!("\nINTO {VALUES}")),
            assigned.join("\n")
        )
    }

    /// The statement that makes the function, or replaces it. `search_path` is that of the daemon's sessions.
    fn make_function_sql(&self, state: &State, search_path: &str) -> String {
        let name = function_sql(state, &self.job);
        let settings =
            KEY_TEXT_SETTINGS.map(|(setting, value)| format!("\n    SET {setting} = {}", literal(value)));
        // Temporary tables last: whoever writes a row must not be able to put one of theirs before another.
        format!(
            "CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = {search_path}{}
AS {};\nREVOKE ALL ON FUNCTION {name}() FROM PUBLIC",
            settings.concat(),
            literal(&self.body(state.schema()))
        )
    }

    /// The statement that makes the trigger.
    #[must_use]
    pub fn make_trigger_sql(&self, state: &State) -> String {
        format!(
            "CREATE TRIGGER {} BEFORE INSERT OR UPDATE ON {}\n    FOR EACH ROW WHEN (current_setting('{WALKING}', true) IS DISTINCT FROM {})\n    EXECUTE FUNCTION {}()",
            identifier(&trigger_name(&self.job)),
            self.table.sql(),
            literal(&self.job),
            function_sql(state, &self.job)
        )
    }

    /// Makes the trigger, where it is not there.
    ///
    /// `anew`: its function is replaced in any case: the job's expressions may be others than when it was made.
    pub async fn install(
        &self,
        client: &mut Client,
        state: &State,
        lock_timeout: Duration,
        anew: bool,
        actor: &Actor,
    ) -> Result<Outcome, StateError> {
        if !anew && self.is_installed(&*client, state).await? {
            return Ok(Outcome::Done);
        }
        sync_trigger::note(&*client, state, &self.job, self.table.oid).await?;
        let transaction = client.transaction().await?;
        let Some(noted) = sync_trigger::lock(&transaction, state, &self.job).await? else {
            // Dropped by somebody who has found it left over, a moment ago.
            return Ok(Outcome::Busy("its trigger is being removed".to_owned()));
        };
        let path: String = transaction
            .query_typed_one(
                "SELECT coalesce(string_agg(quote_ident(name), ', ' ORDER BY place) || ', ', '') || 'pg_temp'
                 FROM unnest(current_schemas(false)) WITH ORDINALITY AS path (name, place)",
                &[],
            )
            .await?
            .get(0);
        let mut parts = Vec::new();
        if noted != self.table.oid {
            // The job has another table by now; the trigger on its former table goes first.
            sync_trigger::moved(&transaction, state, &self.job, self.table.oid).await?;
            let former = facts::table(&transaction, noted).await?.map(|table| table.sql());
            let may_lock = may_lock(&transaction, noted).await?;
            parts.push(lock_sql(ACCESS_EXCLUSIVE, former.as_ref().filter(|_| may_lock), lock_timeout));
            parts.push(format!("DROP FUNCTION IF EXISTS {}() CASCADE", function_sql(state, &self.job)));
        }
        parts.push(self.make_function_sql(state, &path));
        if noted != self.table.oid || !self.is_installed(&transaction, state).await? {
            let table = self.table.sql();
            let may_lock = may_lock(&transaction, self.table.oid).await?;
            parts.push(lock_sql(MAKING, may_lock.then_some(&table), lock_timeout));
            parts.push(self.make_trigger_sql(state));
            parts.push("COMMIT".to_owned());
            let told = format!("trigger {} on {} made", trigger_name(&self.job), self.table);
            parts.push(tell_sql(state, &self.job, "sync", &told, Took::Lock(MAKING), actor));
        } else {
            parts.push("COMMIT".to_owned());
        }
        let sql = parts.join(";\n");
        let sent = transaction.simple_query(&sql).await;
        // After its COMMIT this is none any more, and the server says so, which does not matter.
        let ended = transaction.rollback().await;
        match sent {
            Ok(answers) => {
                ended?;
                let told = last_text(&answers);
                tracing::info!(job = %self.job, "{}", if told.is_empty() { "trigger renewed" } else { &told });
                Ok(Outcome::Done)
            }
            Err(error) if Failure::of(&error) == Failure::Contention => {
                ended?;
                Ok(Outcome::Busy(busy(&*client, self.table.oid).await?))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the trigger is there and fires.
    async fn is_installed(&self, client: &impl GenericClient, state: &State) -> Result<bool, StateError> {
        let row = client
            .query_typed_one(
                "SELECT EXISTS (SELECT FROM pg_trigger
                                WHERE tgrelid = $1 AND tgname = $2 AND tgenabled IN ('O', 'A')
                                  AND tgfoid = to_regproc($3))",
                &[
                    (&self.table.oid, Type::OID),
                    (&trigger_name(&self.job), Type::TEXT),
                    (&function_sql(state, &self.job), Type::TEXT),
                ],
            )
            .await?;
        Ok(row.get(0))
    }
}

/// The statements that drop the trigger of a job, and forget it. By its function: to drop a trigger itself one must
/// own the table.
#[must_use]
pub fn drop_sql(state: &State, job: &str) -> String {
    format!(
        "DROP FUNCTION IF EXISTS {}() CASCADE;\n{}",
        function_sql(state, job),
        sync_trigger::forget_sql(state, job)
    )
}

/// Drops the trigger of a job that needs none any more.
pub async fn drop_left_over(
    client: &mut Client,
    state: &State,
    job: &str,
    lock_timeout: Duration,
    actor: &Actor,
) -> Result<Outcome, StateError> {
    let transaction = client.transaction().await?;
    let Some(oid) = sync_trigger::lock_left_over(&transaction, state, job).await? else {
        return Ok(Outcome::Done);
    };
    let table = facts::table(&transaction, oid).await?.map(|table| table.sql());
    let may_lock = may_lock(&transaction, oid).await?;
    let sql = format!(
        "{};\n{};\nCOMMIT;\n{}",
        lock_sql(ACCESS_EXCLUSIVE, table.as_ref().filter(|_| may_lock), lock_timeout),
        drop_sql(state, job),
        tell_sql(state, job, "sync", "trigger removed", Took::Lock(ACCESS_EXCLUSIVE), actor)
    );
    let sent = transaction.simple_query(&sql).await;
    let ended = transaction.rollback().await;
    match sent {
        Ok(answers) => {
            ended?;
            tracing::info!(%job, "{}", last_text(&answers));
            Ok(Outcome::Done)
        }
        Err(error) if Failure::of(&error) == Failure::Contention => {
            ended?;
            Ok(Outcome::Busy(busy(&*client, oid).await?))
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether the role has one of the rights by which a table can be locked.
pub async fn may_lock(client: &impl GenericClient, table: u32) -> Result<bool, Error> {
    let row = client
        .query_typed_one(
            "SELECT coalesce(has_table_privilege($1, 'UPDATE, DELETE, TRUNCATE'), false)",
            &[(&table, Type::OID)],
        )
        .await?;
    Ok(row.get(0))
}

async fn busy(client: &impl GenericClient, table: u32) -> Result<String, Error> {
    Ok(match obstacle::find(client, table).await {
        Ok(Some(obstacle)) => format!("its trigger waits for {obstacle}"),
        Ok(None) => "its trigger waits for a lock".to_owned(),
        Err(error) => return Err(error),
    })
}

/// Why an expression of a job cannot be used in its trigger; tried on the table as it is now.
#[must_use]
pub fn advice(error: &Error) -> String {
    format!(
        "{}: in the trigger of [sync] the row is known by its columns only, without those that PostgreSQL computes (generated and system columns)",
        describe(error)
    )
}
