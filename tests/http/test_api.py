"""Every route with random input, held against the served document."""

import json
import os
import re
import subprocess
import sys
import urllib.error
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
    # From a file: the address that it has the document from it does not ask.
    document = site.folder / "openapi.json"
    with urllib.request.urlopen(f"{site.url}/api/v1/openapi.json") as answer:
        document.write_bytes(answer.read())
    routes = sum(len(methods) for methods in json.loads(document.read_text())["paths"].values())
    program = Path(sys.executable).with_name("schemathesis")
    run = subprocess.run(
        [
            program, "run", document, f"--url={site.url}",
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
    assert f" {routes} selected / {routes} total" in run.stdout, run.stdout
    assert site.daemon is not None and site.daemon.process.poll() is None
    assert "panicked" not in site.daemon.log.read_text()
    if not is_known:
        assert site.sql(spec) == before
        assert site.sql("SELECT count(*) FROM backfilld.event WHERE actor LIKE 'HTTP%'") == "0"


def routed(source: str) -> set[str]:
    """The paths of the program's router: each of its parts has a name, and stands before what it is nested in."""
    _, _, source = source.partition("\nfn router(")
    parts: dict[str, set[str]] = {}
    for part in re.split(r"(?=\blet \w+ = Router::new\(\)|\bRouter::new\(\)\s*\.merge)", source.partition("\n}\n")[0]):
        name = re.match(r"let (\w+) = Router", part)
        paths = set(re.findall(r'\.route\(\s*"([^"]*)"', part))
        for prefix, nested in re.findall(r'\.nest\(\s*"([^"]*)",\s*(\w+)', part):
            paths |= {prefix + path for path in parts.pop(nested)}
        for merged in re.findall(r"\.merge\((\w+)\)", part):
            paths |= parts.pop(merged)
        if paths:
            parts[name[1] if name else "all"] = paths
    assert list(parts) == ["all"], "a part of the router that is nowhere"
    return parts["all"]


def test_the_document_lists_every_route_with_its_methods(site: Site) -> None:
    """The paths of the program's source are those of the document; and each says by itself which methods it has."""
    folder = Path(__file__).parents[2] / "src/http"
    source = (folder / "mod.rs").read_text()
    with urllib.request.urlopen(f"{site.url}/api/v1/openapi.json") as answer:
        document = json.load(answer)["paths"]
    assert routed(source) == set(document)
    # Nor are there routes that this does not see.
    for file in folder.glob("*.rs"):
        assert file.name == "mod.rs" or not re.search(r"\.(route|nest|merge|route_service)\(", file.read_text().partition("#[cfg(test)]")[0]), file
    for path, methods in document.items():
        request = urllib.request.Request(site.url + re.sub(r"\{\w+\}", JOB, path), method="PROPFIND")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request)
        assert refused.value.code == 405, path
        allowed = set(refused.value.headers["Allow"].lower().split(","))
        assert allowed - {"head"} == set(methods), path


@pytest.mark.parametrize(
    ("method", "path", "length", "status", "told"),
    [
        ("GET", "/api/v1/jobs/%ff", 0, 400, "UTF-8"),
        ("GET", "/console/%ff", 0, 400, "UTF-8"),
        ("POST", f"/api/v1/jobs/{JOB}/pause", 17 * 1024, 413, "limit"),
    ],
)
def test_what_is_refused_early_is_told_as_every_error_is(site: Site, method: str, path: str, length: int, status: int, told: str) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    request = urllib.request.Request(site.url + path, method=method, headers=headers, data=b" " * length or None)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == status
    assert refused.value.headers["Content-Type"] == "application/json"
    assert told in json.load(refused.value)["error"]
