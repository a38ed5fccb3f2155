-- The demo's table: an application's users, as they might be after some years. Run by psql with the
-- variable `rows`, the number of users.

CREATE TABLE users (
    id           bigint GENERATED ALWAYS AS IDENTITY,
    email        text        NOT NULL,
    name         text        NOT NULL,
    bio          text        NOT NULL,
    settings     jsonb       NOT NULL,
    created_at   timestamptz NOT NULL,
    last_seen_at timestamptz NOT NULL
);

-- Addresses as people type them: capitals here, a stray space there.
INSERT INTO users (email, name, bio, settings, created_at, last_seen_at)
SELECT
    CASE WHEN n % 10 = 0 THEN ' ' ELSE '' END
        || initcap(given) || '.' || family || n
        || CASE WHEN n % 3 = 0 THEN '@Example.COM' ELSE '@example.org' END,
    initcap(given) || ' ' || initcap(family),
    repeat('Reads, writes, and walks the dog. ', 1 + n % 3),
    jsonb_build_object('locale', (ARRAY['en', 'de', 'fr', 'ja'])[1 + n % 4], 'newsletter', n % 2 = 0),
    now() - (:rows - n) * interval '30 seconds',
    now() - (n % 5000) * interval '1 minute'
FROM generate_series(1, :rows) AS n
CROSS JOIN LATERAL (
    SELECT
        (ARRAY['ada', 'grace', 'edsger', 'barbara', 'donald', 'frances', 'ken', 'radia'])[1 + n % 8] AS given,
        substr(md5(n::text), 1, 8) AS family
) AS person;

ALTER TABLE users ADD PRIMARY KEY (id);
CREATE UNIQUE INDEX users_email ON users (email);
CREATE INDEX users_created_at ON users (created_at);

-- The schema half of the change, as a migration does it: at once, whatever the table's size.
ALTER TABLE users ADD COLUMN email_normalized text;

-- Only the demo has this: it counts how often each row was backfilled, to show that a kill makes no
-- row change twice. The foreground load sets other columns and does not fire it.
ALTER TABLE users ADD COLUMN times_backfilled int NOT NULL DEFAULT 0;

CREATE FUNCTION count_backfill() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.times_backfilled := OLD.times_backfilled + 1;
    RETURN NEW;
END
$$;

CREATE TRIGGER count_backfill BEFORE UPDATE OF email_normalized ON users
FOR EACH ROW EXECUTE FUNCTION count_backfill();

VACUUM (ANALYZE) users;
CHECKPOINT;
