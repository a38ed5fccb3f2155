//! What a finish does next: what is wanted and what the catalogs say in, one step out.
//!
//! Nothing is kept of where a finish stands. Whoever goes on with it, after a kill perhaps, finds the next step from
//! the catalogs, and so comes to the same end.

use std::collections::{BTreeMap, BTreeSet};

/// What a finish is to bring about, in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Columns that are to be NOT NULL.
    pub not_null: Vec<String>,
    /// Constraints that are to be valid.
    pub validate: Vec<String>,
    /// Whether the table is to have new statistics.
    pub analyze: bool,
}

/// What the catalogs say of what is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The columns that are wanted and there.
    pub columns: BTreeMap<String, Column>,
    /// The constraints that are wanted and there, and whether they are valid.
    pub constraints: BTreeMap<String, bool>,
    /// The job has a trigger that keeps new rows in step.
    pub has_sync_trigger: bool,
}

/// A column that is to be NOT NULL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Column {
    /// It is, for every row.
    pub not_null: bool,
    /// A NOT NULL constraint that holds for new rows only (PostgreSQL 18).
    pub unproven: Option<String>,
    /// Our CHECK: there, and whether it is valid.
    pub check: Option<bool>,
}

/// What this owner of a finish has done that leaves no trace in the catalogs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traces {
    /// Columns that were seen to have no NULL.
    pub looked: BTreeSet<String>,
    /// Columns whose CHECK turned out not to hold for all rows.
    pub refuted: BTreeSet<String>,
    /// The table has new statistics.
    pub analyzed: bool,
}

/// One step of a finish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Look whether a row has NULL in the column.
    ///
    /// Before anything is added: from the moment a CHECK is there, also one that is NOT VALID, a NULL cannot be written
    /// any more, and old code that still does would fail.
    Look(String),
    /// Add a CHECK that the column is not NULL, which holds for new rows only.
    AddCheck(String),
    /// Let it hold for every row.
    ValidateCheck(String),
    /// Set the column NOT NULL, which the CHECK has proven, and drop the CHECK.
    SetNotNull(String),
    /// Drop a CHECK that is of no use any more.
    DropCheck(String),
    /// Let a constraint hold for every row.
    Validate(String),
    /// Take statistics.
    Analyze,
    /// Drop the trigger that keeps new rows in step.
    RemoveTrigger,
}

/// Something that is wanted and is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// A column.
    #[error("finish.not_null: the table has no column {0} any more")]
    Column(String),
    /// A constraint.
    #[error("finish.validate: the table has no constraint {0} any more")]
    Constraint(String),
}

/// The step that comes next; none when all is done.
pub fn next(wanted: &Wanted, facts: &Facts, traces: &Traces) -> Result<Option<Step>, Missing> {
    for name in &wanted.not_null {
        let column = facts.columns.get(name).ok_or_else(|| Missing::Column(name.clone()))?;
        if let Some(step) = step_of(name, column, traces) {
            return Ok(Some(step));
        }
    }
    for name in &wanted.validate {
        let is_valid = facts.constraints.get(name).ok_or_else(|| Missing::Constraint(name.clone()))?;
        if !is_valid {
            return Ok(Some(Step::Validate(name.clone())));
        }
    }
    if wanted.analyze && !traces.analyzed {
        return Ok(Some(Step::Analyze));
    }
    // Last: until here new rows are kept in step.
    Ok(facts.has_sync_trigger.then_some(Step::RemoveTrigger))
}

fn step_of(name: &str, column: &Column, traces: &Traces) -> Option<Step> {
    let owned = || name.to_owned();
    match (column.not_null, column.check) {
        (true, None) => None,
        (true, Some(_)) => Some(Step::DropCheck(owned())),
        (false, Some(true)) => Some(Step::SetNotNull(owned())),
        (false, Some(false)) if traces.refuted.contains(name) => Some(Step::DropCheck(owned())),
        (false, Some(false)) => Some(Step::ValidateCheck(owned())),
        (false, None) => Some(match &column.unproven {
            Some(constraint) => Step::Validate(constraint.clone()),
            None if traces.looked.contains(name) => Step::AddCheck(owned()),
            None => Step::Look(owned()),
        }),
    }
}

