"""The migration operations."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from django.conf import settings
from django.db import router
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.operations.base import Operation, OperationCategory
from django.db.migrations.state import ProjectState

from .database import BackfillError, logged_warnings, quoted, readable_errors, require_postgresql

__all__ = ["BackfillError", "RequireBackfill", "SubmitBackfill"]

Section = Mapping[str, Any]

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
OPERATIONS = ("update", "delete", "copy", "move", "statement")


class BackfillOperation(Operation):
    """What both operations share: they change nothing that Django knows of, and call one function."""

    category = OperationCategory.SQL
    reduces_to_sql = True

    name: str
    schema: str
    hints: Section

    def _keep(self, name: str, schema: str, elidable: bool, hints: Section | None) -> None:
        self.name = name
        self.schema = schema
        # As RunSQL has it, of which the stubs do not know that either.
        self.elidable = elidable  # type: ignore[misc]
        self.hints = hints or {}

    def state_forwards(self, app_label: str, state: ProjectState) -> None:
        """Nothing that Django knows of changes."""

    def _call(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        function: str,
        *arguments: tuple[str, str],
    ) -> None:
        """Call a function with pairs of a value and the cast it needs."""
        connection = schema_editor.connection
        if not getattr(settings, "BACKFILLD_ENABLED", True):
            return
        if not router.allow_migrate(connection.alias, app_label, **self.hints):
            return
        require_postgresql(connection)
        casts = ", ".join(f"%s{cast}" for _, cast in arguments)
        with readable_errors(connection, self.schema), logged_warnings(connection):
            schema_editor.execute(
                f"SELECT {quoted(self.schema)}.{function}({casts})", [value for value, _ in arguments]
            )


class SubmitBackfill(BackfillOperation):
    """Register a backfill. The daemon takes it up when the migration commits.

    The arguments are the sections of a job file; ``spec`` is a whole job file instead. Reversed, the job is
    cancelled, and starts from the first row when the migration is applied again.
    """

    serialization_expand_args = [
        *OPERATIONS, "walk", "batch", "limits", "throttle", "schedule", "finish", "sync", "spec",
    ]  # fmt: skip

    def __init__(
        self,
        name: str,
        table: str | None = None,
        update: Section | None = None,
        delete: Section | None = None,
        copy: Section | None = None,
        move: Section | None = None,
        statement: Section | None = None,
        walk: Section | None = None,
        batch: Section | None = None,
        limits: Section | None = None,
        throttle: Section | None = None,
        schedule: Section | None = None,
        finish: Section | None = None,
        sync: Section | None = None,
        hold_before: Sequence[str] | None = None,
        spec: Section | None = None,
        schema: str = "backfilld",
        elidable: bool = False,
        hints: Section | None = None,
    ) -> None:
        if not NAME.fullmatch(name):
            raise ValueError(
                f"SubmitBackfill: name {name!r} must be 1 to 63 of a-z, 0-9, _ and -, "
                "and begin with a letter or digit"
            )
        given = {
            "table": table,
            "update": update,
            "delete": delete,
            "copy": copy,
            "move": move,
            "statement": statement,
            "walk": walk,
            "batch": batch,
            "limits": limits,
            "throttle": throttle,
            "schedule": schedule,
            "finish": finish,
            "sync": sync,
            "hold_before": hold_before,
        }
        sections = {key: value for key, value in given.items() if value is not None}
        if spec is not None and sections:
            raise ValueError(
                f"SubmitBackfill {name}: give spec or {', '.join(sections)}, not both"
            )
        self.spec: Section = sections if spec is None else spec
        if sum(operation in self.spec for operation in OPERATIONS) != 1:
            raise ValueError(
                f"SubmitBackfill {name}: give exactly one of {', '.join(OPERATIONS)}"
            )
        if not self.spec.get("table"):
            raise ValueError(
                f'SubmitBackfill {name}: give the table with its schema, such as table="public.users"'
            )
        self._keep(name, schema, elidable, hints)

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        spec = json.dumps(self.spec, ensure_ascii=False)
        self._call(app_label, schema_editor, "submit", (self.name, ""), (spec, "::jsonb"))

    def database_backwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        self._call(app_label, schema_editor, "withdraw", (self.name, ""))

    def describe(self) -> str:
        return f"Submit backfill {self.name} of {self.spec['table']}"

    @property
    def migration_name_fragment(self) -> str:
        return f"submit_backfill_{self.name.replace('-', '_')}"


class RequireBackfill(BackfillOperation):
    """Refuse to go on unless a backfill is complete. Reversed, it does nothing."""

    def __init__(
        self,
        name: str,
        schema: str = "backfilld",
        elidable: bool = False,
        hints: Section | None = None,
    ) -> None:
        self._keep(name, schema, elidable, hints)

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        self._call(app_label, schema_editor, "require_complete", (self.name, ""))

    def database_backwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        """What was required once needs nothing to be undone."""

    def describe(self) -> str:
        return f"Require backfill {self.name} to be complete"

    @property
    def migration_name_fragment(self) -> str:
        return f"require_backfill_{self.name.replace('-', '_')}"
