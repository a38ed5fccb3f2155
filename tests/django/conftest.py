"""One server for all tests, a database for each."""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import django
import pytest

from servers import Daemon, Server, backfilld

HERE = Path(__file__).parent
NUMBERS = itertools.count(1)
SERVER = pytest.StashKey[Server]()


def pytest_configure(config: pytest.Config) -> None:
    """Start the server before Django is set up, which must know where it is."""
    server = Server()
    config.stash[SERVER] = server
    os.environ |= {
        "DJANGO_SETTINGS_MODULE": "project.settings",
        "SHOP_PORT": str(server.port),
        "SHOP_DATABASE": "journey",
    }
    django.setup()


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[SERVER].stop()


@dataclass
class Database:
    """A database with backfilld's schema."""

    server: Server
    name: str
    folder: Path
    project: Path = HERE
    daemons: list[Daemon] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.server.url(self.name)

    def sql(self, sql: str, user: str = "postgres") -> str:
        """Run statements that must succeed; returns their rows."""
        run = self.server.run_psql(self.name, sql, user)
        assert run.returncode == 0, run.stderr
        return run.stdout.strip()

    def manage(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command of Django's on this database."""
        return subprocess.run(
            [sys.executable, self.project / "manage.py", *arguments],
            env={**os.environ, "SHOP_DATABASE": self.name, **environment},
            capture_output=True, text=True,
        )  # fmt: skip

    def managed(self, *arguments: str, **environment: str) -> str:
        """Run a command of Django's that must succeed; returns what it prints."""
        run = self.manage(*arguments, **environment)
        assert run.returncode == 0, f"{arguments}: {run.stdout}\n{run.stderr}"
        return run.stdout

    def refused(self, *arguments: str, **environment: str) -> str:
        """Run a command of Django's that must fail without a traceback; returns its message."""
        run = self.manage(*arguments, **environment)
        assert run.returncode != 0 and "Traceback" not in run.stderr, f"{run.stdout}\n{run.stderr}"
        return run.stderr.strip()

    def backfilld(self, *arguments: str) -> str:
        return backfilld(self.url, *arguments)

    def start_daemon(self) -> Daemon:
        daemon = Daemon(self.url, self.folder / f"daemon-{len(self.daemons)}.log")
        self.daemons.append(daemon)
        return daemon

    def state(self, job: str) -> str:
        return self.sql(f"SELECT state FROM backfilld.job WHERE name = '{job}'")


def create(server: Server, name: str, folder: Path) -> Database:
    database = Database(server, name, folder)
    server.run_psql("postgres", f"CREATE DATABASE {name} TEMPLATE template0").check_returncode()
    database.backfilld("init")
    return database


def drop(database: Database) -> None:
    for daemon in database.daemons:
        daemon.process.kill()
        daemon.process.wait()
    database.server.run_psql("postgres", f"DROP DATABASE {database.name} WITH (FORCE)").check_returncode()


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    database = create(request.config.stash[SERVER], f"test_{next(NUMBERS)}", tmp_path)
    yield database
    drop(database)


@pytest.fixture
def journey(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """The database that this process itself is set up for."""
    database = create(request.config.stash[SERVER], "journey", tmp_path)
    yield database
    drop(database)
