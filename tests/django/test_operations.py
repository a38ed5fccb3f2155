"""What the operations do beside being applied: printed, planned, faked, reversed, written, kept away."""

import json
import re
import shutil
from pathlib import Path

import pytest
from django.db import connections
from django.db.migrations import Migration
from django.db.migrations.optimizer import MigrationOptimizer
from django.db.migrations.operations import RunSQL
from django.db.migrations.state import ProjectState
from django.db.migrations.writer import MigrationWriter, OperationWriter
from django.test import override_settings

from backfilld_django import BackfillError, RequireBackfill, SubmitBackfill
from backfilld_django.management.commands.backfilld_status import note
from conftest import Database
from servers import wait_until
from shop.stages import JOB

UPDATE = {"set": {"email_normalized": "lower(email)"}}


def submit(**more: object) -> SubmitBackfill:
    return SubmitBackfill(name="fill", table="public.t", update=UPDATE, **more)


def migrated(database: Database, target: str = "0002") -> None:
    database.managed("migrate", "shop", target)
    database.sql("INSERT INTO shop_customer (email, visits) SELECT 'User' || n, 0 FROM generate_series(1, 100) n")


def test_sqlmigrate_prints_what_psql_can_run(database: Database) -> None:
    migrated(database)
    sql = database.managed("sqlmigrate", "shop", "0003")
    assert f"""SELECT "backfilld".submit('{JOB}', '{{"table": "public.shop_customer", """ in sql
    assert f"-- Submit backfill {JOB} of public.shop_customer" in sql
    database.sql(sql)
    assert database.state(JOB) == "pending"
    assert "submit" not in database.sql("SELECT name FROM django_migrations WHERE app = 'shop'")
    required = database.managed("sqlmigrate", "shop", "0004")
    assert f"""SELECT "backfilld".require_complete('{JOB}');""" in required
    run = database.server.run_psql(database.name, required)
    assert "is not complete: it is pending" in run.stderr and "HINT:" in run.stderr
    database.sql(database.managed("sqlmigrate", "shop", "0003", "--backwards"))
    assert database.state(JOB) == "cancelled"
    assert "require_complete" not in database.managed("sqlmigrate", "shop", "0004", "--backwards")


def test_values_with_quotes_percent_signs_and_backslashes_arrive_as_they_are(journey: Database) -> None:
    journey.sql("CREATE TABLE t (id bigint PRIMARY KEY, x text)")
    expression = """replace(x, '100%s %%', 'it''s \\ "ü" $1')"""
    operation = SubmitBackfill(name="fill", table="public.t", update={"set": {"x": expression}})
    connection = connections["default"]
    stored = "SELECT spec #>> '{update,set,x}' FROM backfilld.job"
    try:
        with connection.schema_editor(collect_sql=True) as editor:
            operation.database_forwards("shop", editor, ProjectState(), ProjectState())
        journey.sql("\n".join(editor.collected_sql))
        assert journey.sql(stored) == expression
        # Again, this time by Django itself: the same.
        with connection.schema_editor() as editor:
            operation.database_forwards("shop", editor, ProjectState(), ProjectState())
        assert journey.sql(f"{stored}; SELECT count(*) FROM backfilld.event") == f"{expression}\n1"
    finally:
        connection.close()


def test_another_schema_of_any_name(journey: Database) -> None:
    journey.sql("""CREATE SCHEMA "a%s ""b"; CREATE FUNCTION "a%s ""b".require_complete(name text) RETURNS void
                   LANGUAGE plpgsql AS $$ BEGIN RAISE 'asked for %', name USING ERRCODE = '55000'; END $$""")
    connection = connections["default"]
    try:
        with pytest.raises(BackfillError, match="asked for fill"), connection.schema_editor() as editor:
            operation = RequireBackfill("fill", schema='a%s "b')
            operation.database_forwards("shop", editor, ProjectState(), ProjectState())
    finally:
        connection.close()


def test_the_plan_says_what_will_happen_and_nothing_happens(database: Database) -> None:
    migrated(database)
    plan = database.managed("migrate", "shop", "0004", "--plan")
    assert f"Submit backfill {JOB} of public.shop_customer" in plan
    assert f"Require backfill {JOB} to be complete" in plan
    assert database.sql("SELECT count(*) FROM backfilld.job") == "0"


def test_fake_runs_nothing(database: Database) -> None:
    migrated(database)
    database.managed("migrate", "shop", "0004", "--fake")
    assert database.sql("SELECT count(*) FROM backfilld.job") == "0"
    database.managed("migrate", "shop", "0002", "--fake")
    # And what was faked can be reversed.
    database.managed("migrate", "shop", "0003", "--fake")
    database.managed("migrate", "shop", "0002")


