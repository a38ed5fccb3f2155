//! Real batches that are rolled back: what a job would do, seen rather than guessed.
//!
//! Nothing here is part of a walk. The statements are the walk's own ([`Operation::sql`], under the settings of a
//! batch), but no state schema is read or written, no gate passed, and nothing ever committed. A process that is killed
//! half-way leaves an open transaction to the server, which ends it by the batch's own timeouts.

mod evidence;
mod rows;

use std::time::{Duration, Instant};

use postgres_types::Type;
use tokio_postgres::{Client, Error};

use super::batch::{self, Extent, Plan};
use super::estimate;
use super::isolation::Isolation;
use super::keyset::Start;
use super::matching;
use super::operation::Operation;
use super::parameters::Parameters;
use crate::database::{Failure, describe, describe_with_detail};
use evidence::Explained;

pub use evidence::{Fired, Locked, Touched};
pub use rows::Sample;

/// For so long a row that matches is looked for.
const SEARCH: Duration = Duration::from_secs(10);
/// Rows looked through at once.
const SEARCH_ROWS: u64 = 10_000;
/// So many rows are shown.
const SAMPLES: usize = 3;

/// What is asked of a trial.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// How many batches.
    pub batches: u32,
    /// How many rows each scans, at most.
    pub rows: u64,
    /// Where the walk begins, as in the job file.
    pub from: &'a [String],
    /// Where it ends.
    pub to: &'a [String],
}

/// What a trial has shown.
#[derive(Debug, Clone, Default)]
pub struct Trial {
    /// The ends of the walk. None: no row lies within its bounds.
    pub ends: Option<(Vec<String>, Vec<String>)>,
    /// Rows at the walk's beginning that were passed over, since none of them matches.
    pub rows_passed_over: u64,
    /// Why no more were passed over, where a row that matches was not found.
    pub search: Search,
    /// The batches, in order.
    pub batches: Vec<Batch>,
    /// A few rows, before and after.
    pub samples: Vec<Sample>,
    /// Why no rows could be shown, where there are some.
    pub no_samples: Option<String>,
    /// The keys of the rows to show.
    sample_keys: Vec<Vec<String>>,
}

/// How the search for the first row that matches ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Search {
    /// One was found, or all rows are meant.
    #[default]
    Found,
    /// No row of the walk matches.
    None,
    /// It took too long.
    GivenUp,
}

/// A batch that was rolled back.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Rows scanned.
    pub rows_scanned: u64,
    /// The last key of the batch.
    pub last_key: Vec<String>,
    /// What it did, or why it failed.
    pub outcome: Result<Done, Failed>,
}

/// What a batch did.
#[derive(Debug, Clone)]
pub struct Done {
    /// Rows changed; of a statement those of all tables. None where the server does not count.
    pub rows_changed: Option<u64>,
    /// Time spent on finding the bound and changing the rows.
    pub execution: Duration,
    /// WAL of the statement itself: without that of AFTER triggers and of the commit.
    pub wal_bytes: u64,
    /// Locks that the transaction held at its end.
    pub locks: Vec<Locked>,
    /// Rows changed in each table, those by triggers and foreign keys too. None where the server does not count.
    pub touched: Option<Vec<Touched>>,
    /// Triggers that ran.
    pub fired: Vec<Fired>,
}

/// Why a batch failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// What kind of error it is.
    pub failure: Failure,
    /// What the server said.
    pub message: String,
    /// The first row that cannot be changed, as the walk would find it, and what the server said of it in full.
    pub row: Option<(Vec<String>, String)>,
}

/// A statement that did not do what it should.
#[derive(Debug)]
enum Mistake {
    Server(Error),
    /// So many rows were taken out, and so many put in.
    Moved(u64, u64),
}

impl From<Error> for Mistake {
    fn from(error: Error) -> Self {
        Self::Server(error)
    }
}

impl Mistake {
    fn failure(&self) -> Failure {
        match self {
            Self::Server(error) => Failure::of_row(error),
            Self::Moved(..) => Failure::Data,
        }
    }

    fn message(&self) -> String {
        match self {
            Self::Server(error) => describe(error),
            Self::Moved(gone, kept) => format!(
                "{} of {gone} rows did not arrive in the table of move.into: a trigger there has refused them",
                gone.saturating_sub(*kept)
            ),
        }
    }

    fn in_full(&self) -> String {
        match self {
            Self::Server(error) => describe_with_detail(error),
            Self::Moved(..) => self.message(),
        }
    }
}

