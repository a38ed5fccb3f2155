-- Why a batch of a running job failed that is tried again is told. Run with the state schema as the whole search_path.

-- The view as it was, and that.
CREATE OR REPLACE VIEW status AS
WITH gone AS MATERIALIZED (
    -- As is_held has it, but looked up once for each daemon instead of once for each slice.
    SELECT d.name FROM daemon d
    WHERE d.session_started IS NOT NULL
      AND clock_timestamp() > pg_postmaster_start_time() + interval '10 seconds'
      AND NOT EXISTS (SELECT FROM pg_stat_activity a
                      WHERE a.pid = d.session_pid
                        AND coalesce(a.backend_start, d.session_started) = d.session_started)
), held AS MATERIALIZED (
    SELECT s.job, s.number, s.owner FROM slice s
    WHERE s.owner IS NOT NULL AND s.lease_until > clock_timestamp()
      AND s.owner NOT IN (SELECT name FROM gone)
), passes AS (
    -- A sweep passes over the same rows once more. How far a job is, is told of the pass that it is in; of a job
    -- that has ended, of its walk.
    SELECT s.*, h.job IS NOT NULL AS held,
           s.sweep = CASE WHEN j.finished_at IS NULL AND j.state <> 'finishing' THEN max(s.sweep) OVER (PARTITION BY s.job) ELSE 0 END
               AS is_current
    FROM slice s JOIN job j ON j.name = s.job LEFT JOIN held h ON h.job = s.job AND h.number = s.number
), walked AS (
    SELECT job,
           max(sweep) FILTER (WHERE is_current)                       AS sweep,
           sum(rows_scanned) FILTER (WHERE is_current)::bigint        AS rows_scanned,
           sum(rows_changed)::bigint                                  AS rows_changed,
           sum(rows_quarantined)::bigint                              AS rows_quarantined,
           -- An estimate that was overtaken by the count is worth nothing more than the count.
           sum(greatest(estimated_rows, rows_scanned)) FILTER (WHERE is_current)::bigint AS estimated_rows,
           -- The pace of a slice that has not moved for a while is over, though its lease runs.
           sum(rows_per_second) FILTER (
               WHERE held AND checkpoint_at > clock_timestamp() - interval '30 seconds') AS rows_per_second,
           sum(active_seconds) FILTER (WHERE is_current)              AS active_seconds,
           count(*) FILTER (WHERE held)                               AS workers,
           count(*) FILTER (WHERE is_current)                         AS slices_total,
           count(*) FILTER (WHERE is_current AND finished_at IS NOT NULL) AS slices_done
    FROM passes GROUP BY job
), throttled AS (
    -- Of several daemons, one that holds a slice of the job speaks for it, and of those the one that is held
    -- back most. One that holds none may wait for the hours in which the job may be walked.
    SELECT DISTINCT ON (t.job) t.job, t.throttle,
           -- That of whoever holds no slice any more is over.
           max(t.throttle ->> 'retrying') FILTER (WHERE (t.job, d.name) IN (SELECT job, owner FROM held))
               OVER (PARTITION BY t.job) AS retrying
    FROM daemon d CROSS JOIN LATERAL jsonb_each(d.throttle -> 'jobs') AS t (job, throttle)
    WHERE d.throttle_at > clock_timestamp() - interval '1 minute' AND d.state <> 'stopped'
    ORDER BY t.job,
             (t.job, d.name) IN (SELECT job, owner FROM held) DESC,
             array_position(ARRAY['open', 'capped', 'hold', 'ease', 'cut', 'paused'],
                            t.throttle ->> 'zone') DESC
), counted AS (
    SELECT j.*,
           coalesce(w.rows_scanned, 0)     AS rows_scanned,
           coalesce(w.rows_changed, 0)     AS rows_changed,
           coalesce(w.rows_quarantined, 0) AS rows_quarantined,
           coalesce(w.estimated_rows, 0)   AS estimated_rows,
           coalesce(w.active_seconds, 0)   AS active_seconds,
           coalesce(w.workers, 0)          AS workers,
           coalesce(w.slices_total, 0)     AS slices_total,
           coalesce(w.slices_done, 0)      AS slices_done,
           coalesce(w.sweep, 0)            AS sweep,
           CASE WHEN j.state IN ('pending', 'paused') AND j.started_at IS NULL AND is_on_hold(j.spec, j.approved, 'start')
                THEN 'starts'
                WHEN j.state IN ('finishing', 'paused') AND f.job IS NOT NULL
                     AND is_on_hold(j.spec, j.approved, 'finish')
                THEN 'finishes' END AS held_before,
           CASE WHEN j.state = 'finishing' THEN f.waits_for END AS waits_for,
           t.throttle, t.retrying,
           CASE WHEN jsonb_typeof(spec #> '{limits,rows_per_second}') = 'number'
                THEN nullif((spec #>> '{limits,rows_per_second}')::numeric, 0) END AS rate_limit,
           CASE WHEN j.state = 'running' THEN coalesce(w.rows_per_second, 0) ELSE 0 END AS current_rate,
           CASE WHEN j.state IN ('complete', 'finishing') THEN 0
                ELSE greatest(coalesce(w.estimated_rows - w.rows_scanned, 0), 0) END AS rows_remaining
    FROM job j
    LEFT JOIN walked w ON w.job = j.name
    LEFT JOIN finish f ON f.job = j.name
    LEFT JOIN throttled t ON t.job = j.name AND j.state = 'running'
)
SELECT name, state, coalesce(spec ->> 'table', '') AS "table",
       rows_scanned, rows_changed, rows_quarantined, rows_remaining, estimated_rows,
       -- 1 is said of a complete job only; cut off, never rounded up.
       CASE WHEN state = 'complete' THEN 1
            ELSE trunc(rows_scanned::numeric / greatest(estimated_rows, rows_scanned + 1, 1), 4)
       END::double precision AS progress,
       -- While the job runs: the rate now. Once it has ended: the mean over the time it was walked.
       round((CASE WHEN finished_at IS NULL THEN current_rate
                   WHEN active_seconds > 0 THEN rows_scanned / active_seconds
                   ELSE 0 END)::numeric, 1)::double precision AS rows_per_second,
       -- None either when the estimate was overtaken: nobody knows how much is left then.
       CASE WHEN current_rate > 0 AND rows_remaining > 0 THEN round((rows_remaining / current_rate)::numeric, 1) END
           ::double precision AS eta_seconds,
       workers, slices_total, slices_done,
       CASE WHEN held_before IS NOT NULL
            THEN jsonb_build_object('zone', 'paused', 'signal', 'hold_before', 'reason',
                                    format('waits for `backfilld approve %s` before it %s', name, held_before))
            WHEN waits_for IS NOT NULL
            THEN jsonb_build_object('zone', 'paused', 'signal', 'lock_timeout', 'reason', waits_for)
            WHEN throttle IS NOT NULL
            THEN jsonb_build_object('zone', throttle -> 'zone', 'signal', throttle -> 'signal',
                                    'reason', throttle -> 'reason')
            -- No daemon speaks of it: what the job allows itself.
            WHEN rate_limit IS NULL
            THEN jsonb_build_object('zone', 'open', 'signal', NULL, 'reason', NULL)
            ELSE jsonb_build_object('zone', 'capped', 'signal', 'rows_per_second', 'reason',
                                    'limits.rows_per_second = ' || trim_scale(rate_limit))
       END AS throttle,
       submitted_at, started_at, finished_at, error, sweep, resume_at, retrying
FROM counted;
