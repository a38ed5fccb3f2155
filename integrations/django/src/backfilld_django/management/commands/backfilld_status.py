"""``manage.py backfilld_status``: the jobs of a database."""

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DEFAULT_DB_ALIAS, connections

from backfilld_django.database import quoted, readable_errors, require_postgresql

HEADINGS = ("NAME", "STATE", "DONE", "ROWS", "OF ABOUT", "ROWS/S", "LEFT", "NOTE")


class Command(BaseCommand):
    """Reads the view ``status`` of backfilld's schema."""

    help = "Shows the backfills of a database, as `backfilld status` does."
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", nargs="?", metavar="NAME", help="only this job")
        parser.add_argument("--json", action="store_true", help="every column, as JSON")
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS, help="alias of the database")
        parser.add_argument("--schema", default="backfilld", help="backfilld's schema")

    def handle(self, *args: Any, **options: Any) -> None:
        name, schema = options["name"], options["schema"]
        if options["database"] not in connections:
            raise CommandError(f"there is no database \"{options['database']}\" in DATABASES")
        connection = connections[options["database"]]
        require_postgresql(connection)
        sql = (
            f"SELECT to_jsonb(s)::text FROM {quoted(schema)}.status s "
            "WHERE %s::text IS NULL OR name = %s ORDER BY submitted_at DESC, name"
        )
        with readable_errors(connection, schema), connection.cursor() as cursor:
            cursor.execute(sql, [name, name])
            jobs: list[dict[str, Any]] = [json.loads(row[0]) for row in cursor.fetchall()]
        if name is not None and not jobs:
            raise CommandError(f'there is no job "{name}" in the database "{connection.alias}"')
        if options["json"]:
            self.stdout.write(json.dumps(jobs, indent=2, ensure_ascii=False))
        elif jobs:
            self.stdout.write(table([HEADINGS, *map(row_of, jobs)]))
        else:
            self.stdout.write("no job was submitted yet")


def row_of(job: dict[str, Any]) -> tuple[str, ...]:
    """A job as a line of the table."""
    left = job["eta_seconds"]
    return (
        job["name"],
        job["state"],
        # Cut off, never rounded up: 100 % is said of a complete job only.
        f"{int(job['progress'] * 1000) / 10:.1f} %",
        f"{job['rows_scanned']:,}",
        f"{job['estimated_rows']:,}",
        f"{job['rows_per_second']:,.0f}",
        "" if left is None else f"{left:,.0f} s",
        note(job),
    )


def note(job: dict[str, Any]) -> str:
    """What a person should know besides the figures: as `backfilld status` has it, in short."""
    zone, reason = job["throttle"]["zone"], job["throttle"]["reason"]
    if job["state"] == "pending" and zone != "paused":
        reason = "waits for a daemon"
    if job["state"] == "running" and job["workers"] == 0 and zone != "paused":
        reason = "no daemon works on it"
    # An older schema has none.
    notes = [job["error"], job.get("retrying"), None if job["error"] else reason]
    if job["rows_quarantined"]:
        notes.append(f"{job['rows_quarantined']:,} rows in quarantine")
    return "; ".join(filter(None, notes))


def table(rows: list[tuple[str, ...]]) -> str:
    """Rows below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)
