"""A PostgreSQL server and backfilld's daemon, which end with this process however it ends."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(os.environ.get("BACKFILLD", ROOT / "target/debug/backfilld"))
PATIENCE_SECONDS = 60


class Server:
    """A server of PostgreSQL on a free port, in a folder of its own: a primary, or a replica of one."""

    def __init__(self, primary: "Server | None" = None) -> None:
        bindir = subprocess.run(
            [ROOT / "scripts/postgres-bindir"], check=True, capture_output=True, text=True
        ).stdout.strip()
        self.folder = Path(tempfile.mkdtemp(prefix="backfilld-test-"))
        account = []
        # PostgreSQL refuses to run as root.
        if os.geteuid() == 0:
            postgres = pwd.getpwnam("postgres")
            os.chown(self.folder, postgres.pw_uid, postgres.pw_gid)
            account = ["--reuid=postgres", "--regid=postgres", "--clear-groups"]
        data = self.folder / "data"
        if primary is None:
            make = [f"{bindir}/initdb", f"--pgdata={data}", "--username=postgres", "--auth=trust",
                    "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]  # fmt: skip
        else:
            make = [f"{bindir}/pg_basebackup", f"--pgdata={data}", f"--dbname={primary.url('postgres')}",
                    "--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync"]  # fmt: skip
        subprocess.run(
            ["setpriv", *account, "--pdeathsig=KILL", *make],
            check=True, stdout=subprocess.DEVNULL, cwd=self.folder,
        )  # fmt: skip
        self.port = free_port()
        self.log = (self.folder / "log").open("wb")
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "fsync": "off",
        }
        self.process = subprocess.Popen(
            ["setpriv", *account, "--pdeathsig=INT", f"{bindir}/postgres", "-D", data]
            + [f"-c{name}={value}" for name, value in settings.items()],
            stdout=self.log, stderr=self.log, cwd=self.folder,
        )  # fmt: skip
        self.psql = f"{bindir}/psql"
        wait_until("the server answers", self.answers)

    def answers(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError((self.folder / "log").read_text())
        return self.run_psql("postgres", "SELECT 1").returncode == 0

    def url(self, database: str, user: str = "postgres") -> str:
        return f"postgres://{user}@127.0.0.1:{self.port}/{database}"

    def run_psql(self, database: str, sql: str, user: str = "postgres") -> subprocess.CompletedProcess[str]:
        """Run statements as psql reads them from a file; it stops at the first error."""
        return subprocess.run(
            [self.psql, "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1",
             "--file=-", self.url(database, user)],
            input=sql, capture_output=True, text=True,
        )  # fmt: skip

    def stop(self) -> None:
        self.process.send_signal(2)
        self.process.wait(PATIENCE_SECONDS)
        self.log.close()
        shutil.rmtree(self.folder)


class Daemon:
    """``backfilld run``; `settings` are variables such as ``BACKFILLD__LOG__LEVEL``."""

    def __init__(self, url: str, log: Path, **settings: str) -> None:
        self.log = log
        environment = {
            **os.environ,
            "DATABASE_URL": url,
            "BACKFILLD__HTTP__LISTEN": "127.0.0.1:0",
            # What these servers can bear is not what is tested here.
            "BACKFILLD__THROTTLE__QUERY_LATENCY__MAX_P99": "10s",
            **settings,
        }
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", PROGRAM, "run"], env=environment, stdout=out, stderr=out
            )

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(PATIENCE_SECONDS) == 0, self.log.read_text()


def backfilld(url: str, *arguments: str) -> str:
    """Run a command of backfilld that must succeed; returns what it prints."""
    run = subprocess.run(
        [PROGRAM, "--database-url", url, *arguments],
        capture_output=True, text=True, timeout=2 * PATIENCE_SECONDS,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(what: str, look: Callable[[], bool]) -> None:
    """Look every 20 ms until it is so."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not look():
        assert time.monotonic() < end, f"waited {PATIENCE_SECONDS} s in vain: {what}"
        time.sleep(0.02)
