-- What jobs other than updates of a plain table need: sweeps, and the partitions of a table. Run with the state
-- schema as the whole search_path.

-- First the view, without the tables below it, as everybody who reads it does.
ALTER VIEW status RESET (security_barrier);

ALTER TABLE slice
    -- The partition that the slice is of; NULL: the job's table is no partitioned one.
    ADD COLUMN table_oid   oid,
    -- 0: of the walk. From 1 on: of a pass for rows that appeared behind it. -1: of such a pass before the job
    -- failed and was tried again.
    ADD COLUMN sweep       integer NOT NULL DEFAULT 0,
    -- Of a sweep: rows that match and that it could not change, rows that match and would all the same once
    -- changed, and the key of one of them.
    ADD COLUMN rows_left           bigint NOT NULL DEFAULT 0,
    ADD COLUMN rows_still_matching bigint NOT NULL DEFAULT 0,
    ADD COLUMN example_key         text[];

ALTER TABLE quarantine
    -- As of slice.
    ADD COLUMN table_oid oid;

-- Fails the transaction of a batch that took rows out of their table and did not put all of them into the other.
CREATE FUNCTION require_moved(rows_out bigint, rows_in bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE '% of % rows did not arrive in the table of move.into: a trigger there has refused them',
          rows_out - rows_in, rows_out USING ERRCODE = 'integrity_constraint_violation';
END $$;

-- Fails the transaction of a sweep's batch whose rows match after they were changed as they did before.
CREATE FUNCTION require_changed(rows_still_matching bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE '% rows match update.where after they were changed: a trigger has undone the change', rows_still_matching
          USING ERRCODE = 'integrity_constraint_violation';
END $$;

-- The sweeps of a job that failed when they had come to their end begin again when it is tried again.
CREATE FUNCTION sweep_again() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    UPDATE slice SET sweep = -1
    WHERE job = NEW.name AND sweep > 0
      AND NOT EXISTS (SELECT FROM slice s WHERE s.job = NEW.name AND s.finished_at IS NULL);
    RETURN NULL;
END $$;
CREATE TRIGGER sweep_again AFTER UPDATE OF state ON job FOR EACH ROW
    WHEN (OLD.state IN ('failed', 'cancelled') AND NEW.state = 'running') EXECUTE FUNCTION sweep_again();

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
    SELECT DISTINCT ON (t.job) t.job, t.throttle
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
       submitted_at, started_at, finished_at, error, sweep
FROM counted;
