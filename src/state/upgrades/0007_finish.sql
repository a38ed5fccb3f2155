-- What happens before and after a walk: somebody approves it, constraints are enforced, a trigger keeps new rows in
-- step. Run with the state schema as the whole search_path.

-- "start" and "finish", as they are approved of those that the spec has in hold_before.
ALTER TABLE job ADD COLUMN approved text[] NOT NULL DEFAULT '{}';

-- Whether a job may not go past a stage, "start" or "finish", before somebody has approved it.
CREATE FUNCTION is_on_hold(spec jsonb, approved text[], stage text) RETURNS boolean
    LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(spec -> 'hold_before' ? stage, false) AND stage <> ALL (approved)
$$;

-- The finish of a job whose walk has ended, with one owner like a slice. Where it stands is in no table of ours: each
-- step is found out from the catalogs.
CREATE TABLE finish (
    job          text PRIMARY KEY REFERENCES job ON DELETE CASCADE,
    -- Counts the owners. A step is taken only under the epoch that the finish was claimed with.
    epoch        bigint NOT NULL DEFAULT 0,
    owner        text,
    lease_until  timestamptz,
    -- Who is in the way of the step that is tried; NULL when nobody is.
    waits_for    text,
    -- The longest time that a lock was held which kept everybody from the table.
    longest_lock_seconds double precision,
    CHECK ((owner IS NULL) = (lease_until IS NULL))
);

-- The triggers that keep new rows in step with a job. A row is written before its trigger is made and goes after it.
-- It refers to no job: it is written while the job's row is locked by its start.
CREATE TABLE sync_trigger (
    job       text PRIMARY KEY,
    table_oid oid NOT NULL
);

-- An approval wakes the daemons too.
CREATE OR REPLACE TRIGGER wake_daemons AFTER INSERT OR UPDATE OF state, spec, approved ON job
    FOR EACH ROW EXECUTE FUNCTION wake_daemons();

-- Raises an error unless the finish of a job may take a step: nobody is changing the job, and it is still finishing
-- its own table under this claim. Within a transaction it stays so to the end of it.
CREATE FUNCTION require_finish(gate bigint, job_name text, finish_epoch bigint, finish_owner text, table_name text)
    RETURNS void LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NOT pg_try_advisory_xact_lock_shared(gate) THEN
        RAISE 'somebody is changing the job' USING ERRCODE = 'ZB001';
    END IF;
    PERFORM FROM finish f JOIN job j ON j.name = f.job
    WHERE f.job = job_name AND f.epoch = finish_epoch AND f.owner = finish_owner AND j.state = 'finishing'
    FOR SHARE OF f;
    IF NOT FOUND THEN
        RAISE 'the job is not this daemon''s to finish' USING ERRCODE = 'ZB001';
    END IF;
    IF to_regclass(table_name) IS DISTINCT FROM (SELECT table_oid FROM job WHERE name = job_name) THEN
        RAISE 'the table was replaced' USING ERRCODE = 'ZB001';
    END IF;
END $$;

-- Whoever may use the table of daemons is a daemon, perhaps by rights that were given table by table.
DO $$
DECLARE
    given record;
BEGIN
    FOR given IN
        SELECT a.privilege_type AS privilege,
               CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS role
        FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.oid = 'daemon'::regclass AND a.grantee <> c.relowner
          AND a.privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
    LOOP
        EXECUTE format('GRANT %s ON finish, sync_trigger TO %s', given.privilege, given.role);
    END LOOP;
END $$;

-- The view as it was, and what a job waits for that is not walked: an approval, or a lock.
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
           CASE WHEN j.state IN ('pending', 'paused') AND j.started_at IS NULL AND is_on_hold(j.spec, j.approved, 'start')
                THEN 'starts'
                WHEN j.state IN ('finishing', 'paused') AND f.job IS NOT NULL
                     AND is_on_hold(j.spec, j.approved, 'finish')
                THEN 'finishes' END AS held_before,
           CASE WHEN j.state = 'finishing' THEN f.waits_for END AS waits_for,
           t.throttle,
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
       submitted_at, started_at, finished_at, error, sweep
FROM counted;
