"""An hour with everything on: a primary and a replica, an application, one daemon with jobs one after another and one that
lasts, Prometheus scraping it every five seconds, the console open in a browser. Says whether its memory is flat, what it
logged, and whether its metrics agree with the database; ends with 1 if they do not, or when the daemon had something to warn
of, an alert fired or the page had an error. See `make soak`.
"""

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from servers import ROOT, Daemon, Server, backfilld, free_port, wait_until

SAMPLE_EVERY_SECONDS = 5
#: A short job is submitted so often.
JOB_EVERY_SECONDS = 120
ROWS = 2_000_000
SHORT_ROWS = 20_000
#: So that the long job outlasts any run: 2,000,000 rows take more than an hour.
LONG_ROWS_PER_SECOND = 400
TRANSACTIONS_PER_SECOND = 100
#: The beginning, in which caches fill and the browser loads, is not held against the end.
WARM_PART = 0.2


@dataclass
class Samples:
    """What was seen each time, in order."""

    daemon_rss_kib: list[int] = field(default_factory=list)
    #: What it has allocated: without the pages of its program, which are read as they are needed.
    daemon_anonymous_kib: list[int] = field(default_factory=list)
    page_heap_kib: list[int] = field(default_factory=list)
    open_files: list[int] = field(default_factory=list)
    connections: list[int] = field(default_factory=list)


