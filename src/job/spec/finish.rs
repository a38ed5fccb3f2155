//! What surrounds the walk of a job: approvals, the trigger that keeps new rows in step, the constraints that are
//! enforced at the end.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Spec;
use crate::finish::Wanted;

/// `[finish]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Finish {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_null: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    validate: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    analyze: Option<bool>,
}

impl Finish {
    /// What is to be brought about.
    #[must_use]
    pub fn wanted(&self) -> Wanted {
        Wanted {
            not_null: self.not_null.clone(),
            validate: self.validate.clone(),
            analyze: self.analyze.unwrap_or_default(),
        }
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.wanted() == Wanted::default()
    }
}

/// `[sync]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sync {
    #[serde(skip_serializing_if = "Option::is_none")]
    trigger: Option<bool>,
}

impl Sync {
    /// Whether a trigger does to new rows what the job does to those that are there. Default: none does.
    #[must_use]
    pub fn trigger(&self) -> bool {
        self.trigger.unwrap_or_default()
    }
}

impl Spec {
    pub(super) fn finish_problems(&self, wrong: &mut impl FnMut(bool, &str)) {
        wrong(
            self.hold_before.iter().any(|stage| stage != "start" && stage != "finish"),
            "hold_before must be made of \"start\" and \"finish\"",
        );
        wrong(
            self.hold_before.iter().any(|stage| stage == "finish")
                && self.finish.is_empty()
                && !self.sync.trigger(),
            "hold_before: there is no finish to hold: add [finish], or leave \"finish\" out",
        );
        for (key, names) in [("not_null", &self.finish.not_null), ("validate", &self.finish.validate)] {
            let different: BTreeSet<&String> = names.iter().collect();
            wrong(
                different.len() < names.len() || names.iter().any(String::is_empty),
                &format!("finish.{key} has an empty name, or one twice"),
            );
        }
        if !self.sync.trigger() {
            return;
        }
        let update = self.update.as_ref();
        wrong(
            update.is_none_or(|update| update.filter.is_none()),
            "sync.trigger: only an [update] with a where can be kept in step: without where a row would be changed whenever it is written",
        );
        let set = update.into_iter().flat_map(|update| &update.set);
        for (column, _) in set.filter(|(_, expression)| expression.trim().eq_ignore_ascii_case("default")) {
            wrong(
                true,
                &format!(
                    "sync.trigger: update.set.{column} is DEFAULT, which a trigger cannot set: write the default's expression"
                ),
            );
        }
    }
}
