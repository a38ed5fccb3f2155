#!/usr/bin/env bash
# Run once by the image of PostgreSQL, as its user, when it has made the database: the roles, the way in for the replica,
# and the demo's table.
set -euo pipefail

echo 'host replication replicator all scram-sha-256' >>"$PGDATA/pg_hba.conf"

# psql reads the passwords itself: an argument could be seen by everybody.
sql() {
    psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --username="${POSTGRES_USER:-postgres}" --dbname="$POSTGRES_DB" "$@"
}
sql <<'SQL'
\set replication `cat "${SECRETS:-/run/secrets}/replication-password"`
\set backfilld `cat "${SECRETS:-/run/secrets}/backfilld-password"`
CREATE ROLE replicator LOGIN REPLICATION PASSWORD :'replication';
CREATE ROLE backfilld LOGIN PASSWORD :'backfilld';
-- To make its schema, and to see the replica's lag.
SELECT format('GRANT CREATE ON DATABASE %I TO backfilld', current_database()) \gexec
GRANT pg_monitor TO backfilld;
SQL

sql --set=rows="$DEMO_ROWS" --file="${DEMO:-/demo}/schema.sql"
sql --command='GRANT SELECT, UPDATE (email_normalized) ON users TO backfilld'
