//! `backfilld quarantine NAME [--retry]`

use std::collections::BTreeMap;
use std::process::ExitCode;

use super::arguments::Quarantine;
use super::failure::Failure;
use super::output::{key, shown};
use super::{Context, output};
use crate::job::preflight::{self, Fixed, PreflightError};
use crate::job::spec::Spec;
use crate::state::quarantine::{self, Quarantined};
use crate::state::{StateError, event, job};
use crate::walk::again::{self, Again};

/// What the audit log calls it.
const RETRIED: &str = "quarantine retried";

pub(super) async fn run(context: &Context, command: &Quarantine) -> Result<ExitCode, Failure> {
    let client = context.connect_to_state().await?;
    let name = &command.name;
    let record = job::load(&client, &context.state, name).await?;
    let rows = quarantine::list(&client, &context.state, name, i64::MAX).await?;
    if rows.is_empty() {
        output::line(format!("no row of job {name} is in quarantine"))?;
        return Ok(ExitCode::SUCCESS);
    }
    if command.retry {
        return retry(context, client, &record, &rows).await;
    }
    for row in &rows {
        let at = row.at.strftime("%Y-%m-%d %H:%M:%SZ");
        output::line(format!("{at}  key {}  {}  {}", key(&row.key), row.sqlstate, shown(&row.message)))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn retry(
    context: &Context,
    mut client: tokio_postgres::Client,
    record: &job::Record,
    rows: &[Quarantined],
) -> Result<ExitCode, Failure> {
    let (state, name) = (&context.state, &record.name);
    let spec = Spec::from_json(&record.spec).map_err(|problems| Failure::runtime(problems.join("\n")))?;
    // One for each partition, of a table that has any.
    let mut plans = BTreeMap::new();
    for part in rows.iter().map(|row| row.table_oid) {
        if plans.contains_key(&part) {
            continue;
        }
        let fixed = Fixed::of(record).map(|fixed| fixed.of_part(part));
        let plan = match preflight::examine(&client, &spec, state.schema(), fixed.as_ref()).await {
            Ok(preflight) => Some(preflight.plan(&spec, record.revision)),
            Err(PreflightError::PartGone(_)) => None,
            Err(PreflightError::Database(error)) => return Err(StateError::from(error).into()),
            Err(error) => {
                return Err(Failure::runtime(format!("job {name} cannot be worked on: {}", error.told())));
            }
        };
        plans.insert(part, plan);
    }
    let mut outcome = Outcome { rows: rows.len(), ..Outcome::default() };
    for row in rows {
        let tried = match plans.get(&row.table_oid).and_then(Option::as_ref) {
            Some(plan) => again::row(&mut client, state, plan, name, row).await,
            None => Ok(Again::Refused("its partition is gone, or detached from the table".to_owned())),
        };
        let why = match tried {
            Ok(Again::Changed) => {
                outcome.changed += 1;
                continue;
            }
            Ok(Again::NothingToDo) => {
                outcome.without_change += 1;
                continue;
            }
            Ok(Again::Refused(message)) => format!("still cannot be changed: {message}"),
            Ok(Again::Busy(message)) => format!("not changed, somebody is in the way: {message}"),
            Ok(Again::Taken) => {
                "not tried: somebody else has just tried it, or changes the job or its table".to_owned()
            }
            Err(error) => {
                // What was changed before is, and the audit log has it, as far as the database can be had.
                let told = outcome.told();
                let _ = event::record(&client, state, Some(name), RETRIED, &context.actor, &told).await;
                output::line(format!("job {name}: {told}"))?;
                return Err(error.into());
            }
        };
        output::line(format!("key {}: {why}", key(&row.key)))?;
    }
    let told = outcome.told();
    event::record(&client, state, Some(name), RETRIED, &context.actor, &told).await?;
    if outcome.left() > 0 {
        return Err(Failure::runtime(format!("job {name}: {told}")));
    }
    output::line(format!("job {name}: {told}"))?;
    Ok(ExitCode::SUCCESS)
}

/// What became of the rows.
#[derive(Default)]
struct Outcome {
    rows: usize,
    changed: usize,
    without_change: usize,
}

impl Outcome {
    fn left(&self) -> usize {
        self.rows - self.changed - self.without_change
    }

    fn told(&self) -> String {
        let without_change = match self.without_change {
            0 => String::new(),
            rows => format!(", {rows} had nothing left to change"),
        };
        let (changed, rows, left) = (self.changed, self.rows, self.left());
        format!("{changed} of {rows} rows changed{without_change}, {left} not")
    }
}