def test_a_backfill_that_was_reversed_starts_from_the_first_row(database: Database) -> None:
    migrated(database)
    daemon = database.start_daemon()
    # Of each round the column is another, though its name is the same.
    for _ in range(2):
        database.managed("migrate", "shop", "0003")
        wait_until("complete", lambda: database.state(JOB) == "complete")
        missing = "SELECT count(*) FROM shop_customer WHERE email_normalized IS DISTINCT FROM lower(email)"
        assert database.sql(missing) == "0"
        database.managed("migrate", "shop", "0004")
        database.managed("migrate", "shop", "0001")
        assert database.state(JOB) == "cancelled"
    assert database.sql(f"SELECT count(*) FROM backfilld.event WHERE job = '{JOB}' AND kind = 'complete'") == "2"
    daemon.stop()


def test_nothing_is_submitted_by_a_migration_that_fails_later(journey: Database) -> None:
    journey.sql("CREATE TABLE t (id bigint PRIMARY KEY)")
    connection = connections["default"]
    migration = Migration("9999", "shop")
    migration.operations = [submit(), RunSQL("SELECT 1 / 0")]
    try:
        with pytest.raises(Exception, match="division by zero"), connection.schema_editor() as editor:
            migration.apply(ProjectState(), editor)
    finally:
        connection.close()
    assert journey.sql("SELECT count(*) FROM backfilld.job") == "0"


def test_errors_are_told_in_words(database: Database) -> None:
    migrated(database)
    database.sql(
        f"""SELECT backfilld.submit('{JOB}', '{{"table": "public.shop_customer",
                                                "update": {{"set": {{"email": "1"}}}}}}')"""
    )
    told = database.refused("migrate", "shop", "0003")
    assert f'BackfillError: job "{JOB}" is already known with another spec (finish.not_null, limits.rows_per_' in told
    database.sql(f"CREATE ROLE role_{database.name} LOGIN SUPERUSER; SELECT backfilld.withdraw('{JOB}')")
    database.sql("ALTER TABLE shop_customer RENAME TO renamed")
    assert "there is no table public.shop_customer" in database.refused("migrate", "shop", "0003")
    role = f"role_{database.name}"
    database.sql(f"GRANT SELECT, INSERT ON django_migrations TO {role}; ALTER ROLE {role} NOSUPERUSER")
    told = database.refused("migrate", "shop", "0003", SHOP_USER=role)
    assert "permission denied for schema backfilld: grant the migrating role what" in told
    database.sql("DROP SCHEMA backfilld CASCADE")
    assert "run `backfilld init` on the database" in database.refused("migrate", "shop", "0003")


def test_rows_that_were_set_aside_are_told_before_the_old_column_goes(database: Database) -> None:
    migrated(database)
    database.sql("ALTER TABLE shop_customer ADD CHECK (email_normalized <> 'user77')")
    # Without the finish, which such a row would fail.
    database.sql(
        f"""SELECT backfilld.submit('{JOB}', '{{"table": "public.shop_customer", "update": {{
                "set": {{"email_normalized": "lower(email)"}}, "where": "email_normalized IS NULL"}}}}')"""
    )
    daemon = database.start_daemon()
    wait_until("complete", lambda: database.state(JOB) == "complete")
    daemon.stop()
    database.managed("migrate", "shop", "0004", "--fake")
    run = database.manage("migrate", "shop", "0005")
    assert run.returncode == 0 and f'backfill "{JOB}" is complete, but 1 of its rows could not be changed' in run.stderr


def test_other_databases_are_refused_or_kept_away(database: Database) -> None:
    told = database.refused("migrate", "shop", "--database", "sqlite")
    assert told.startswith('BackfillError: backfills need PostgreSQL, and the database "sqlite" is sqlite: keep')
    done = database.managed("migrate", "shop", "--database", "sqlite", SHOP_WITHOUT_BACKFILLD="1")
    assert "0005_remove_customer_email... OK" in done


def test_a_router_decides_which_database_it_is_for(journey: Database) -> None:
    connection = connections["default"]
    journey.sql("CREATE TABLE t (id bigint PRIMARY KEY, email_normalized text, email text)")
    asked = []

    class Router:
        def allow_migrate(self, db: str, app_label: str, **hints: object) -> bool:
            asked.append((db, app_label, hints))
            return bool(hints.get("here"))

    try:
        with override_settings(DATABASE_ROUTERS=[Router()]):
            for here in (False, True):
                for operation in (submit(hints={"here": here}), RequireBackfill("other", hints={"here": False})):
                    with connection.schema_editor() as editor:
                        operation.database_forwards("shop", editor, ProjectState(), ProjectState())
                assert journey.sql("SELECT count(*) FROM backfilld.job") == str(int(here))
            with connection.schema_editor() as editor:
                submit(hints={"here": False}).database_backwards("shop", editor, ProjectState(), ProjectState())
            assert journey.state("fill") == "pending"
    finally:
        connection.close()
    assert asked[0] == ("default", "shop", {"here": False})


