//! `backfilld verify NAME`

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio_postgres::Client;

use super::arguments::Name;
use super::failure::{Failure, NOT_COMPLETE};
use super::output::{count, key};
use super::{Context, output};
use crate::database::{self, describe};
use crate::job::preflight::{self, Fixed, PreflightError};
use crate::job::spec::{Named, Spec};
use crate::state::{StateError, job, quarantine};
use crate::walk::Plan;
use crate::walk::estimate;
use crate::walk::keyset::Start;
use crate::walk::matching::{self, Counted, Wanted};
use crate::walk::sizer::Sizer;

/// So many keys are told.
const EXAMPLES: usize = 3;

pub(super) async fn run(context: &Context, command: &Name) -> Result<ExitCode, Failure> {
    let client = context.connect_to_state().await?;
    let name = &command.name;
    let record = job::load(&client, &context.state, name).await?;
    let spec = Spec::from_json(&record.spec).map_err(|problems| Failure::runtime(problems.join("\n")))?;
    let filter = wanted(&spec).map_err(|why| Failure::usage(format!("job {name}: {why}")))?;
    let mut found = Found::default();
    for (part, plan) in plans(context, &client, &record, &spec).await? {
        let aside = quarantine::keys_sql(&context.state, name, part);
        walk(&client, &plan, &spec, filter, &aside, &mut found)
            .await
            .map_err(|why| Failure::runtime(format!("job {name} cannot be verified: {why}")))?;
    }
    output::line(told(name, &spec, &found))?;
    Ok(if found.matching + found.aside == 0 { ExitCode::SUCCESS } else { ExitCode::from(NOT_COMPLETE) })
}

