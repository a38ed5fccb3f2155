-- What every daemon writes all the time: how long the write takes is a probe of the primary, and the
-- newest beat that a replica has says how far behind it is.
--
-- The row is made anew under another slot every minute. While a transaction stays open, none of the
-- row's dead versions after it can be removed, and each upsert visits all of those that have its key.
-- With a key that lives for a minute they are a minute's, however many days the transaction lasts.
CREATE TABLE heartbeat (
    daemon  text NOT NULL,
    slot    bigint NOT NULL,
    beat    bigint NOT NULL,
    -- By the database's clock, for people; lag is never computed from it.
    beat_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (daemon, slot)
) WITH (
    -- Room for many versions on the page, so that each update stays there (HOT) and prunes it.
    fillfactor = 10,
    -- What pruning has removed is not counted as dead. So this is reached only when pruning cannot.
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
    -- No plan depends on statistics of a few rows.
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 1000000,
    -- Cutting off empty pages takes a lock that, replayed, cancels the reads on replicas.
    vacuum_truncate = off
);

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
        EXECUTE format('GRANT %s ON heartbeat TO %s', given.privilege, given.role);
    END LOOP;
END $$;
