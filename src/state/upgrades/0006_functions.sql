-- Functions for migrations of any tool: a role submits a job and requires it, without any right on the
-- tables here. Run with the state schema as the whole search_path.
--
-- Those that are granted run with the rights of the schema's owner. So each has a search path of its own (set at the end
-- of this file: the schema's name is a setting), none builds a statement from a text, and nobody may call one before
-- it is granted.

-- What is said and done of a name that no job has.
CREATE FUNCTION raise_unknown(job_name text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    known text := (SELECT string_agg(n.name, ', ' ORDER BY n.submitted_at DESC)
                   FROM (SELECT j.name, j.submitted_at FROM job j ORDER BY j.submitted_at DESC LIMIT 10) n);
BEGIN
    RAISE 'there is no job "%": %', coalesce(job_name, ''),
          coalesce('the latest are ' || known, 'no job was submitted yet')
        USING ERRCODE = 'undefined_object';
END $$;

-- Waits until no batch of the job is in flight, and keeps new ones away to the end of the transaction. The lock that
-- every batch tries to share: see pass_gate_sql.
CREATE FUNCTION close_gate(job_name text) RETURNS void LANGUAGE sql AS $$
    SELECT pg_advisory_xact_lock(hashtextextended((n.nspname || '/' || job_name) COLLATE "default", 0))
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = 'job'::regclass
$$;

-- Why a change that was asked for has changed no row: needless, which is no error, or refused.
CREATE FUNCTION raise_unless(job_name text, already text[], past text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    found_state text := (SELECT j.state FROM job j WHERE j.name = job_name);
BEGIN
    IF found_state IS NULL THEN
        PERFORM raise_unknown(job_name);
    ELSIF found_state = ANY (already) THEN
        RAISE NOTICE 'job "%" is already %: nothing to do', job_name, found_state;
    ELSE
        RAISE 'job "%" is %: it cannot be %', job_name, found_state, past
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
END $$;

-- Pauses a job. Returns when no batch is in flight, and none begins before the transaction ends.
CREATE FUNCTION pause(name text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    WITH paused AS (
        UPDATE job j SET state = 'paused', resume_at = NULL
        WHERE j.name = pause.name AND j.state IN ('pending', 'running', 'paused') RETURNING j.name
    )
    INSERT INTO event (job, kind, actor, reason)
    SELECT p.name, 'paused', session_user, 'asked to pause' FROM paused p;
    IF NOT FOUND THEN
        PERFORM raise_unless(pause.name, '{}', 'paused');
    END IF;
    PERFORM close_gate(pause.name);
END $$;

-- Lets a paused job go on.
CREATE FUNCTION resume(name text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    WITH resumed AS (
        UPDATE job j SET state = CASE WHEN j.started_at IS NULL THEN 'pending' ELSE 'running' END, resume_at = NULL
        WHERE j.name = resume.name AND j.state = 'paused' RETURNING j.name
    )
    INSERT INTO event (job, kind, actor, reason)
    SELECT r.name, 'resumed', session_user, 'asked to resume' FROM resumed r;
    IF NOT FOUND THEN
        PERFORM raise_unless(resume.name, '{pending,running,finishing}', 'resumed');
    END IF;
END $$;

-- Ends a job for good; what was changed stays changed. Waits as pause does.
CREATE FUNCTION cancel(name text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    WITH cancelled AS (
        UPDATE job j SET state = 'cancelled', resume_at = NULL, finished_at = clock_timestamp()
        WHERE j.name = cancel.name AND j.state IN ('pending', 'running', 'paused', 'failed') RETURNING j.name
    )
    INSERT INTO event (job, kind, actor, reason)
    SELECT c.name, 'cancelled', session_user, 'asked to cancel' FROM cancelled c;
    IF NOT FOUND THEN
        PERFORM raise_unless(cancel.name, '{cancelled}', 'cancelled');
    END IF;
    PERFORM close_gate(cancel.name);
END $$;

-- Lets a failed or cancelled job go on from its cursor.
CREATE FUNCTION retry(name text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    WITH retried AS (
        UPDATE job j SET state = CASE WHEN j.started_at IS NULL THEN 'pending' ELSE 'running' END,
               error = NULL, finished_at = NULL
        WHERE j.name = retry.name AND j.state IN ('failed', 'cancelled') RETURNING j.name
    )
    INSERT INTO event (job, kind, actor, reason)
    SELECT r.name, 'retried', session_user, 'asked to go on from the cursor' FROM retried r;
    IF NOT FOUND THEN
        PERFORM raise_unless(retry.name, '{pending,running,finishing}', 'retried');
    END IF;
END $$;

-- A duration ("1h 30m") as its seconds and a size ("10GB") as its bytes; any other text as it is.
CREATE FUNCTION measured(written text) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN written ~ ('^\s*(\d+\s*(nsec|ns|usec|us|msec|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|hr|h'
                        || '|days?|d|weeks?|w)\s*)+$')
        THEN (SELECT to_jsonb(sum(part[1]::numeric * CASE
                  WHEN part[2] ~ '^n'  THEN 0.000000001
                  WHEN part[2] ~ '^us' THEN 0.000001
                  WHEN part[2] ~ '^ms' THEN 0.001
                  WHEN part[2] ~ '^s'  THEN 1
                  WHEN part[2] ~ '^m'  THEN 60
                  WHEN part[2] ~ '^h'  THEN 3600
                  WHEN part[2] ~ '^d'  THEN 86400
                  ELSE 604800 END))
              FROM regexp_matches(written, '(\d+)\s*([a-z]+)', 'g') AS part)
        WHEN written ~* '^\s*\d{1,9}(\.\d{1,9})?\s*(bytes|kB|MB|GB|TB)\s*$' THEN to_jsonb(pg_size_bytes(written))
        WHEN written ~* '^\s*\d{1,18}\s*B\s*$' THEN to_jsonb(rtrim(written, ' bB')::numeric)
        ELSE to_jsonb(written) END
$$;

-- Each key of a spec that says something, dotted (limits.rows_per_second), with its value. What is null, an empty list or
-- an empty section says nothing.
CREATE FUNCTION spec_keys(spec jsonb) RETURNS TABLE (key text, value jsonb) LANGUAGE sql IMMUTABLE AS $$
    WITH RECURSIVE place (key, section, value) AS (
        SELECT top.key, top.key, top.value FROM jsonb_each(spec) top
        UNION ALL
        SELECT p.key || '.' || below.key, p.section, below.value
        FROM place p CROSS JOIN LATERAL
             jsonb_each(CASE jsonb_typeof(p.value) WHEN 'object' THEN p.value ELSE '{}' END) below
    )
    SELECT p.key,
           -- The operations have SQL, and names.
           CASE WHEN p.section NOT IN ('update', 'delete', 'copy', 'move', 'statement')
                     AND jsonb_typeof(p.value) = 'string'
                THEN measured(p.value #>> '{}') ELSE p.value END
    FROM place p
    WHERE jsonb_typeof(p.value) NOT IN ('object', 'null') AND p.value <> '[]'
$$;

-- The keys under which two specs differ. Numbers are compared by value, durations and sizes too, however they are
-- written: a job that came from a file is kept as the program writes it, one that came from here as it was given.
CREATE FUNCTION differing_keys(known jsonb, new jsonb) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT string_agg(key, ', ' ORDER BY key)
    FROM spec_keys(known) k FULL JOIN spec_keys(new) n USING (key)
    WHERE k.value IS DISTINCT FROM n.value
$$;

-- Refuses a spec whose mistakes can be seen without the program, which examines the rest when it starts the job.
CREATE FUNCTION check_spec(job_name text, spec jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    operations CONSTANT text[] := '{update,delete,copy,move,statement}';
    known CONSTANT text[] := '{name,table,hold_before}' || operations
                             || '{walk,batch,limits,throttle,schedule,finish,sync}'::text[];
    given text[];
    problem text;
BEGIN
    IF job_name IS NULL OR job_name !~ '^[a-z0-9][a-z0-9_-]{0,62}$' THEN
        problem := 'name must be 1 to 63 of a-z, 0-9, _ and -, and begin with a letter or digit';
    ELSIF jsonb_typeof(spec) IS DISTINCT FROM 'object' THEN
        problem := 'the spec must be a JSON object, the job file''s keys and sections';
    ELSIF spec ? 'name' AND spec ->> 'name' IS DISTINCT FROM job_name THEN
        problem := format('the spec has another name, %s: leave it out there', coalesce(spec ->> 'name', 'null'));
    ELSE
        given := ARRAY(SELECT key FROM jsonb_each(spec) WHERE key = ANY (operations) AND value <> 'null' ORDER BY key);
        problem := coalesce(
            (SELECT 'unknown key ' || string_agg(key, ', ' ORDER BY key) || ': known are '
                    || array_to_string(known, ', ')
             FROM jsonb_object_keys(spec) AS key WHERE key <> ALL (known) HAVING count(*) > 0),
            CASE WHEN coalesce(cardinality(given), 0) = 0
                 THEN 'no operation: give one of ' || array_to_string(operations, ', ')
                 WHEN cardinality(given) > 1
                 THEN 'more than one operation (' || array_to_string(given, ', ') || '): give a job for each'
                 WHEN jsonb_typeof(spec -> given[1]) <> 'object'
                 THEN given[1] || ' must be an object, the keys of that section'
                 WHEN jsonb_typeof(spec -> 'table') IS DISTINCT FROM 'string'
                 THEN 'table is missing: give "schema.table"' END);
    END IF;
    IF problem IS NOT NULL THEN
        RAISE 'job "%": %', coalesce(job_name, ''), problem USING ERRCODE = 'invalid_parameter_value';
    END IF;
END $$;

-- Refuses a table that is not there now. With its schema only: the search path of who submits is not that of the daemon.
-- By the catalog, so that no right on the table or its schema is needed.
CREATE FUNCTION check_table(job_name text, written text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    parts text[];
    kind "char";
    problem text;
BEGIN
    BEGIN
        parts := parse_ident(written);
    EXCEPTION WHEN invalid_parameter_value THEN
        parts := NULL;
    END;
    IF cardinality(parts) IS DISTINCT FROM 2 THEN
        problem := format('table: give the table with its schema, such as "public.users", not %L', written);
    ELSE
        SELECT c.relkind INTO kind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = parts[1] AND c.relname = parts[2];
        IF kind IS NULL THEN
            problem := format('table: there is no table %s in database %s: create it first', written, current_database());
        ELSIF kind NOT IN ('r', 'p') THEN
            problem := format('table: %s is not a table', written);
        END IF;
    END IF;
    IF problem IS NOT NULL THEN
        RAISE 'job "%": %', job_name, problem USING ERRCODE = 'invalid_parameter_value';
    END IF;
END $$;

-- Registers a job: the job file as JSON. The same spec again does nothing; another one under a known name is refused,
-- unless the job was cancelled before it began.
CREATE FUNCTION submit(name text, spec jsonb) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    wanted jsonb;
    known job;
    different text;
BEGIN
    PERFORM check_spec(submit.name, submit.spec);
    wanted := jsonb_strip_nulls(submit.spec) || jsonb_build_object('name', submit.name);
    -- Locked, or not there at all.
    SELECT j.* INTO known FROM job j WHERE j.name = submit.name FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM check_table(submit.name, wanted ->> 'table');
        INSERT INTO job (name, spec) VALUES (submit.name, wanted) ON CONFLICT DO NOTHING;
        IF FOUND THEN
            INSERT INTO event (job, kind, actor, reason)
            VALUES (submit.name, 'submitted', session_user, 'the job is new');
            RETURN;
        END IF;
        -- Somebody else was faster.
        SELECT j.* INTO STRICT known FROM job j WHERE j.name = submit.name FOR NO KEY UPDATE;
    END IF;
    IF known.state = 'cancelled' AND known.started_at IS NULL THEN
        PERFORM check_table(submit.name, wanted ->> 'table');
        UPDATE job j SET spec = wanted, revision = j.revision + 1, state = 'pending', error = NULL, finished_at = NULL,
               submitted_at = clock_timestamp()
        WHERE j.name = submit.name;
        INSERT INTO event (job, kind, actor, reason)
        VALUES (submit.name, 'submitted', session_user, 'it was cancelled before it began');
        RETURN;
    END IF;
    different := differing_keys(known.spec, wanted);
    IF different IS NOT NULL THEN
        RAISE 'job "%" is already known with another spec (%): give it another name, or replace it with `backfilld submit --replace`',
              submit.name, different
            USING ERRCODE = 'duplicate_object';
    END IF;
    RAISE NOTICE 'job "%" is already known with this spec and is %: nothing to do', submit.name, known.state;
END $$;

-- Takes a submission back, as the reverse of a migration does: cancels the job whatever its state, and forgets how far it
-- has come, so that it begins with the first row when it is submitted again. Waits as pause does. A job that is not
-- there needs nothing.
CREATE FUNCTION withdraw(name text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    rows_scanned bigint;
BEGIN
    PERFORM FROM job j
    WHERE j.name = withdraw.name AND NOT (j.state = 'cancelled' AND j.started_at IS NULL) FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE NOTICE 'there is no job "%" to take back: nothing to do', coalesce(withdraw.name, '');
        RETURN;
    END IF;
    PERFORM close_gate(withdraw.name);
    SELECT coalesce(sum(s.rows_scanned), 0) INTO rows_scanned FROM slice s WHERE s.job = withdraw.name;
    DELETE FROM slice s WHERE s.job = withdraw.name;
    DELETE FROM quarantine q WHERE q.job = withdraw.name;
    UPDATE job j SET state = 'cancelled', revision = j.revision + 1, error = NULL, key_columns = NULL, key_index = NULL,
           table_oid = NULL, table_rows = NULL, resume_at = NULL, started_at = NULL, finished_at = clock_timestamp()
    WHERE j.name = withdraw.name;
    INSERT INTO event (job, kind, actor, reason)
    VALUES (withdraw.name, 'cancelled', session_user,
            'taken back: submitted again, it starts from the first row (' || rows_scanned || ' rows had been scanned)');
END $$;

CREATE FUNCTION in_words(seconds double precision) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN seconds < 90     THEN ceil(seconds) || ' s'
                WHEN seconds < 5400   THEN ceil(seconds / 60) || ' min'
                WHEN seconds < 172800 THEN floor(seconds / 3600) || ' h ' || floor(seconds / 60)::bigint % 60 || ' min'
                ELSE round((seconds / 86400)::numeric, 1) || ' days' END
$$;

CREATE FUNCTION with_commas(number numeric) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT to_char(number, 'FM999,999,999,999,999,990')
$$;

-- Raises an error unless the job is complete: for the migration that needs its rows. The message stands alone in the log
-- of a deploy that failed.
CREATE FUNCTION require_complete(name text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    job_is status;
    done text;
    told text;
    advice text;
    waits text := 'wait for it with `backfilld wait ' || require_complete.name || '`, then run this migration again.';
BEGIN
    SELECT s.* INTO job_is FROM status s WHERE s.name = require_complete.name;
    IF NOT FOUND THEN
        RAISE 'backfill "%" is not complete: there is no job of this name, it was never submitted to this database',
              coalesce(require_complete.name, '')
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'Submit it with `backfilld submit FILE`, or in a migration that is deployed before this one, and let it run. If it was, compare the names: `backfilld status`.';
    END IF;
    IF job_is.state = 'complete' THEN
        IF job_is.rows_quarantined > 0 THEN
            RAISE WARNING 'backfill "%" is complete, but % of its rows could not be changed: `backfilld quarantine %` lists them',
                          job_is.name, with_commas(job_is.rows_quarantined), job_is.name;
        END IF;
        RETURN;
    END IF;
    -- Cut off, never rounded up, as status says it.
    done := format('%s %% done (%s of about %s rows)', trunc((job_is.progress * 100)::numeric, 1),
                   with_commas(job_is.rows_scanned), with_commas(greatest(job_is.estimated_rows, job_is.rows_scanned)));
    CASE job_is.state
        WHEN 'pending' THEN
            told := 'it is pending and has not started yet';
            advice := 'A daemon must run (`backfilld run`): `backfilld status` says whether one does. When it has started, ' || waits;
        WHEN 'running' THEN
            told := concat_ws(', ', 'it is running', done,
                with_commas(job_is.rows_per_second::numeric) || ' rows/s',
                coalesce('about ' || in_words(job_is.eta_seconds) || ' left', 'time left unknown'),
                CASE WHEN job_is.workers = 0 THEN 'no daemon works on it' END,
                CASE WHEN job_is.throttle ->> 'zone' = 'paused' THEN 'held back by ' || (job_is.throttle ->> 'reason') END);
            advice := CASE WHEN job_is.workers = 0 THEN 'See that a daemon runs (`backfilld run`); ' || waits
                           ELSE upper(left(waits, 1)) || substr(waits, 2) END;
        WHEN 'paused' THEN
            told := 'it is paused, ' || done;
            advice := format('Let it go on with `backfilld resume %s`; ', job_is.name) || waits;
        WHEN 'finishing' THEN
            told := 'all rows are done, its finishing steps are under way';
            advice := upper(left(waits, 1)) || substr(waits, 2);
        WHEN 'failed' THEN
            told := format('it failed, %s: %s', done, coalesce(job_is.error, 'no reason was written down'));
            advice := format('Correct that, let it go on with `backfilld retry %s`; ', job_is.name) || waits;
        ELSE
            told := format('it was %s, %s', job_is.state, done);
            advice := format('If that was not meant so, let it go on with `backfilld retry %s`; ', job_is.name) || waits;
    END CASE;
    RAISE 'backfill "%" on % is not complete: %', job_is.name, job_is."table", told
        USING ERRCODE = 'object_not_in_prerequisite_state', HINT = advice;
END $$;

-- pg_catalog first and the caller's temporary schema last: no name here can be taken by somebody else.
DO $$
DECLARE
    granted CONSTANT text[] := '{submit,pause,resume,cancel,retry,withdraw,require_complete}';
    own CONSTANT text[] := '{raise_unknown,close_gate,raise_unless,measured,spec_keys,differing_keys,check_spec,check_table,in_words,with_commas}';
    -- Whoever upgrades a schema may be more than its owner.
    owner CONSTANT name := (SELECT pg_get_userbyid(c.relowner) FROM pg_class c WHERE c.oid = 'job'::regclass);
    made record;
BEGIN
    FOR made IN SELECT p.oid::regprocedure AS function, p.proname = ANY (granted) AS is_granted
                FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
                WHERE n.nspname = current_schema() AND p.proname = ANY (granted || own)
    LOOP
        IF owner <> current_user THEN
            EXECUTE format('ALTER FUNCTION %s OWNER TO %I', made.function, owner);
        END IF;
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', made.function);
        IF made.is_granted THEN
            EXECUTE format('ALTER FUNCTION %s SECURITY DEFINER SET search_path = pg_catalog, %I, pg_temp',
                           made.function, current_schema());
        END IF;
    END LOOP;
END $$;
