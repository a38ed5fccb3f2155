//! One random table, one job on it, and the traffic that goes on meanwhile.

use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;
use proptest::sample::Index;

use super::key::KeyType;
use super::table::Table;
use crate::support::daemon::backfilld;
use crate::support::database::Database;
use crate::support::job_file;

/// A table, a job, and what happens meanwhile.
#[derive(Debug, Clone)]
pub(super) struct Case {
    pub(super) key: Vec<KeyType>,
    pub(super) index: IndexShape,
    /// Whether names need quoting.
    pub(super) odd_names: bool,
    pub(super) rows: Vec<Vec<String>>,
    pub(super) descending: bool,
    pub(super) batch_rows: u32,
    pub(super) filter: Filter,
    /// A bound is a row's key or the first values of it.
    pub(super) from: Option<(Index, usize)>,
    pub(super) to: Option<(Index, usize)>,
    pub(super) traffic: Vec<Operation>,
}

/// The index that the walk follows.
#[derive(Debug, Clone)]
pub(super) enum IndexShape {
    PrimaryKey,
    Unique { descending: bool, nulls_first: Vec<bool>, collation: Option<Index>, include: bool },
}

/// Which rows the job is to change.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Filter {
    Absent,
    True,
    /// Rows whose tag is 0, one of so many tags.
    OneTagOf(i32),
    None,
}

impl Filter {
    pub(super) fn sql(self) -> Option<&'static str> {
        match self {
            Self::Absent => None,
            Self::True => Some("payload >= 0"),
            Self::OneTagOf(_) => Some("tag = 0"),
            Self::None => Some("tag = -1"),
        }
    }

    pub(super) fn matches(self, tag: i32) -> bool {
        match self {
            Self::Absent | Self::True => true,
            Self::OneTagOf(_) => tag == 0,
            Self::None => false,
        }
    }

    pub(super) fn tag(self, number: i32) -> i32 {
        match self {
            Self::OneTagOf(tags) => number * 7 % tags,
            _ => number % 3,
        }
    }
}

/// What somebody else does to the table while it is walked.
#[derive(Debug, Clone)]
pub(super) enum Operation {
    Insert(Vec<String>),
    /// Changes a column that nobody asks for.
    Touch(Index),
    /// Changes what the filter asks for.
    Tag(Index, i32),
    Delete(Index),
    /// Holds the locks of several rows at once.
    TouchMany(Vec<Index>),
}

/// Random cases with keys of the types that `key_types` gives.
pub(super) fn cases(key_types: impl Strategy<Value = Vec<KeyType>>) -> impl Strategy<Value = Case> {
    key_types.prop_flat_map(|key| {
        let values = key.iter().map(|column| column.values()).collect::<Vec<_>>();
        let rows = prop_oneof![
            1 => prop::collection::vec(values.clone(), 0..3),
            9 => prop::collection::vec(values.clone(), 3..400),
        ];
        let bound = || prop::option::weighted(0.3, (any::<Index>(), 1..=key.len()));
        let traffic = prop_oneof![
            1 => Just(Vec::new()),
            3 => prop::collection::vec(operations(values), 1..120),
        ];
        (
            (Just(key.clone()), index_shapes(key.len()), any::<bool>(), rows),
            (any::<bool>(), 1..=60_u32, filters(), bound(), bound(), traffic),
        )
            .prop_map(
                |((key, index, odd_names, rows), (descending, batch_rows, filter, from, to, traffic))| Case {
                    key,
                    index,
                    odd_names,
                    rows,
                    descending,
                    batch_rows,
                    filter,
                    from,
                    to,
                    traffic,
                },
            )
    })
}

fn index_shapes(width: usize) -> impl Strategy<Value = IndexShape> {
    let nulls_first = prop::collection::vec(any::<bool>(), width);
    prop_oneof![
        1 => Just(IndexShape::PrimaryKey),
        1 => (any::<bool>(), nulls_first, any::<Option<Index>>(), any::<bool>()).prop_map(
            |(descending, nulls_first, collation, include)| {
                IndexShape::Unique { descending, nulls_first, collation, include }
            }
        ),
    ]
}

fn filters() -> impl Strategy<Value = Filter> {
    prop_oneof![
        2 => Just(Filter::Absent),
        2 => Just(Filter::True),
        4 => (2..9).prop_map(Filter::OneTagOf),
        1 => Just(Filter::None),
    ]
}

fn operations(values: Vec<BoxedStrategy<String>>) -> impl Strategy<Value = Operation> {
    prop_oneof![
        3 => values.prop_map(Operation::Insert),
        3 => any::<Index>().prop_map(Operation::Touch),
        1 => (any::<Index>(), 0..3).prop_map(|(row, tag)| Operation::Tag(row, tag)),
        1 => any::<Index>().prop_map(Operation::Delete),
        1 => prop::collection::vec(any::<Index>(), 2..8).prop_map(Operation::TouchMany),
    ]
}

impl Case {
    /// Sets the table up, runs the job to its end with the traffic beside it, and counts.
    pub(super) async fn check(&self, database: &Database) -> Result<(), TestCaseError> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let job = format!("case-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let client = database.connect().await;
        // The databases of some cases have settings of their own.
        client
            .batch_execute(
                "SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres';
                 SET standard_conforming_strings = on",
            )
            .await
            .unwrap();
        let table = Table { case: self, name: job.clone() };
        let before = table.set_up(&client).await;

        let folder = tempfile::tempdir().unwrap();
        let file = job_file(folder.path(), "job.toml", &table.job_text());
        let (url, path) = (database.url().to_owned(), file.to_str().unwrap().to_owned());
        let walk =
            tokio::task::spawn_blocking(move || backfilld(&url, &["run", "--until-idle", "--job", &path]));
        let meddled = table.meddle(&client, &walk).await;
        let run = walk.await.unwrap();
        if run.stderr.contains("lies behind walk.to") {
            prop_assert_eq!(run.code, 2, "{}", run.stderr);
            return Ok(());
        }
        prop_assert_eq!(run.code, 0, "{}", run.stderr);
        table.count(&client, &before, &meddled).await
    }
}