/// Runs a trial. The client must not be inside a transaction; after an error it may be inside a failed one.
///
/// A batch that fails is an outcome; an error is returned where the ends of the walk cannot be found, or the connection
/// is lost.
pub async fn run(client: &Client, plan: &Plan, request: Request<'_>) -> Result<Trial, Error> {
    let mut trial = Trial::default();
    begin(client, plan).await?;
    let ends = estimate::ends(client, &plan.keyset, request.from, request.to).await?;
    client.batch_execute("ROLLBACK").await?;
    let Some((first_key, end_key)) = ends.clone() else { return Ok(trial) };
    trial.ends = ends;
    let (mut start, mut start_key) = (Start::At, first_key);
    if let Some(filter) = plan.operation.filter() {
        (start, start_key) =
            first_match(client, plan, filter, (start, start_key), &end_key, &mut trial).await?;
        if trial.search == Search::None {
            return Ok(trial);
        }
    }
    for _ in 0..request.batches {
        let samples = if trial.sample_keys.is_empty() { SAMPLES } else { 0 };
        begin(client, plan).await?;
        let executing = Instant::now();
        let extent =
            match batch::extent(client, &plan.keyset, start, &start_key, &end_key, request.rows).await {
                Ok(extent) => extent,
                Err(error) => {
                    let failed = Mistake::from(error).told()?;
                    client.batch_execute("ROLLBACK").await?;
                    trial.batches.push(Batch { rows_scanned: 0, last_key: start_key, outcome: Err(failed) });
                    break;
                }
            };
        if extent.rows == 0 {
            client.batch_execute("ROLLBACK").await?;
            break;
        }
        let tried = change(client, plan, &extent, samples, executing, &mut trial).await;
        // Whatever became of it. A connection that is lost has rolled it back too.
        client.batch_execute("ROLLBACK").await?;
        let outcome = match tried {
            Ok(done) => Ok(done),
            Err(mistake) => {
                let mut failed = mistake.told()?;
                if failed.failure == Failure::Data {
                    failed.row = first_bad_row(client, plan, &extent).await?;
                }
                Err(failed)
            }
        };
        // A row that cannot be changed is set aside by the walk, which goes on; all else would come again.
        let goes_on = outcome.as_ref().err().is_none_or(|failed| failed.failure == Failure::Data);
        let Extent { last_key, rows, is_last, .. } = extent;
        trial.batches.push(Batch { rows_scanned: rows, last_key: last_key.clone(), outcome });
        if is_last || !goes_on {
            break;
        }
        (start, start_key) = (Start::After, last_key);
    }
    rows::arrivals(client, plan, &mut trial).await?;
    Ok(trial)
}

impl Mistake {
    /// As the failure of a batch; a lost connection is an error of the trial itself.
    fn told(self) -> Result<Failed, Error> {
        let (failure, message) = (self.failure(), self.message());
        match self {
            Self::Server(error) if failure == Failure::Connection => Err(error),
            _ => Ok(Failed { failure, message, row: None }),
        }
    }
}

/// Opens a transaction as a batch does, but for the gate.
async fn begin(client: &Client, plan: &Plan) -> Result<(), Error> {
    let settings = plan.settings_sql();
    let sql = format!("BEGIN ISOLATION LEVEL READ COMMITTED;\n{settings}SET CONSTRAINTS ALL IMMEDIATE");
    client.batch_execute(&sql).await
}

/// Looks for the first row that matches, so that batches are shown that do something.
async fn first_match(
    client: &Client,
    plan: &Plan,
    filter: &str,
    (mut start, mut start_key): (Start, Vec<String>),
    end_key: &[String],
    trial: &mut Trial,
) -> Result<(Start, Vec<String>), Error> {
    let wanted = matching::Wanted { filter, aside: None, last_key: end_key, examples: 1 };
    let begun = Instant::now();
    loop {
        let counted = match matching::count(client, plan, &wanted, start, &start_key, SEARCH_ROWS).await {
            Ok(counted) => counted,
            Err(error) if Failure::of(&error) == Failure::Connection => return Err(error),
            // The batches will tell.
            Err(_) => {
                client.batch_execute("ROLLBACK").await?;
                return Ok((start, start_key));
            }
        };
        if let Some(key) = counted.examples.into_iter().next() {
            let range = Parameters::new(&plan.keyset, &start_key, &key);
            let limit = i64::try_from(SEARCH_ROWS).expect("it is a small number");
            begin(client, plan).await?;
            let row = client
                .query_typed_one(&plan.keyset.count_sql(start), &range.with(&[(&limit, Type::INT8)]))
                .await?;
            client.batch_execute("ROLLBACK").await?;
            // The row itself is one of them.
            trial.rows_passed_over += u64::try_from(row.get::<_, i64>(0) - 1).unwrap_or(0);
            return Ok((Start::At, key));
        }
        trial.rows_passed_over += counted.rows_scanned;
        if counted.finished {
            trial.search = Search::None;
            return Ok((start, start_key));
        }
        (start, start_key) = (Start::After, counted.cursor_key);
        if begun.elapsed() > SEARCH {
            trial.search = Search::GivenUp;
            return Ok((start, start_key));
        }
    }
}