class Soak:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.primary = Server()
        self.replica = Server(self.primary)
        self.sql("CREATE DATABASE soak", "postgres")
        self.sql(f"""CREATE TABLE items (id bigint PRIMARY KEY, value text NOT NULL, filled text);
                     INSERT INTO items SELECT n, 'item ' || n, NULL FROM generate_series(1, {ROWS}) n;
                     CREATE TABLE short (id bigint PRIMARY KEY, value text NOT NULL, filled text);
                     CREATE TABLE archive (id bigint PRIMARY KEY, value text NOT NULL);
                     CREATE TABLE copied (id bigint PRIMARY KEY, value text NOT NULL);
                     ANALYZE""")
        (folder / "token").write_text("soak\n")
        (folder / "token").chmod(0o600)
        wait_until("the replica has it", lambda: self.replica.run_psql("soak", "SELECT 1").returncode == 0)
        self.daemon = Daemon(
            self.primary.url("soak"), folder / "daemon.log",
            BACKFILLD__HTTP__TOKEN_FILE=str(folder / "token"),
            BACKFILLD__THROTTLE__QUERY_LATENCY__MAX_P99="auto",
            BACKFILLD__THROTTLE__REPLICATION_LAG__REPLICAS=json.dumps([self.replica.url("soak")]),
        )  # fmt: skip
        wait_until("the daemon listens", lambda: "http=" in self.log())
        self.address = re.search(r"http=(127\.0\.0\.1:\d+)", self.log())[1]
        self.numbers = 0
        self.samples = Samples()

    def sql(self, sql: str, database: str = "soak") -> str:
        run = self.primary.run_psql(database, sql)
        assert run.returncode == 0, run.stderr
        return run.stdout.strip()

    def log(self) -> str:
        return (self.folder / "daemon.log").read_text()

    def submit(self, name: str, text: str) -> None:
        file = self.folder / "job.toml"
        file.write_text(f'name = "{name}"\n{text}')
        backfilld(self.primary.url("soak"), "submit", str(file))

    def submit_short(self) -> None:
        """The operations in turn, each on rows of its own."""
        self.numbers += 1
        number, kind = self.numbers, self.numbers % 4
        first = number * SHORT_ROWS
        self.sql(f"""INSERT INTO short SELECT n, 'row ' || n, NULL
                     FROM generate_series({first}, {first + SHORT_ROWS - 1}) n""")
        walk = f'[walk]\nfrom = ["{first}"]\nto = ["{first + SHORT_ROWS - 1}"]\nworkers = 2\n'
        text = [
            '[update]\nset = { filled = "value" }\nwhere = "filled IS NULL"\n',
            '[delete]\nwhere = "true"\n',
            '[move]\ninto = "archive"\ncolumns = { id = "id", value = "value" }\nwhere = "true"\n',
            '[copy]\ninto = "copied"\ncolumns = { id = "id", value = "upper(value)" }\n',
        ][kind]
        self.submit(f"short-{number}", f'table = "short"\n{text}{walk}')

    def start_application(self) -> None:
        script = self.folder / "application.sql"
        script.write_text(f"\\set id random(1, {ROWS})\nUPDATE items SET value = 'item ' || :id WHERE id = :id;\n"
                          "SELECT value FROM items WHERE id = :id;\n")  # fmt: skip
        self.application = subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", str(Path(self.primary.psql).with_name("pgbench")), "--no-vacuum",
             f"--file={script}", "--client=4", f"--rate={TRANSACTIONS_PER_SECOND}", "--time=36000", self.primary.url("soak")],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def start_prometheus(self) -> None:
        for rules in (ROOT / "deploy/prometheus").glob("*.rules.yml"):
            shutil.copy(rules, self.folder)
        (self.folder / "prometheus.yml").write_text(
            "global:\n  scrape_interval: 5s\n  evaluation_interval: 5s\nrule_files: ['*.rules.yml']\n"
            f"scrape_configs:\n- job_name: backfilld\n  honor_labels: true\n  static_configs:\n  - targets: ['{self.address}']\n"
        )
        self.prometheus_at = f"127.0.0.1:{free_port()}"
        with (self.folder / "prometheus.log").open("wb") as log:
            self.prometheus = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", "prometheus", f"--config.file={self.folder}/prometheus.yml",
                 f"--storage.tsdb.path={self.folder}/tsdb", f"--web.listen-address={self.prometheus_at}"],
                stdout=log, stderr=log,
            )  # fmt: skip

    def ask(self, query: str) -> list[dict]:
        url = f"http://{self.prometheus_at}/api/v1/query?query={urllib.parse.quote(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]["result"]

    def sample(self, page: Page) -> None:
        process = Path(f"/proc/{self.daemon.process.pid}")
        status = (process / "status").read_text()
        for of, samples in [("VmRSS", self.samples.daemon_rss_kib), ("RssAnon", self.samples.daemon_anonymous_kib)]:
            samples.append(int(re.search(rf"{of}:\s+(\d+) kB", status)[1]))
        self.samples.open_files.append(len(list((process / "fd").iterdir())))
        self.samples.page_heap_kib.append(page.evaluate("performance.memory.usedJSHeapSize") // 1024)
        self.samples.connections.append(int(self.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'backfilld%'")))

    def run(self, seconds: int) -> list[str]:
        """Returns what the page had to complain of."""
        self.start_application()
        self.start_prometheus()
        self.submit("long", 'table = "items"\n[update]\nset = { filled = "value" }\nwhere = "filled IS NULL"\n'
                            f'[limits]\nrows_per_second = {LONG_ROWS_PER_SECOND}\n')  # fmt: skip
        wrong: list[str] = []
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path="/usr/bin/chromium",
                args=["--no-sandbox", "--enable-precise-memory-info", "--js-flags=--expose-gc"],
            )
            page = browser.new_page()
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
            page.goto(f"http://{self.address}/")
            end, next_job = time.monotonic() + seconds, 0.0
            while time.monotonic() < end:
                if time.monotonic() >= next_job:
                    next_job = time.monotonic() + JOB_EVERY_SECONDS
                    self.submit_short()
                page.wait_for_timeout(1000 * SAMPLE_EVERY_SECONDS)
                page.evaluate("gc()")
                self.sample(page)
            is_live = page.locator("#connection").inner_text() == "live"
            if not is_live:
                wrong.append("the console is away at the end")
            browser.close()
        return wrong

    def compare(self) -> list[str]:
        """What Prometheus and the database say of each job, once nothing moves any more."""
        backfilld(self.primary.url("soak"), "pause", "long")
        wait_until("the short jobs are done", lambda: self.sql("SELECT count(*) FROM backfilld.job WHERE state NOT IN ('complete', 'paused')") == "0")
        told = self.sql("SELECT json_object_agg(name, json_build_array(rows_changed, rows_quarantined)) FROM backfilld.status")
        database = {job: counts for job, counts in json.loads(told).items()}
        differences = []
        for index, series in enumerate(["backfilld_rows_changed_total", "backfilld_rows_quarantined_total"]):
            def values() -> dict[str, int]:
                return {one["metric"]["job"]: int(one["value"][1]) for one in self.ask(series)}

            wanted = {job: counts[index] for job, counts in database.items()}
            try:
                wait_until("two scrapes have passed", lambda: values() == wanted)
            except AssertionError:
                seen = values()
                differences += [f"{series}{{{job}}}: {seen.get(job)}, in the database {count}" for job, count in wanted.items() if seen.get(job) != count]
        filled = int(self.sql("SELECT count(*) FROM items WHERE filled IS NOT NULL"))
        if filled != database["long"][0]:
            differences.append(f"long: {filled} rows are filled, {database['long'][0]} are said to be changed")
        return differences

    def stop(self) -> None:
        self.application.kill()
        self.application.wait()
        self.prometheus.terminate()
        self.prometheus.wait()
        self.daemon.stop()
        self.replica.stop()
        self.primary.stop()


def flat(values: list[int]) -> tuple[float, float, float]:
    """The median of the first and of the last fifth after the warm part, and their ratio."""
    values = values[int(WARM_PART * len(values)) :]
    part = max(1, len(values) // 5)
    first, last = statistics.median(values[:part]), statistics.median(values[-part:])
    return first, last, last / first


def by_sixths(values: list[int]) -> list[str]:
    """The median of each."""
    part = max(1, len(values) // 6)
    return [f"{statistics.median(values[first : first + part]):.0f}" for first in range(0, part * 6, part) if values[first : first + part]]


def report(lines: list[str], machine: str, before: str) -> str:
    """The page of results. What a person has written below a heading of its own, in the page as it was, stays as it is."""
    figures = "".join(f"{line}\n" if line.startswith(" ") else f"- {line}\n" for line in lines)
    page = f"# An hour with everything on\n\nWhat `make soak` saw last, on {machine}.\n\n{figures}"
    written = re.search(r"^## ", before, re.MULTILINE)
    return f"{page}\n{before[written.start() :]}" if written else page


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--seconds", type=int, default=3600)
    arguments.add_argument("--report", type=Path)
    wanted = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="backfilld-soak-") as folder:
        soak = Soak(Path(folder))
        wrong = soak.run(wanted.seconds)
        alerts = sorted({f"{one['metric']['alertname']} {one['metric'].get('job', '')}".strip() for one in soak.ask('max_over_time(ALERTS{alertstate="firing"}[2h])')})
        differences = soak.compare()
        jobs = soak.sql("SELECT count(*) || ' jobs, ' || sum(rows_changed) || ' rows changed, ' || sum(rows_quarantined) || ' set aside' FROM backfilld.status")
        soak.stop()
        log = soak.log().splitlines()
        telling = [line for line in log if " WARN " in line or " ERROR " in line]
    lines = [f"{wanted.seconds} s; {jobs}; {len(log)} lines of log"]
    for name, unit, values in [
        ("memory of the daemon", "KiB", soak.samples.daemon_rss_kib),
        ("what it has allocated", "KiB", soak.samples.daemon_anonymous_kib),
        ("heap of the page", "KiB", soak.samples.page_heap_kib),
        ("open files of the daemon", "", soak.samples.open_files),
        ("its connections", "", soak.samples.connections),
    ]:
        first, last, ratio = flat(values)
        lines.append(f"{name}: {first:.0f} {unit} after {WARM_PART:.0%} of the time, {last:.0f} {unit} at the end ({ratio:.3f}), {max(values)} at most")
        if unit:
            lines.append(f"  by sixths of the time: {', '.join(by_sixths(values))}")
    lines += [f"warnings and errors in the log: {len(telling)}", *telling[:20]]
    lines += [f"errors of the page: {len(wrong)}", *wrong[:20]]
    lines += [f"alerts that fired: {', '.join(alerts) or 'none'}"]
    lines += [f"differences between metrics and database: {len(differences)}", *differences[:20]]
    print("\n".join(lines))
    if wanted.report:
        memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        machine = f"{os.cpu_count()} cores, {memory_gib:.0f} GiB of memory, {platform.system()} {platform.release()}"
        wanted.report.write_text(report(lines, machine, wanted.report.read_text() if wanted.report.exists() else ""))
    # An hour in which nothing was done to it has nothing to warn of either.
    return 1 if telling or wrong or alerts or differences else 0


if __name__ == "__main__":
    sys.exit(main())
