"""What docs/migrations.md shows for other tools, run as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Database
from servers import PROGRAM, ROOT, wait_until

JOB = "users-email-normalized"
DOCS = (ROOT / "docs/migrations.md").read_text()
ALEMBIC_ENV = """
import os
from alembic import context
from sqlalchemy import create_engine
with create_engine(os.environ["ALEMBIC_URL"]).connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
"""
NULLABLE = "SELECT is_nullable FROM information_schema.columns WHERE column_name = 'email_normalized'"


def blocks(heading: str, language: str) -> list[str]:
    """The blocks of code below a heading; of the text before the first one if it is empty."""
    sections = dict(re.findall(r"^## (\S.*)\n((?:(?!^## ).*\n?)*)", DOCS, re.MULTILINE))
    text = sections[heading] if heading else DOCS.split("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def users(database: Database) -> Database:
    database.sql(
        "CREATE TABLE users (id bigint PRIMARY KEY, email text, email_normalized text);"
        "INSERT INTO users (id, email) SELECT n, ' User' || n FROM generate_series(1, 100) n"
    )
    return database


def walk(database: Database) -> None:
    database.start_daemon()
    wait_until("complete", lambda: database.state(JOB) == "complete")
    wrong = "SELECT count(*) FROM users WHERE email_normalized IS DISTINCT FROM lower(trim(email))"
    assert database.sql(wrong) == "0"


def by_psql(database: Database, submit: str, require: str, withdraw: str) -> None:
    """Submit, require too early, take back, submit again, and require once it is complete."""
    database.sql(submit)
    run = database.server.run_psql(database.name, f"BEGIN; {require}; COMMIT")
    assert f'backfill "{JOB}" on public.users is not complete: it is pending' in run.stderr
    database.sql(withdraw)
    assert database.state(JOB) == "cancelled"
    database.sql(submit)
    walk(database)
    database.sql(require)


def test_the_first_example(users: Database) -> None:
    submit, require = blocks("", "sql")
    by_psql(users, submit, require, f"SELECT backfilld.withdraw('{JOB}')")


def test_the_message_is_as_it_is_shown(users: Database) -> None:
    [submit, require] = blocks("", "sql")
    users.sql(submit)
    users.sql(
        f"""UPDATE backfilld.job SET state = 'running', started_at = now();
            INSERT INTO backfilld.slice (job, number, first_key, last_key, rows_scanned, estimated_rows, owner,
                                         lease_until, checkpoint_at, rows_per_second)
            VALUES ('{JOB}', 1, '{{1}}', '{{2}}', 1234567, 2000000, 'd', now() + interval '1 hour',
                    clock_timestamp(), 3103)"""
    )
    run = users.server.run_psql(users.name, require)
    [shown] = blocks("", "text")
    told = "".join(line for line in run.stderr.splitlines(True) if not line.startswith("CONTEXT"))
    told = told[told.index("ERROR") :]
    assert " ".join(told.split()) == " ".join(shown.split())


def test_flyway(users: Database) -> None:
    submit, require, withdraw = blocks("Flyway", "sql")
    by_psql(users, submit, require, withdraw)
    assert users.sql(NULLABLE) == "NO"


def test_the_sql_of_rails(users: Database) -> None:
    submit, require = blocks("Rails", "ruby")
    [heredoc] = re.findall(r"<<~SQL\n(.*?)\n\s+SQL$", submit, re.MULTILINE | re.DOTALL)
    [withdraw] = re.findall(r'execute "(.*)"', submit)
    [required] = re.findall(r'execute "(.*)"', require)
    by_psql(users, heredoc, required, withdraw)


def test_psql(users: Database, tmp_path: Path) -> None:
    submit, require, _ = blocks("Flyway", "sql")
    (tmp_path / "submit.sql").write_text(submit)
    (tmp_path / "enforce.sql").write_text("CREATE TABLE before (x int);" + require)
    [script] = blocks("psql", "sh")
    path = f"{Path(users.server.psql).parent}:{PROGRAM.parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "DATABASE_URL": users.url}

    def shell(text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["sh", "-ec", text], cwd=tmp_path, env=environment, capture_output=True, text=True)

    run = shell("\n".join(line for line in script.splitlines() if "wait" not in line))
    assert run.returncode == 3 and "is not complete: it is pending" in run.stderr, run
    assert users.sql("SELECT to_regclass('before') IS NULL") == "t"
    users.start_daemon()
    run = shell(script)
    assert run.returncode == 0, run
    assert users.sql(NULLABLE) == "NO"


def test_alembic(users: Database, tmp_path: Path) -> None:
    (tmp_path / "alembic.ini").write_text("[alembic]\nscript_location = migrations\n")
    (tmp_path / "migrations/versions").mkdir(parents=True)
    (tmp_path / "migrations/env.py").write_text(ALEMBIC_ENV)
    submit, require = blocks("Alembic", "python")
    for revision, before, text in [("r1", None, submit), ("r2", "r1", require)]:
        head = f"from alembic import op\nrevision = {revision!r}\ndown_revision = {before!r}\n"
        (tmp_path / f"migrations/versions/{revision}.py").write_text(head + text)
    environment = {**os.environ, "ALEMBIC_URL": users.url.replace("postgres://", "postgresql+psycopg://")}

    def alembic(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "alembic", *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True,
        )  # fmt: skip

    # All in one transaction: what was submitted is undone with what came too early.
    run = alembic("upgrade", "head")
    assert run.returncode != 0 and f'"{JOB}" on public.users is not complete: it is pending' in run.stderr
    assert users.sql("SELECT count(*) FROM backfilld.job") == "0"
    assert alembic("upgrade", "r1").returncode == 0
    assert users.state(JOB) == "pending"
    assert alembic("downgrade", "base").returncode == 0
    assert users.state(JOB) == "cancelled"
    assert alembic("upgrade", "r1").returncode == 0
    walk(users)
    run = alembic("upgrade", "head")
    assert run.returncode == 0, run.stderr
    assert users.sql(NULLABLE) == "NO"
    assert alembic("downgrade", "r1").returncode == 0
