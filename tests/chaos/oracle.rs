//! What must hold once the job is complete, whatever has happened.

use std::fmt::Write as _;

use super::plan::{Plan, Work};
use super::stage::Stage;

/// Rows of findings that are shown of each kind.
const SHOWN: usize = 12;

/// Checks everything; the findings, a line each.
pub(crate) fn findings(stage: &Stage, plan: &Plan) -> Result<Vec<String>, String> {
    let mut findings = Vec::new();
    for (what, sql) in checks(plan) {
        let rows =
            stage.ask(&format!("SELECT coalesce(array_agg(found::text), '{{}}') FROM ({sql}) found"))?;
        let found: Vec<String> = rows[0].get(0);
        if !found.is_empty() {
            let shown = found.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(" ");
            findings.push(format!("{what}: {} times: {shown}", found.len()));
        }
    }
    Ok(findings)
}

/// What must not be found, and the statement that finds it.
type Check = (&'static str, String);

fn checks(plan: &Plan) -> Vec<Check> {
    let mut checks = common(plan);
    checks.extend(if plan.work == Work::Count { counted(plan) } else { filled(plan.work) });
    checks
}

/// The slices in the order of the walk, so that they can be compared as if it went upwards; and its sign.
fn slices(plan: &Plan) -> (String, i32) {
    let sign = if plan.order == "descending" { -1 } else { 1 };
    let slices = format!(
        "SELECT number, {sign} * first_key[1]::bigint AS first, {sign} * last_key[1]::bigint AS last,
                {sign} * cursor_key[1]::bigint AS cursor, owner, lease_until, finished_at, rows_changed, sweep
         FROM backfilld.slice"
    );
    (slices, sign)
}

fn ends(sign: i32) -> String {
    format!("SELECT min({sign} * id) AS first, max({sign} * id) AS last FROM original")
}

/// What must not be found whatever the job does.
fn common(plan: &Plan) -> Vec<Check> {
    let (slices, sign) = slices(plan);
    let ends = ends(sign);
    vec![
        (
            "key that the trigger has counted more than once",
            "SELECT id, count(*) FROM changed GROUP BY id HAVING count(*) > 1 ORDER BY id".to_owned(),
        ),
        (
            "state and counters (state, changed, the trigger's count, left, quarantined, workers)",
            "SELECT state, rows_changed, counted, rows_remaining, rows_quarantined, workers
             FROM backfilld.status, (SELECT count(*) AS counted FROM changed) c
             WHERE state <> 'complete' OR rows_changed <> counted OR rows_remaining <> 0
                OR rows_quarantined <> 0 OR workers <> 0 OR slices_total <> slices_done"
                .to_owned(),
        ),
        (
            "slice (number, first, last, end of the one before) that leaves a gap or overlaps",
            format!(
                "SELECT number, first, last, previous
                 FROM (SELECT s.*, lag(s.last, 1, e.first) OVER (ORDER BY s.first, s.last) AS previous,
                              lead(s.first, 1, e.last) OVER (ORDER BY s.first, s.last) AS next
                       FROM ({slices}) s, ({ends}) e WHERE s.sweep = 0) s
                 WHERE first <> previous OR last <> next OR first > last"
            ),
        ),
        (
            "slice that is not at its end, or still somebody's",
            format!(
                "SELECT * FROM ({slices}) s
                 WHERE finished_at IS NULL OR owner IS NOT NULL OR lease_until IS NOT NULL
                    OR cursor IS DISTINCT FROM last"
            ),
        ),
        (
            "event that tells of a failure",
            "SELECT kind, actor, reason FROM backfilld.event WHERE kind ~ 'fail|quarantin|cancel|retr'".to_owned(),
        ),
        (
            "start, sweep or end that is told twice",
            "SELECT kind, reason, count(*) FROM backfilld.event WHERE kind IN ('started', 'sweep', 'complete')
             GROUP BY kind, reason HAVING count(*) > 1"
                .to_owned(),
        ),
    ]
}

/// What must not be found where every row that was there is counted up.
fn counted(plan: &Plan) -> Vec<Check> {
    let (slices, sign) = slices(plan);
    let ends = ends(sign);
    vec![
        (
            "row (key, times, seen) that was there at the start and was not changed exactly once",
            "SELECT o.id, w.times, w.seen FROM original o LEFT JOIN walked w USING (id)
             WHERE NOT EXISTS (SELECT FROM deleted d WHERE d.id = o.id)
               AND (w.times, w.seen) IS DISTINCT FROM (1, 1) ORDER BY o.id"
                .to_owned(),
        ),
        (
            "row (key, times, seen) inserted meanwhile that was changed twice, or beyond the ends of the walk",
            "SELECT id, times, seen FROM walked WHERE id NOT IN (SELECT id FROM original)
               AND (times <> seen OR times > 1
                    OR times > 0 AND id NOT BETWEEN (SELECT min(id) FROM original)
                                                AND (SELECT max(id) FROM original)) ORDER BY id"
                .to_owned(),
        ),
        (
            "row (key, seen, counted) whose own count is not the trigger's",
            "SELECT w.id, w.seen, count(c.id) FROM walked w LEFT JOIN changed c USING (id)
             GROUP BY w.id, w.seen HAVING w.seen <> count(c.id)"
                .to_owned(),
        ),
        (
            "rows scanned (scanned, changed) that are not those of the walk",
            // Between a batch's two looks at its range, rows may come and go.
            "SELECT rows_scanned, rows_changed
             FROM backfilld.status,
                  (SELECT count(*) AS inserted FROM changed WHERE id NOT IN (SELECT id FROM original)) i,
                  (SELECT count(*) AS gone FROM deleted) d
             WHERE rows_scanned NOT BETWEEN rows_changed - inserted AND rows_changed + gone"
                .to_owned(),
        ),
        (
            "slice (number, changed, counted) whose count is not that of its range",
            format!(
                "SELECT number, rows_changed, count(c.id)
                 FROM ({ends}) e CROSS JOIN ({slices}) s
                 LEFT JOIN changed c
                   ON {sign} * c.id <= s.last AND ({sign} * c.id > s.first OR s.number = 0 AND {sign} * c.id = e.first)
                 GROUP BY number, rows_changed HAVING rows_changed <> count(c.id)"
            ),
        ),
    ]
}

/// What must not be found where rows are filled, deleted or moved.
fn filled(work: Work) -> Vec<Check> {
    // Those that were there and lacked it, and those that old code has written.
    let due = "SELECT id FROM original WHERE id % 5 <> 0 UNION ALL SELECT id FROM old_code";
    let mut checks = vec![
        (
            "row (key, changes) that was due and was not changed exactly once",
            format!(
                "SELECT d.id, count(c.id) FROM ({due}) d LEFT JOIN changed c USING (id)
                 WHERE NOT EXISTS (SELECT FROM deleted WHERE deleted.id = d.id)
                 GROUP BY d.id HAVING count(c.id) <> 1 ORDER BY d.id"
            ),
        ),
        ("row that was changed and was not due", format!("SELECT id FROM changed EXCEPT ({due})")),
        (
            "row (key, filled) that is not as it should be",
            "SELECT id, filled FROM walked WHERE filled IS DISTINCT FROM id * 7 ORDER BY id".to_owned(),
        ),
        (
            "row that is lost",
            format!(
                "SELECT id FROM original WHERE NOT EXISTS (SELECT FROM walked w WHERE w.id = original.id)
                   AND NOT EXISTS (SELECT FROM deleted d WHERE d.id = original.id) {}",
                if matches!(work, Work::Fill { .. }) { "" } else { "AND id % 5 = 0" }
            ),
        ),
    ];
    match work {
        Work::Count | Work::Fill { enforced: false } => {}
        Work::Fill { enforced: true } => checks.push((
            "constraint that is not in force, or left behind",
            "SELECT attname, attnotnull FROM pg_attribute
             WHERE attrelid = 'walked'::regclass AND attname = 'filled' AND NOT attnotnull
             UNION ALL SELECT conname, convalidated FROM pg_constraint
             WHERE conrelid = 'walked'::regclass AND (NOT convalidated OR conname LIKE 'backfilld%')
             UNION ALL SELECT owner, false FROM backfilld.finish WHERE owner IS NOT NULL"
                .to_owned(),
        )),
        Work::Delete | Work::Move => checks.push((
            "row that both the job and the application have removed, or that is there all the same",
            "SELECT id FROM changed WHERE id IN (SELECT id FROM deleted) OR id IN (SELECT id FROM walked)"
                .to_owned(),
        )),
    }
    if work == Work::Move {
        checks.push((
            "row that is in the archive and should not, or the other way round",
            "(SELECT id, filled FROM archive EXCEPT ALL SELECT id, id * 7 FROM changed)
             UNION ALL (SELECT id, id * 7 FROM changed EXCEPT ALL SELECT id, filled FROM archive)"
                .to_owned(),
        ));
    }
    checks
}

/// The slices and events, to be read by a person.
pub(crate) fn state(stage: &Stage) -> String {
    let mut text = String::new();
    for (what, sql) in [
        ("job", "SELECT job::text FROM backfilld.job"),
        ("status", "SELECT status::text FROM backfilld.status"),
        ("slices", "SELECT slice::text FROM backfilld.slice ORDER BY number"),
        (
            "daemons",
            "SELECT (name, state, seen_at, session_pid, session_started)::text FROM backfilld.daemon",
        ),
        (
            "events",
            "SELECT (id, at, kind, actor, reason)::text FROM backfilld.event ORDER BY id DESC LIMIT 60",
        ),
        (
            "sessions",
            "SELECT (pid, application_name, state, backend_start, xact_start, wait_event_type, wait_event,
                     pg_blocking_pids(pid), left(query, 100))::text
             FROM pg_stat_activity WHERE datname = current_database()",
        ),
    ] {
        let _ = writeln!(text, "\n{what}:");
        match stage.ask(sql) {
            Ok(rows) => rows.iter().for_each(|row| {
                let _ = writeln!(text, "  {}", row.get::<_, String>(0));
            }),
            Err(error) => {
                let _ = writeln!(text, "  {error}");
            }
        }
    }
    text
}
