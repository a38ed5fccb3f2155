"""A primary and a replica for all tests, a database and a daemon for each."""

import itertools
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from servers import Daemon, Server, backfilld, wait_until

NUMBERS = itertools.count(1)
TOKEN = "correct-horse-battery-staple"
#: Waits for what a daemon does; the page itself looks every two seconds.
PATIENCE_MS = 60_000


@dataclass
class Site:
    """A database, the daemon on it, and where the daemon listens."""

    primary: Server
    replica: Server
    name: str
    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    daemon: Daemon | None = None
    port: int = 0

    @property
    def database(self) -> str:
        return self.primary.url(self.name)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def sql(self, sql: str) -> str:
        """Run statements that must succeed; returns their rows."""
        run = self.primary.run_psql(self.name, sql)
        assert run.returncode == 0, run.stderr
        return run.stdout.strip()

    def start(self) -> None:
        """Start the daemon, on the port that it had before if it had one."""
        log = self.folder / "daemon.log"
        self.daemon = Daemon(
            self.database,
            log,
            BACKFILLD__HTTP__LISTEN=f"127.0.0.1:{self.port}",
            **self.settings,
        )
        listens = re.compile(r"http=127\.0\.0\.1:(\d+)")

        def is_listening() -> bool:
            assert self.daemon is not None and self.daemon.process.poll() is None, log.read_text()
            found = listens.search(log.read_text())
            if found:
                self.port = int(found[1])
            return found is not None

        wait_until("the daemon listens", is_listening)

    def kill(self) -> None:
        assert self.daemon is not None
        self.daemon.process.send_signal(signal.SIGKILL)
        self.daemon.process.wait()

    def submit(self, name: str, table: str, where: str, *more: str) -> None:
        """Submit a job that writes `value` of each row to its column `filled`."""
        job = self.folder / f"{name}.toml"
        lines = [f'name = "{name}"', f'table = "{table}"', "[update]", 'set = { filled = "value" }', f'where = "{where}"', *more]
        job.write_text("\n".join(lines))
        backfilld(self.database, "submit", str(job))

    def state(self, job: str) -> str:
        return self.sql(f"SELECT state FROM backfilld.job WHERE name = '{job}'")


@pytest.fixture(scope="session")
def primary() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def replica(primary: Server) -> Iterator[Server]:
    server = Server(primary)
    yield server
    server.stop()


@pytest.fixture
def site(primary: Server, replica: Server, tmp_path: Path) -> Iterator[Site]:
    """With a daemon that runs, takes changes, and looks at the replica."""
    name = f"test_{next(NUMBERS)}"
    primary.run_psql("postgres", f"CREATE DATABASE {name} TEMPLATE template0").check_returncode()
    token = tmp_path / "token"
    token.write_text(f"{TOKEN}\n")
    token.chmod(0o600)
    site = Site(primary, replica, name, tmp_path)
    site.settings = {
        "BACKFILLD__HTTP__TOKEN_FILE": str(token),
        "BACKFILLD__DAEMON__NAME": f"worker-{os.getpid()}-{name}",
        "BACKFILLD__THROTTLE__REPLICATION_LAG__REPLICAS": f'["{replica.url(name)}"]',
    }
    # A replica has the database when it has been told of it.
    wait_until("the replica has it", lambda: replica.run_psql(name, "SELECT 1").returncode == 0)
    site.start()
    yield site
    assert site.daemon is not None
    site.daemon.process.kill()
    site.daemon.process.wait()
    primary.run_psql("postgres", f"DROP DATABASE {name} WITH (FORCE)").check_returncode()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # As root there is no sandbox to be had; it opens pages of this test only.
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    """The console; the test fails when the page has thrown an error or met its own content security policy."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if "Content Security" in message.text else None)
    outside: list[str] = []
    page.on("request", lambda request: outside.append(request.url) if not request.url.startswith(site.url) else None)
    page.goto(site.url)
    yield page
    # What a test stands between may be in the middle of an answer.
    page.unroute_all(behavior="ignoreErrors")
    context.close()
    assert wrong == [] and outside == []
