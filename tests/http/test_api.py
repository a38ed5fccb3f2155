"""Every route with random input, held against the served document."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from conftest import TOKEN, Site

#: As in the examples of the document.
JOB = "users-email-normalized"
#: The same input each time; another one by the environment.
SEED = os.environ.get("SCHEMATHESIS_SEED", "1")


@pytest.mark.parametrize(
    ("is_known", "names"),
    [(True, "parameters = {}"), (True, f'parameters = {{ "path.name" = "{JOB}" }}'), (False, "parameters = {}")],
    ids=["with the token", "always that job", "without a token"],
)
def test_every_route_is_as_documented_whatever_it_is_asked(site: Site, is_known: bool, names: str) -> None:
    site.sql("CREATE TABLE users (id bigint PRIMARY KEY, value text, filled text); INSERT INTO users SELECT n, 'x', NULL FROM generate_series(1, 5000) n")
    site.submit(JOB, "users", "filled IS NULL", "[limits]", "rows_per_second = 10")
    spec = f"SELECT spec FROM backfilld.job WHERE name = '{JOB}'"
    before = site.sql(spec)
    (site.folder / "schemathesis.toml").write_text(names)
    program = Path(sys.executable).with_name("schemathesis")
    run = subprocess.run(
        [
            program, "run", f"{site.url}/api/v1/openapi.json",
            # A body that the document allows can still be refused: a name that no key has, a rate below zero. And to
            # pause a job that is paused is no error.
            "--checks=all", "--exclude-checks=positive_data_acceptance,use_after_free,ensure_resource_availability",
            f"--seed={SEED}", "--max-examples=40", "--phases=examples,coverage,fuzzing",
            "--continue-on-failure", "--request-timeout=70", "--no-color",
            *(["--header", f"Authorization: Bearer {TOKEN}"] if is_known else []),
        ],
        cwd=site.folder, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert site.daemon is not None and site.daemon.process.poll() is None
    assert "panicked" not in site.daemon.log.read_text()
    if not is_known:
        assert site.sql(spec) == before
        assert site.sql("SELECT count(*) FROM backfilld.event WHERE actor LIKE 'HTTP%'") == "0"


def test_the_document_lists_every_route(site: Site) -> None:
    """A path that the document has is served; and a path of the program's source is in the document."""
    source = (Path(__file__).parents[2] / "src/http/mod.rs").read_text()
    with urllib.request.urlopen(f"{site.url}/api/v1/openapi.json") as answer:
        paths = set(json.load(answer)["paths"])
    routed = set(re.findall(r'\.route\(\s*"(/[^"]*)"', source))
    told = {path.removeprefix("/jobs/{name}") if path.count("/") == 3 and path.rsplit("/")[-1] in CHANGES else path for path in paths}
    assert routed - told == {"/", "/metrics", "/healthz", "/readyz", "/console/{file}"}
    assert told <= routed


CHANGES = {"pause", "resume", "cancel", "retry", "approve", "tune"}
