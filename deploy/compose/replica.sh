#!/usr/bin/env bash
# A streaming replica: a copy of the primary that PRIMARY names, made when there is none yet, and the server on it.
set -euo pipefail

# The server reads it each time it connects; libpq wants it to be nobody else's.
passfile=${PASSFILE:-/tmp/replication.pgpass}
umask 077
printf '*:*:*:*:%s\n' "$(<"${SECRETS:-/run/secrets}/replication-password")" >"$passfile"

# The last file that pg_basebackup writes: without it what is there is none, or half of one.
if [[ ! -e $PGDATA/standby.signal ]]; then
    find "$PGDATA" -mindepth 1 -delete
    # The image leaves it open to all, and the server refuses that.
    chmod 700 "$PGDATA"
    pg_basebackup --pgdata="$PGDATA" --dbname="$PRIMARY passfile=$passfile" --no-password \
        --write-recovery-conf --wal-method=stream --checkpoint=fast
fi
exec postgres "$@"
