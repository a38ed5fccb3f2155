//! What must hold once the job is complete, whatever has happened.

use std::fmt::Write as _;

use super::plan::Plan;
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
fn checks(plan: &Plan) -> Vec<(&'static str, String)> {
    // In the order of the walk, so that slices can be compared as if it went upwards.
    let sign = if plan.order == "descending" { -1 } else { 1 };
    let slices = format!(
        "SELECT number, {sign} * first_key[1]::bigint AS first, {sign} * last_key[1]::bigint AS last,
                {sign} * cursor_key[1]::bigint AS cursor, owner, lease_until, finished_at, rows_changed
         FROM backfilld.slice"
    );
    let ends = format!("SELECT min({sign} * id) AS first, max({sign} * id) AS last FROM original");
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
            "key that the trigger has counted more than once",
            "SELECT id, count(*) FROM changed GROUP BY id HAVING count(*) > 1 ORDER BY id".to_owned(),
        ),
        (
            "row (key, seen, counted) whose own count is not the trigger's",
            "SELECT w.id, w.seen, count(c.id) FROM walked w LEFT JOIN changed c USING (id)
             GROUP BY w.id, w.seen HAVING w.seen <> count(c.id)"
                .to_owned(),
        ),
        (
            "state and counters (state, changed, the trigger's count, scanned, left, quarantined, workers)",
            // Between a batch's two looks at its range, rows may come and go.
            "SELECT state, rows_changed, counted, rows_scanned, rows_remaining, rows_quarantined, workers
             FROM backfilld.status, (SELECT count(*) AS counted FROM changed) c,
                  (SELECT count(*) AS inserted FROM changed WHERE id NOT IN (SELECT id FROM original)) i,
                  (SELECT count(*) AS gone FROM deleted) d
             WHERE state <> 'complete' OR rows_changed <> counted OR rows_remaining <> 0
                OR rows_quarantined <> 0 OR workers <> 0 OR slices_total <> slices_done
                OR rows_scanned NOT BETWEEN rows_changed - inserted AND rows_changed + gone"
                .to_owned(),
        ),
        (
            "slice (number, first, last, end of the one before) that leaves a gap or overlaps",
            format!(
                "SELECT number, first, last, previous
                 FROM (SELECT s.*, lag(s.last, 1, e.first) OVER (ORDER BY s.first, s.last) AS previous,
                              lead(s.first, 1, e.last) OVER (ORDER BY s.first, s.last) AS next
                       FROM ({slices}) s, ({ends}) e) s
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
            "slice (number, changed, counted) whose count is not that of its range",
            format!(
                "SELECT number, rows_changed, count(c.id)
                 FROM ({ends}) e CROSS JOIN ({slices}) s
                 LEFT JOIN changed c
                   ON {sign} * c.id <= s.last AND ({sign} * c.id > s.first OR s.number = 0 AND {sign} * c.id = e.first)
                 GROUP BY number, rows_changed HAVING rows_changed <> count(c.id)"
            ),
        ),
        (
            "event that tells of a failure",
            "SELECT kind, actor, reason FROM backfilld.event WHERE kind ~ 'fail|quarantin|cancel|retr'".to_owned(),
        ),
    ]
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
