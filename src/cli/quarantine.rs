//! `backfilld quarantine NAME [--retry]`

use std::process::ExitCode;

use super::arguments::Quarantine;
use super::failure::Failure;
use super::{Context, output};
use crate::job::preflight::{self, Fixed, PreflightError};
use crate::job::spec::Spec;
use crate::state::quarantine::{self, Quarantined};
use crate::state::{StateError, event, job};
use crate::walk::again::{self, Again};

pub(super) async fn run(context: &Context, command: &Quarantine) -> Result<ExitCode, Failure> {
    let client = context.connect_to_state().await?;
    let name = &command.name;
    let record = job::load(&client, &context.state, name).await?;
    let rows = quarantine::list(&client, &context.state, name).await?;
    if rows.is_empty() {
        output::line(format!("no row of job {name} is in quarantine"))?;
        return Ok(ExitCode::SUCCESS);
    }
    if command.retry {
        return retry(context, client, &record, &rows).await;
    }
    for row in &rows {
        let at = row.at.strftime("%Y-%m-%d %H:%M:%SZ");
        output::line(format!("{at}  key {}  {}  {}", key(row), row.sqlstate, row.message))?;
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
    let examined = preflight::examine(&client, &spec, state.schema(), Fixed::of(record).as_ref()).await;
    let plan = match examined {
        Ok(preflight) => preflight.plan(&spec, record.revision),
        Err(PreflightError::Problems(problems)) => {
            return Err(Failure::runtime(format!("job {name} cannot be worked on: {}", problems.join("; "))));
        }
        Err(PreflightError::Database(error)) => return Err(StateError::from(error).into()),
    };
    let (mut changed, mut gone, mut left) = (0, 0, 0);
    for row in rows {
        match again::row(&mut client, state, &plan, name, row).await? {
            Again::Changed => changed += 1,
            Again::NothingToDo => gone += 1,
            Again::Refused(message) => {
                left += 1;
                output::line(format!("key {}: still cannot be changed: {message}", key(row)))?;
            }
            Again::Taken => {
                left += 1;
                output::line(format!(
                    "key {}: not tried: the job is being changed, or somebody else tries it",
                    key(row)
                ))?;
            }
        }
    }
    let nothing = if gone > 0 { format!(", {gone} had nothing left to change") } else { String::new() };
    let told = format!("{changed} of {} rows changed{nothing}, {left} stay in quarantine", rows.len());
    event::record(&client, state, Some(name), "quarantine retried", &context.actor, &told).await?;
    if left > 0 {
        return Err(Failure::runtime(format!("job {name}: {told}")));
    }
    output::line(format!("job {name}: {told}"))?;
    Ok(ExitCode::SUCCESS)
}

fn key(row: &Quarantined) -> String {
    format!("({})", row.key.join(", "))
}