def test_a_written_migration_is_the_same_when_it_is_read() -> None:
    operations = [
        submit(walk={"key": ["id"], "workers": 2}, hold_before=["start"], schema="other", elidable=True),
        SubmitBackfill("fill-2", spec={"table": "public.t", "update": UPDATE, "finish": None}),
        RequireBackfill("fill", hints={"here": True}),
    ]
    for operation in operations:
        text, imports = OperationWriter(operation).serialize()
        assert imports == {"import backfilld_django.operations"}
        names: dict[str, object] = {}
        exec("\n".join([*imports, f"read = [\n{text}\n]"]), names)
        [read] = names["read"]
        # How the arguments were passed is all that may differ.
        assert vars(read) | {"_constructor_args": operation._constructor_args} == vars(operation)
    migration = Migration("0009_written", "shop")
    migration.operations = operations
    compile(MigrationWriter(migration).as_string(), "0009_written.py", "exec")
    assert re.search(r"update=\{\n\s+'set': ", MigrationWriter(migration).as_string())


def test_a_migration_of_theirs_is_named_after_them() -> None:
    migration = Migration("0001", "shop")
    migration.operations = [SubmitBackfill("fill-it", spec={"table": "public.t", "update": UPDATE})]
    assert migration.suggest_name() == "submit_backfill_fill_it"
    migration.operations = [RequireBackfill("fill-it")]
    assert migration.suggest_name() == "require_backfill_fill_it"


def test_squashing_keeps_their_order_unless_they_may_be_left_out() -> None:
    kept = [RunSQL("SELECT 1"), submit(), RequireBackfill("fill"), RunSQL("SELECT 2")]
    assert MigrationOptimizer().optimize(kept, "shop") == kept
    assert submit(elidable=True).elidable and RequireBackfill("fill", elidable=True).elidable


def test_makemigrations_and_squashmigrations_keep_them(database: Database, tmp_path: Path) -> None:
    assert "No changes detected" in database.managed("makemigrations", "shop", "--check", "--dry-run")
    database.project = tmp_path / "copy"
    shutil.copytree(Path(__file__).parent, database.project)
    database.managed("squashmigrations", "shop", "0002", "0003", "--no-input", "--squashed-name", "both")
    database.managed("migrate", "shop", "0002_both")
    assert database.state(JOB) == "pending"
    assert database.sql(f"SELECT spec #>> '{{update,set,email_normalized}}' FROM backfilld.job") == "lower(email)"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"name": "Fill", "table": "t", "update": UPDATE}, "name 'Fill' must be 1 to 63"),
        ({"name": "fill", "update": UPDATE}, "give the table with its schema"),
        ({"name": "fill", "table": "t"}, "give exactly one of update, delete"),
        ({"name": "fill", "table": "t", "update": UPDATE, "delete": {}}, "give exactly one of"),
        ({"name": "fill", "table": "t", "spec": {"update": UPDATE}}, "give spec or table, not both"),
    ],
)
def test_what_cannot_be_a_job_is_refused_when_the_migration_is_read(
    arguments: dict[str, object], told: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        SubmitBackfill(**arguments)


def test_status_shows_the_jobs(database: Database) -> None:
    assert database.managed("backfilld_status") == "no job was submitted yet\n"
    migrated(database, "0003")
    lines = database.managed("backfilld_status").splitlines()
    assert lines[0].split() == ["NAME", "STATE", "DONE", "ROWS", "OF", "ABOUT", "ROWS/S", "LEFT", "NOTE"]
    assert lines[1].split()[:3] == [JOB, "pending", "0.0"]
    assert lines[1].endswith("  waits for a daemon")
    daemon = database.start_daemon()
    wait_until("complete", lambda: database.state(JOB) == "complete")
    [job] = json.loads(database.managed("backfilld_status", JOB, "--json"))
    told = json.loads(database.backfilld("status", JOB, "--json"))[0]
    assert (job["state"], job["rows_changed"], job["progress"]) == ("complete", 100, 1)
    assert job.keys() == told.keys()
    daemon.stop()
    other = database.managed("backfilld_status", "--database", "other", SHOP_OTHER_DATABASE=database.name)
    assert "complete  100.0 %" in other
    assert database.refused("backfilld_status", "fill").startswith('CommandError: there is no job "fill"')
    assert "there is no database" in database.refused("backfilld_status", "--database", "none")
    assert "run `backfilld init`" in database.refused("backfilld_status", "--schema", "none")
    assert "backfills need PostgreSQL" in database.refused("backfilld_status", "--database", "sqlite")


def test_status_tells_of_a_batch_that_fails_beside_the_pace() -> None:
    throttle = {"zone": "capped", "signal": None, "reason": "limits.rows_per_second = 5"}
    job = {"state": "running", "workers": 2, "error": None, "rows_quarantined": 0, "throttle": throttle}
    assert note(job) == "limits.rows_per_second = 5"
    assert note({**job, "retrying": "a batch has failed 3 times"}) == "a batch has failed 3 times; limits.rows_per_second = 5"