/// The plan of the table, or of each of its partitions as they are now.
async fn plans(
    context: &Context,
    client: &Client,
    record: &job::Record,
    spec: &Spec,
) -> Result<Vec<(Option<u32>, Plan)>, Failure> {
    let failed = |error| match error {
        PreflightError::Database(error) => StateError::from(error).into(),
        other => Failure::runtime(format!("job {} cannot be verified: {}", record.name, other.told())),
    };
    let schema = context.state.schema();
    let fixed = Fixed::of(record);
    let preflight = preflight::examine(client, spec, schema, fixed.as_ref()).await.map_err(failed)?;
    let Some(parts) = &preflight.parts else {
        return Ok(vec![(None, preflight.plan(spec, record.revision))]);
    };
    let fixed = fixed.unwrap_or_else(|| Fixed {
        key_columns: preflight.keyset.column_names(),
        key_index: preflight.keyset.index.clone(),
        table_oid: preflight.root.oid,
        part: None,
    });
    let mut plans = Vec::new();
    for part in parts {
        let of_part = fixed.clone().of_part(Some(part.oid));
        match preflight::examine(client, spec, schema, Some(&of_part)).await {
            Ok(preflight) => plans.push((Some(part.oid), preflight.plan(spec, record.revision))),
            // Dropped or detached since they were listed: its rows are not the table's any more.
            Err(PreflightError::PartGone(_)) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(plans)
}

/// The condition whose rows are counted, or why there is nothing to count.
fn wanted(spec: &Spec) -> Result<&str, &'static str> {
    match spec.operation() {
        Named::Copy(_) => Err(
            "there is nothing to count: a copy leaves its rows as they are, so they match copy.where as before",
        ),
        Named::Statement(_) => {
            Err("there is nothing to count: a statement has no where that would tell the rows that are left")
        }
        operation => operation.filter().ok_or(
            "there is nothing to count: it has no update.where that would tell the rows that are left",
        ),
    }
}

/// What was found in the whole range.
#[derive(Default)]
struct Found {
    scanned: u64,
    matching: u64,
    aside: u64,
    examples: Vec<Vec<String>>,
}

/// Counts batch by batch from the first row that there is now to the last, those included that came since the job
/// began.
async fn walk(
    client: &Client,
    plan: &Plan,
    spec: &Spec,
    filter: &str,
    aside: &str,
    found: &mut Found,
) -> Result<(), String> {
    let range = range(client, plan, spec).await.map_err(|error| describe(&error))?;
    let Some(Range { first_key: mut start_key, last_key, rows }) = range else { return Ok(()) };
    let bar = bar(rows);
    let mut sizer = Sizer::new(spec.batch.bounds());
    let (mut start, mut failures) = (Start::At, 0);
    loop {
        let examples = EXAMPLES - found.examples.len();
        let examples = u32::try_from(examples).expect("a few");
        let wanted = Wanted { filter, aside: Some(aside), last_key: &last_key, examples };
        let begun = Instant::now();
        let counted = match matching::count(client, plan, &wanted, start, &start_key, sizer.rows()).await {
            Ok(counted) => counted,
            Err(error)
                if database::Failure::of(&error) == database::Failure::Contention
                    && failures < spec.limits.max_retries() =>
            {
                failures += 1;
                sizer.timed_out(sizer.rows());
                client.batch_execute("ROLLBACK").await.map_err(|error| describe(&error))?;
                continue;
            }
            Err(error) => return Err(format!("behind key {}: {}", key(&start_key), describe(&error))),
        };
        let Counted { rows_scanned, finished, .. } = counted;
        if !counted.is_same_table {
            return Err(format!("{} was replaced by another table just now", plan.keyset.table));
        }
        failures = 0;
        sizer.done(rows_scanned, begun.elapsed());
        found.scanned += rows_scanned;
        found.matching += counted.rows_matching;
        found.aside += counted.rows_aside;
        found.examples.extend(counted.examples);
        bar.inc(rows_scanned);
        if finished {
            bar.finish_and_clear();
            return Ok(());
        }
        (start, start_key) = (Start::After, counted.cursor_key);
        if let Some(rate) = spec.limits.rows_per_second() {
            let due = Duration::from_secs_f64((rows_scanned as f64 / rate).min(60.0));
            tokio::time::sleep(due.saturating_sub(begun.elapsed())).await;
        }
    }
}

/// The range that there is now.
struct Range {
    first_key: Vec<String>,
    last_key: Vec<String>,
    /// About how many rows it has; asked for on a terminal only.
    rows: Option<u64>,
}

async fn range(client: &Client, plan: &Plan, spec: &Spec) -> Result<Option<Range>, tokio_postgres::Error> {
    client.batch_execute(&format!("BEGIN READ ONLY;\n{}", plan.settings_sql())).await?;
    let ends = estimate::ends(client, &plan.keyset, spec.walk.from(), spec.walk.to()).await?;
    let Some((first_key, last_key)) = ends else {
        client.batch_execute("ROLLBACK").await?;
        return Ok(None);
    };
    let mut rows = None;
    if std::io::stderr().is_terminal() {
        // Without an estimate there is no progress to show, and all else goes on.
        let estimate = estimate::rows(client, &plan.keyset, Start::At, &first_key, &last_key, None).await;
        rows = estimate.ok().and_then(|estimate| u64::try_from(estimate.range_rows).ok());
    }
    client.batch_execute("ROLLBACK").await?;
    Ok(Some(Range { first_key, last_key, rows }))
}

fn bar(rows: Option<u64>) -> ProgressBar {
    let Some(rows) = rows else { return ProgressBar::hidden() };
    let bar = ProgressBar::with_draw_target(Some(rows), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("[{bar:20}] {human_pos} of about {human_len} rows")
        .expect("the template is constant");
    bar.set_style(style.progress_chars("=> "));
    bar
}

fn told(name: &str, spec: &Spec, found: &Found) -> String {
    let number = |rows: u64| count(i64::try_from(rows).unwrap_or(i64::MAX));
    let condition = format!("{}.where", spec.operation().name());
    let scanned = number(found.scanned);
    let quarantined = match found.aside {
        0 => String::new(),
        rows => format!("; still matching in quarantine: {} (`backfilld quarantine {name}`)", number(rows)),
    };
    if found.matching == 0 {
        return format!("job {name}: no row of {scanned} matches {condition}{quarantined}");
    }
    let examples: Vec<String> = found.examples.iter().map(|of| key(of)).collect();
    format!(
        "job {name}: {} of {scanned} rows match {condition}, such as key {}{quarantined}",
        number(found.matching),
        examples.join(", ")
    )
}