/// Changes the rows of an extent inside the transaction that is open, and looks at what has become of them.
async fn change(
    client: &Client,
    plan: &Plan,
    extent: &Extent,
    samples: usize,
    executing: Instant,
    trial: &mut Trial,
) -> Result<Done, Mistake> {
    let finding = executing.elapsed();
    let before = rows::before(client, plan, extent, samples).await?;
    let touched_before = evidence::touched(client).await?;
    let changing = Instant::now();
    let explained = explain(client, plan, extent).await?;
    let execution = finding + changing.elapsed();
    let locks = evidence::locks(client).await?;
    let touched = evidence::since(touched_before, evidence::touched(client).await?);
    if trial.sample_keys.is_empty() {
        trial.sample_keys = before.iter().map(|row| row.key.clone()).collect();
        trial.samples = rows::after(client, plan, before).await?;
    }
    let rows_changed = match plan.operation {
        Operation::Statement { .. } => {
            touched.as_ref().map(|tables| tables.iter().map(|table| table.inserted + table.changed()).sum())
        }
        _ => Some(explained.rows),
    };
    let (wal_bytes, fired) = (explained.wal_bytes, explained.fired);
    Ok(Done { rows_changed, execution, wal_bytes, locks, touched, fired })
}

/// Runs the statement of a batch under EXPLAIN ANALYZE, which does all that the statement does and tells what it took.
async fn explain(client: &Client, plan: &Plan, extent: &Extent) -> Result<Explained, Mistake> {
    let sql = plan.operation.sql(&plan.keyset, extent.start, &extent.start_key, &extent.last_key);
    // The plan counts the rows that a statement returns.
    let returning = match plan.operation {
        Operation::Update { .. } | Operation::Delete { .. } | Operation::Copy { .. } => "\nRETURNING true",
        Operation::Move { .. } | Operation::Statement { .. } => "",
    };
    let range = Parameters::new(&plan.keyset, &extent.start_key, &extent.last_key);
    let sql = format!("EXPLAIN (ANALYZE, WAL, TIMING OFF, FORMAT JSON) {sql}{returning}");
    let told: serde_json::Value = client.query_typed_one(&sql, &range.all()).await?.get(0);
    let explained = Explained::read(&told);
    match (&plan.operation, explained.moved) {
        (Operation::Move { .. }, Some((gone, kept))) if gone != kept => Err(Mistake::Moved(gone, kept)),
        _ => Ok(explained),
    }
}

/// Finds the first row of an extent that cannot be changed, as the walk does: half of the batch, a quarter, down to the
/// row. What can be changed before it stays so until the end, since it may be in the row's way.
async fn first_bad_row(
    client: &Client,
    plan: &Plan,
    failed: &Extent,
) -> Result<Option<(Vec<String>, String)>, Error> {
    begin(client, plan).await?;
    let found = narrow(client, plan, failed).await;
    client.batch_execute("ROLLBACK").await?;
    match found {
        Ok(found) => Ok(found),
        Err(error) if Failure::of(&error) == Failure::Connection => Err(error),
        // Somebody was in the way: the message of the whole batch will have to do.
        Err(_) => Ok(None),
    }
}

async fn narrow(
    client: &Client,
    plan: &Plan,
    failed: &Extent,
) -> Result<Option<(Vec<String>, String)>, Error> {
    let mut isolation = Isolation::default();
    isolation.failed(failed.rows);
    let (mut start, mut start_key) = (failed.start, failed.start_key.clone());
    loop {
        let rows = isolation.rows(failed.rows);
        let extent = batch::extent(client, &plan.keyset, start, &start_key, &failed.last_key, rows).await?;
        if extent.rows == 0 {
            return Ok(None);
        }
        client.batch_execute("SAVEPOINT row").await?;
        match carry_out(client, plan, &extent).await {
            Ok(()) => isolation.done(failed.rows),
            Err(mistake) if mistake.failure() == Failure::Data => {
                client.batch_execute("ROLLBACK TO SAVEPOINT row").await?;
                if rows == 1 {
                    return Ok(Some((extent.last_key, mistake.in_full())));
                }
                isolation.failed(rows);
                continue;
            }
            Err(Mistake::Server(error)) => return Err(error),
            Err(Mistake::Moved(..)) => return Ok(None),
        }
        if extent.is_last {
            return Ok(None);
        }
        (start, start_key) = (Start::After, extent.last_key);
    }
}

async fn carry_out(client: &Client, plan: &Plan, extent: &Extent) -> Result<(), Mistake> {
    let sql = plan.operation.sql(&plan.keyset, extent.start, &extent.start_key, &extent.last_key);
    let range = Parameters::new(&plan.keyset, &extent.start_key, &extent.last_key);
    let Operation::Move { .. } = plan.operation else {
        client.execute_typed(&sql, &range.all()).await?;
        return Ok(());
    };
    let row = client.query_typed_one(&sql, &range.all()).await?;
    let number = |index: usize| u64::try_from(row.get::<_, i64>(index)).expect("a count is not negative");
    let (gone, kept) = (number(0), number(1));
    if gone == kept { Ok(()) } else { Err(Mistake::Moved(gone, kept)) }
}
