//! Which slices this daemon holds, for renewing their leases.

use std::collections::BTreeMap;

use crate::state::slice::Claim;

/// The claims in hand, by job and slice.
#[derive(Debug, Default)]
pub(super) struct Held {
    claims: BTreeMap<(String, i32), Claim>,
}

impl Held {
    pub(super) fn add(&mut self, claim: Claim) {
        self.claims.insert((claim.job.clone(), claim.number), claim);
    }

    pub(super) fn remove(&mut self, claim: &Claim) {
        self.claims.remove(&(claim.job.clone(), claim.number));
    }

    pub(super) fn all(&self) -> Vec<Claim> {
        self.claims.values().cloned().collect()
    }

    /// The jobs of which slices are held, and how many of each.
    pub(super) fn jobs(&self) -> BTreeMap<&str, usize> {
        let mut jobs = BTreeMap::new();
        for (job, _) in self.claims.keys() {
            *jobs.entry(job.as_str()).or_default() += 1;
        }
        jobs
    }

    pub(super) fn len(&self) -> usize {
        self.claims.len()
    }
}
