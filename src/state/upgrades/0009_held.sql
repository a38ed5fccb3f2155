-- What a job waits for before its start or its finish is said by `require_complete` too. Run with the state schema as
-- the whole search_path.
CREATE OR REPLACE FUNCTION require_complete(name text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    job_is status;
    done text;
    held text;
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
    -- What somebody has to say before it goes on.
    held := CASE WHEN job_is.throttle ->> 'signal' = 'hold_before'
                 THEN format('Let it go on with `backfilld approve %s`; ', job_is.name) || waits END;
    CASE job_is.state
        WHEN 'pending' THEN
            told := 'it is pending and has not started yet' || CASE WHEN held IS NULL THEN '' ELSE ': its start waits for an approval' END;
            advice := CASE WHEN held IS NOT NULL THEN held ELSE 'A daemon must run (`backfilld run`): `backfilld status` says whether one does. When it has started, ' || waits END;
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
            told := 'all rows are done, ' || CASE
                WHEN held IS NOT NULL THEN 'its finish waits for an approval'
                WHEN job_is.throttle ->> 'zone' = 'paused' THEN 'its finishing steps are under way: ' || (job_is.throttle ->> 'reason')
                ELSE 'its finishing steps are under way' END;
            advice := coalesce(held, upper(left(waits, 1)) || substr(waits, 2));
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

-- To replace a function forgets what was set of it.
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION require_complete(text) SECURITY DEFINER SET search_path = pg_catalog, %I, pg_temp',
                   current_schema());
END $$;
