-- What each daemon's throttle says, and a status that tells it. Run with the state schema as the whole
-- search_path.

-- First the view, without the tables below it, as everybody who reads it does: a daemon that reads its
-- status while it is upgraded waits here, and holds nothing that the next statements need.
ALTER VIEW status RESET (security_barrier);
ALTER TABLE daemon
    -- The signals and, for each job that the daemon walks, zone, signal, reason and rate.
    ADD COLUMN throttle    jsonb,
    ADD COLUMN throttle_at timestamptz;
-- Written every two seconds.
ALTER TABLE daemon SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0,
                        autovacuum_vacuum_threshold = 500);

CREATE OR REPLACE VIEW status AS
WITH walked AS (
    SELECT job,
           sum(rows_scanned)::bigint     AS rows_scanned,
           sum(rows_changed)::bigint     AS rows_changed,
           sum(rows_quarantined)::bigint AS rows_quarantined,
           -- An estimate that was overtaken by the count is worth nothing more than the count.
           sum(greatest(estimated_rows, rows_scanned))::bigint AS estimated_rows,
           -- The pace of a slice that has not moved for a while is over, though its lease runs.
           sum(rows_per_second) FILTER (
               WHERE held AND checkpoint_at > clock_timestamp() - interval '30 seconds') AS rows_per_second,
           sum(active_seconds)                             AS active_seconds,
           count(*) FILTER (WHERE held)                    AS workers,
           count(*)                                        AS slices_total,
           count(*) FILTER (WHERE finished_at IS NOT NULL) AS slices_done
    FROM (SELECT slice.*, owner IS NOT NULL AND is_held(owner, lease_until) AS held FROM slice) AS slice
    GROUP BY job
), throttled AS (
    -- Of several daemons, one that holds a slice of the job speaks for it, and of those the one that is held
    -- back most. One that holds none may wait for the hours in which the job may be walked.
    SELECT DISTINCT ON (t.job) t.job, t.throttle
    FROM daemon d CROSS JOIN LATERAL jsonb_each(d.throttle -> 'jobs') AS t (job, throttle)
    WHERE d.throttle_at > clock_timestamp() - interval '1 minute' AND d.state <> 'stopped'
    ORDER BY t.job,
             EXISTS (SELECT FROM slice s
                     WHERE s.job = t.job AND s.owner = d.name AND is_held(s.owner, s.lease_until)) DESC,
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
           t.throttle,
           CASE WHEN jsonb_typeof(spec #> '{limits,rows_per_second}') = 'number'
                THEN nullif((spec #>> '{limits,rows_per_second}')::numeric, 0) END AS rate_limit,
           CASE WHEN j.state = 'running' THEN coalesce(w.rows_per_second, 0) ELSE 0 END AS current_rate,
           CASE WHEN j.state IN ('complete', 'finishing') THEN 0
                ELSE greatest(coalesce(w.estimated_rows - w.rows_scanned, 0), 0) END AS rows_remaining
    FROM job j
    LEFT JOIN walked w ON w.job = j.name
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
       CASE WHEN throttle IS NOT NULL
            THEN jsonb_build_object('zone', throttle -> 'zone', 'signal', throttle -> 'signal',
                                    'reason', throttle -> 'reason')
            -- No daemon speaks of it: what the job allows itself.
            WHEN rate_limit IS NULL
            THEN jsonb_build_object('zone', 'open', 'signal', NULL, 'reason', NULL)
            ELSE jsonb_build_object('zone', 'capped', 'signal', 'rows_per_second', 'reason',
                                    'limits.rows_per_second = ' || trim_scale(rate_limit))
       END AS throttle,
       submitted_at, started_at, finished_at, error
FROM counted;
