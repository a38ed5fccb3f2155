-- The state of backfilld. Run with the state schema as the whole search_path, so that no name here
-- carries the schema, whose name is a setting.

CREATE TABLE job (
    name            text PRIMARY KEY CHECK (name ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
    -- The job file as JSON, as it was written: defaults are not filled in, so that a later version
    -- of the program does not take its own new default for a change of the job.
    spec            jsonb NOT NULL,
    -- Counts the changes of spec, so that a worker notices one between two batches.
    revision        integer NOT NULL DEFAULT 1,
    state           text NOT NULL DEFAULT 'pending'
                    CHECK (state IN ('pending', 'running', 'paused', 'finishing',
                                     'complete', 'failed', 'cancelled')),
    error           text,
    -- The key that the walk follows, fixed when the job starts: slices are cut along it, and a
    -- walk that changed its key half-way would skip rows.
    key_columns     text[],
    -- The index that the key was taken from, and the table that bore the name then: a walk must not
    -- go on in another table that was renamed into its place.
    key_index       text,
    table_oid       oid,
    -- Live rows of the table when the job started, from statistics or a sample.
    table_rows      bigint,
    resume_at       timestamptz,
    submitted_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at      timestamptz,
    finished_at     timestamptz
);

-- One row a key range, with one owner. Every batch moves the cursor in the transaction that
-- changes the rows, so the row is small and stays on its page (HOT).
CREATE TABLE slice (
    job              text NOT NULL REFERENCES job ON DELETE CASCADE,
    number           integer NOT NULL,
    -- The range in the order of the walk, both ends included; key values as text.
    first_key        text[] NOT NULL,
    last_key         text[] NOT NULL,
    -- The last key that was done; NULL before the first batch.
    cursor_key       text[],
    -- Counts the owners. A batch commits only under the epoch it was claimed with.
    epoch            bigint NOT NULL DEFAULT 0,
    owner            text,
    lease_until      timestamptz,
    batches          bigint NOT NULL DEFAULT 0,
    rows_scanned     bigint NOT NULL DEFAULT 0,
    rows_changed     bigint NOT NULL DEFAULT 0,
    rows_quarantined bigint NOT NULL DEFAULT 0,
    estimated_rows   bigint NOT NULL DEFAULT 0,
    rows_per_second  double precision NOT NULL DEFAULT 0,
    -- Time spent walking: not paused, not waiting for an owner.
    active_seconds   double precision NOT NULL DEFAULT 0,
    checkpoint_at    timestamptz,
    finished_at      timestamptz,
    PRIMARY KEY (job, number),
    CHECK ((owner IS NULL) = (lease_until IS NULL))
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- Rows that could not be changed.
CREATE TABLE quarantine (
    -- The key is in no index: as text it may be longer than an index entry can be.
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job        text NOT NULL REFERENCES job ON DELETE CASCADE,
    key        text[] NOT NULL,
    sqlstate   text NOT NULL,
    message    text NOT NULL,
    at         timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX quarantine_job ON quarantine (job);

-- The audit log: who changed what, and why. Outlives the job it speaks of.
CREATE TABLE event (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    job    text,
    kind   text NOT NULL,
    actor  text NOT NULL,
    role   text NOT NULL DEFAULT session_user,
    reason text NOT NULL
);
CREATE INDEX event_job_id ON event (job, id);

CREATE TABLE daemon (
    name            text PRIMARY KEY,
    version         text NOT NULL,
    state           text NOT NULL DEFAULT 'running'
                    CHECK (state IN ('running', 'paused', 'stopping', 'stopped')),
    started_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- The server process behind the daemon's listening connection. When it is gone, so is the
    -- daemon, and its slices need not wait for their leases to run out.
    session_pid     integer,
    session_started timestamptz
);

-- Whether somebody works on a slice: its lease runs, and the server session that its owner
-- registered is there. A killed daemon's session ends at once, so nobody waits for its lease.
CREATE FUNCTION is_held(slice_owner text, lease_until timestamptz) RETURNS boolean
    LANGUAGE sql SET search_path FROM CURRENT AS $$
    SELECT coalesce(lease_until > clock_timestamp(), false)
       AND NOT EXISTS (SELECT FROM daemon d
                       WHERE d.name = slice_owner AND d.session_started IS NOT NULL
                         -- A restart of the server ends every session, and daemons come back.
                         AND clock_timestamp() > pg_postmaster_start_time() + interval '10 seconds'
                         AND NOT EXISTS (SELECT FROM pg_stat_activity a
                                         WHERE a.pid = d.session_pid
                                           -- Hidden (NULL) from a role that may not see the session.
                                           AND coalesce(a.backend_start, d.session_started)
                                               = d.session_started))
$$;

-- Fails the transaction of a batch that has moved no cursor: its slice has another owner.
CREATE FUNCTION require_lease(slices_moved bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF slices_moved <> 1 THEN
        RAISE 'the lease of the slice is gone' USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
END $$;

-- Wakes every daemon when a job is new or changes its state.
CREATE FUNCTION wake_daemons() RETURNS trigger
    LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM pg_notify(TG_TABLE_SCHEMA, NEW.name);
    RETURN NULL;
END $$;
CREATE TRIGGER wake_daemons AFTER INSERT OR UPDATE OF state, spec ON job
    FOR EACH ROW EXECUTE FUNCTION wake_daemons();

CREATE VIEW status AS
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
           CASE WHEN jsonb_typeof(spec #> '{limits,rows_per_second}') = 'number'
                THEN nullif((spec #>> '{limits,rows_per_second}')::numeric, 0) END AS rate_limit,
           CASE WHEN j.state = 'running' THEN coalesce(w.rows_per_second, 0) ELSE 0 END AS current_rate,
           CASE WHEN j.state IN ('complete', 'finishing') THEN 0
                ELSE greatest(coalesce(w.estimated_rows - w.rows_scanned, 0), 0) END AS rows_remaining
    FROM job j LEFT JOIN walked w ON w.job = j.name
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
       CASE WHEN rate_limit IS NULL
            THEN jsonb_build_object('zone', 'open', 'signal', NULL, 'reason', NULL)
            ELSE jsonb_build_object('zone', 'capped', 'signal', 'rows_per_second', 'reason',
                                    'limits.rows_per_second = ' || trim_scale(rate_limit))
       END AS throttle,
       submitted_at, started_at, finished_at, error
FROM counted;