impl Traces {
    /// Notes that a step was carried out.
    pub fn done(&mut self, step: &Step) {
        match step {
            Step::Look(column) => {
                self.looked.insert(column.clone());
            }
            // What was seen before it was added is of no worth when it is added again.
            Step::AddCheck(column) => {
                self.looked.remove(column);
            }
            Step::DropCheck(column) => {
                self.refuted.remove(column);
            }
            Step::Analyze => self.analyzed = true,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Does to the catalogs what a step does, and checks that it may.
    fn carry_out(step: &Step, facts: &mut Facts, traces: &mut Traces) {
        let before = facts.clone();
        match step {
            Step::Look(column) => {
                assert_eq!(before.columns[column].check, None, "looked at before the CHECK");
            }
            Step::AddCheck(column) => {
                assert!(traces.looked.contains(column), "no CHECK where a NULL may be");
                facts.columns.get_mut(column).unwrap().check = Some(false);
            }
            Step::ValidateCheck(column) => {
                let column = facts.columns.get_mut(column).unwrap();
                assert_eq!(column.check.replace(true), Some(false), "validated once");
            }
            Step::SetNotNull(column) => {
                let column = facts.columns.get_mut(column).unwrap();
                assert_eq!(column.check.take(), Some(true), "else it would scan under its lock");
                (column.not_null, column.unproven) = (true, None);
            }
            Step::DropCheck(column) => {
                assert!(facts.columns.get_mut(column).unwrap().check.take().is_some());
            }
            Step::Validate(name) => {
                for column in
                    facts.columns.values_mut().filter(|column| column.unproven.as_ref() == Some(name))
                {
                    (column.not_null, column.unproven) = (true, None);
                }
                facts.constraints.entry(name.clone()).and_modify(|is_valid| *is_valid = true);
            }
            Step::Analyze => {}
            Step::RemoveTrigger => facts.has_sync_trigger = false,
        }
        traces.done(step);
    }

    fn columns() -> impl Strategy<Value = Column> {
        (any::<bool>(), any::<bool>(), proptest::option::of(any::<bool>())).prop_map(
            |(not_null, is_unproven, check)| Column {
                not_null,
                unproven: (is_unproven && !not_null).then(|| "n".to_owned()),
                check,
            },
        )
    }

    proptest! {
        #[test]
        fn it_comes_to_the_same_end_wherever_it_is_killed(
            found in proptest::collection::vec(columns(), 1..4),
            constraints in proptest::collection::btree_map("[a-c]", any::<bool>(), 0..3),
            (analyze, has_sync_trigger) in any::<(bool, bool)>(),
            kills in proptest::collection::vec(any::<bool>(), 60),
        ) {
            let columns: BTreeMap<String, Column> =
                found.into_iter().enumerate().map(|(n, column)| (format!("c{n}"), column)).collect();
            let wanted = Wanted {
                not_null: columns.keys().cloned().collect(),
                validate: constraints.keys().cloned().collect(),
                analyze,
            };
            let mut facts = Facts { columns, constraints, has_sync_trigger };
            let mut traces = Traces::default();
            let mut kills = kills.into_iter();
            let mut steps = 0;
            while let Some(step) = next(&wanted, &facts, &traces).unwrap() {
                carry_out(&step, &mut facts, &mut traces);
                steps += 1;
                prop_assert!(steps < 200, "it does not end: {step:?}");
                if kills.next() == Some(true) {
                    traces = Traces::default();
                }
            }
            for column in facts.columns.values() {
                prop_assert_eq!(column, &Column { not_null: true, unproven: None, check: None });
            }
            prop_assert!(facts.constraints.values().all(|is_valid| *is_valid));
            prop_assert!(!facts.has_sync_trigger);
        }
    }

    #[test]
    fn a_check_that_does_not_hold_is_dropped_and_its_column_looked_at_again() {
        let wanted = Wanted { not_null: vec!["c".to_owned()], ..Wanted::default() };
        let mut facts = Facts::default();
        facts.columns.insert("c".to_owned(), Column { check: Some(false), ..Column::default() });
        let mut traces = Traces::default();
        assert_eq!(next(&wanted, &facts, &traces), Ok(Some(Step::ValidateCheck("c".to_owned()))));
        traces.refuted.insert("c".to_owned());
        let step = next(&wanted, &facts, &traces).unwrap().unwrap();
        assert_eq!(step, Step::DropCheck("c".to_owned()));
        carry_out(&step, &mut facts, &mut traces);
        assert_eq!(next(&wanted, &facts, &traces), Ok(Some(Step::Look("c".to_owned()))));
    }

    #[test]
    fn what_is_not_there_is_named() {
        let wanted = Wanted { validate: vec!["fk".to_owned()], ..Wanted::default() };
        let missing = next(&wanted, &Facts::default(), &Traces::default()).unwrap_err();
        assert_eq!(missing, Missing::Constraint("fk".to_owned()));
    }
}
