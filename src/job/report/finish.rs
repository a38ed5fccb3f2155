//! What `check` tells of what surrounds the walk.

use std::fmt::Write as _;

use crate::finish::facts::check_name;
use crate::finish::sync::trigger_name;
use crate::job::Spec;
use crate::job::preflight::Preflight;

/// Tells approvals, the trigger, and what is enforced at the end.
pub(super) fn tell(
    spec: &Spec,
    state_schema: &str,
    preflight: &Preflight,
    text: &mut String,
    warnings: &mut Vec<String>,
) {
    if !spec.hold_before.is_empty() {
        let _ = writeln!(text, "held        before {}, until it is approved", spec.hold_before.join(" and "));
    }
    let wanted = spec.finish.wanted();
    for column in &wanted.not_null {
        let _ = writeln!(
            text,
            "finish      {column}: CHECK {} NOT VALID, VALIDATE, SET NOT NULL, drop the CHECK",
            check_name(column)
        );
    }
    for constraint in &wanted.validate {
        let _ = writeln!(text, "finish      VALIDATE {constraint}");
    }
    if wanted.analyze {
        text.push_str("finish      ANALYZE\n");
    }
    if let Some(sync) = preflight.sync(spec) {
        let _ = writeln!(
            text,
            "sync        trigger {} before INSERT or UPDATE, while the job runs; its function:\n",
            trigger_name(&sync.job)
        );
        for line in sync.body(state_schema).lines() {
            let _ = writeln!(text, "    {line}");
        }
        text.push('\n');
        warnings.push(
            "while the job runs, an error of update.set or update.where in the trigger fails the statement of the application that writes the row"
                .to_owned(),
        );
    }
}
