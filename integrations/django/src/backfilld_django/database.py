"""Errors of the database, in words for whoever reads the log of a deploy."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.core.management.base import CommandError
from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper

logger = logging.getLogger("backfilld_django")

# The errors that the functions raise themselves: their text needs nothing added.
TOLD_BY_FUNCTIONS = frozenset({"22023", "42704", "42710", "55000"})
NOT_INSTALLED = frozenset({"3F000", "42883", "42P01"})
INSUFFICIENT_PRIVILEGE = "42501"


class BackfillError(CommandError):
    """A migration cannot go on because of a backfill. ``migrate`` prints it without a traceback."""


def quoted(schema: str) -> str:
    """A schema's name as an identifier, in SQL that takes parameters. Django's own does not escape quotes."""
    return '"' + schema.replace('"', '""').replace("%", "%%") + '"'


def require_postgresql(connection: BaseDatabaseWrapper) -> None:
    """Refuse a database that backfilld cannot work on."""
    if connection.vendor != "postgresql":
        raise BackfillError(
            f'backfills need PostgreSQL, and the database "{connection.alias}" is {connection.vendor}: '
            "keep this migration away from it by allow_migrate() of a database router, "
            "or set BACKFILLD_ENABLED = False where there is nothing to backfill"
        )


@contextmanager
def readable_errors(connection: BaseDatabaseWrapper, schema: str) -> Iterator[None]:
    """Turn what the functions say into a :class:`BackfillError`; leave all other errors as they are."""
    try:
        yield
    except Error as error:
        # psycopg's own error, of either major version.
        diagnostics = getattr(error.__cause__, "diag", None)
        sqlstate = getattr(diagnostics, "sqlstate", None)
        message = getattr(diagnostics, "message_primary", None) or str(error)
        if sqlstate in TOLD_BY_FUNCTIONS:
            hint = getattr(diagnostics, "message_hint", None)
            raise BackfillError(f"{message}\nHint: {hint}" if hint else message) from error
        if sqlstate in NOT_INSTALLED:
            raise BackfillError(
                f'{message}: run `backfilld init` on the database "{connection.alias}", '
                f'with state.schema = "{schema}"'
            ) from error
        if sqlstate == INSUFFICIENT_PRIVILEGE:
            raise BackfillError(
                f"{message}: grant the migrating role what backfilld's docs/operating.md lists under Rights"
            ) from error
        raise


@contextmanager
def logged_warnings(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Log the server's warnings, which drivers keep to themselves: of rows that could not be changed, for example."""
    connection.ensure_connection()
    driver: Any = connection.connection

    def log(notice: Any) -> None:
        if notice.severity_nonlocalized == "WARNING":
            logger.warning(notice.message_primary)

    # psycopg 3 calls back, psycopg 2 keeps a list of texts.
    if hasattr(driver, "add_notice_handler"):
        driver.add_notice_handler(log)
        try:
            yield
        finally:
            driver.remove_notice_handler(log)
    else:
        before = len(driver.notices)
        yield
        for text in driver.notices[before:]:
            if text.startswith("WARNING:"):
                logger.warning(text.removeprefix("WARNING:").strip())
