-- What is to be told to the receiver of notifications, and what has been. Run with the state schema as the whole
-- search_path.

-- Each message, from the moment on at which it is known that it is to be sent.
CREATE TABLE notification (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    -- The event that it is about, if it is about one: each is told once.
    event      bigint UNIQUE,
    job        text NOT NULL,
    kind       text NOT NULL CHECK (kind IN ('complete', 'failed', 'quarantine', 'paused')),
    -- What is sent, but for the id.
    content    json NOT NULL,
    made_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    attempts   integer NOT NULL DEFAULT 0,
    -- When it is to be tried again: whoever tries puts it off first, so that nobody else does meanwhile.
    due_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_error text,
    ended_at   timestamptz,
    outcome    text CHECK (outcome IN ('sent', 'failed', 'given_up')),
    CHECK ((ended_at IS NULL) = (outcome IS NULL))
);
CREATE INDEX notification_due ON notification (due_at) WHERE ended_at IS NULL;
-- By which what is old is found and removed.
CREATE INDEX notification_ended ON notification (ended_at) WHERE ended_at IS NOT NULL;

-- What of a job has been told that no event tells of. No reference to the job, so that this upgrade keeps nobody from
-- writing to the table of jobs: what is left of one that is gone is removed by whoever looks.
CREATE TABLE notified (
    job           text PRIMARY KEY,
    -- Which of the jobs that have had this name.
    submitted_at  timestamptz,
    -- Since when it stands still, if it does, and whether that was told.
    paused_since  timestamptz,
    pause_told    boolean NOT NULL DEFAULT false,
    -- The event by which it was paused, if somebody did that.
    pause_event   bigint,
    -- How many rows that are set aside were told of, and when.
    rows_told     bigint NOT NULL DEFAULT 0,
    rows_told_at  timestamptz
);

-- One row, once somebody is to be told.
CREATE TABLE notifier (
    is_only     boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    -- Events up to this one are older than the wish to be told, or were looked at long ago. So those of an hour or so are
    -- looked through, by their key: an index of their own would keep everybody from writing events while it is made.
    after_event bigint NOT NULL,
    looked_at   timestamptz NOT NULL
) WITH (
    -- Written every other second: its versions stay on one page.
    fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 1000000, vacuum_truncate = off
);

-- Whoever upgrades a schema may be more than its owner, who is to own these too, and the tables and the view that earlier
-- upgrades made. Whoever may use the daemon's table may use the new ones.
DO $$
DECLARE
    given record;
    made record;
BEGIN
    FOR made IN
        SELECT c.relname, pg_get_userbyid(j.relowner) AS owner
        FROM pg_class j, pg_class c
        WHERE j.oid = 'job'::regclass AND c.relnamespace = j.relnamespace AND c.relkind IN ('r', 'v') AND c.relowner <> j.relowner
          AND pg_has_role(current_user, j.relowner, 'MEMBER') AND pg_has_role(current_user, c.relowner, 'USAGE')
    LOOP
        EXECUTE format('ALTER TABLE %I OWNER TO %I', made.relname, made.owner);
    END LOOP;
    FOR given IN
        SELECT a.privilege_type AS privilege,
               CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS role
        FROM pg_class c, aclexplode(c.relacl) a
        WHERE c.oid = 'daemon'::regclass AND a.grantee <> c.relowner
          AND a.privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
    LOOP
        EXECUTE format('GRANT %s ON notification, notified, notifier TO %s', given.privilege, given.role);
    END LOOP;
END $$;
