"""Holds what Docker Compose makes of deploy/compose/compose.yaml against rules that no schema knows, and lays out what
Prometheus is given: `compose.py COMPOSE.json FOLDER`."""

import json
import re
import shutil
import sys
import tomllib
from pathlib import Path

import yaml

SECRET = re.compile(r"password|token|secret", re.IGNORECASE)
PINNED = re.compile(r"^[a-z0-9./-]+:v?[0-9]+\.[0-9]+[a-z0-9.-]*$")


def problems_of(compose: dict) -> list[str]:
    problems = []
    services, secrets = compose["services"], compose.get("secrets", {})
    for name, service in services.items():
        wrong = lambda text: problems.append(f"{name}: {text}")  # noqa: B023, E731
        if not PINNED.match(service["image"]):
            wrong(f"the image {service['image']} has no tag with a version")
        if "test" not in service.get("healthcheck", {}):
            wrong("no health check")
        for volume in service.get("volumes", []):
            if volume["type"] == "bind":
                if not Path(volume["source"]).exists():
                    wrong(f"{volume['source']} is mounted, and there is no such file")
                if not volume.get("read_only"):
                    wrong(f"{volume['source']} can be written to")
            elif volume["source"] not in compose["volumes"]:
                wrong(f"no volume {volume['source']}")
        given = {secret["source"] for secret in service.get("secrets", [])}
        for variable, value in (service.get("environment") or {}).items():
            if SECRET.search(variable) and not variable.endswith("_FILE"):
                wrong(f"{variable} is a secret in plain")
            if isinstance(value, str) and value.startswith("/run/secrets/") and Path(value).name not in given:
                wrong(f"{variable} names {value}, which is not among its secrets")
        for word in (service.get("command") or []) + (service.get("entrypoint") or []):
            if SECRET.search(word):
                wrong(f"a secret in plain in its command: {word}")
        for port in service.get("ports", []):
            if port.get("host_ip") != "127.0.0.1":
                wrong(f"port {port['published']} is open to other machines")
        for other, how in service.get("depends_on", {}).items():
            if how["condition"] != "service_healthy":
                wrong(f"it does not wait for {other} to be healthy")
        script = next((v["source"] for v in service.get("volumes", []) if v["target"].endswith(".sh")), None)
        used = set(re.findall(r"/run/secrets\}?/([a-z-]+)", Path(script).read_text())) if script and Path(script).exists() else set()
        if not used <= given:
            wrong(f"{script} reads {sorted(used - given)}, which is not among its secrets")
    makes = (Path("deploy/compose/make-secrets")).read_text()
    for secret, of in secrets.items():
        if secret.removesuffix("-password") not in makes or Path(of["file"]).name != secret:
            problems.append(f"secrets: make-secrets does not make {secret}")
    daemon = services["backfilld"]
    for key, value in {"read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]}.items():
        if daemon.get(key) != value:
            problems.append(f"backfilld: {key} is not {value}")
    return problems + problems_between(services)


def problems_between(services: dict) -> list[str]:
    """By what name one service knows another stands in files of their own."""

    def mounted(name: str, target: str) -> str:
        return Path(next(v["source"] for v in services[name]["volumes"] if v["target"] == target)).read_text()

    daemon = tomllib.loads(mounted("backfilld", "/etc/backfilld/backfilld.toml"))
    urls = [daemon["database"]["url"], *daemon["throttle"]["replication_lag"]["replicas"]]
    http = services["backfilld"]["environment"]["BACKFILLD__HTTP__LISTEN"].rpartition(":")[2]
    scrape = yaml.safe_load(mounted("prometheus", "/etc/prometheus/prometheus.yml"))["scrape_configs"]
    source = yaml.safe_load(mounted("grafana", "/etc/grafana/provisioning/datasources/prometheus.yml"))["datasources"]
    boards = yaml.safe_load(mounted("grafana", "/etc/grafana/provisioning/dashboards/backfilld.yml"))["providers"]
    board = next(v["target"] for v in services["grafana"]["volumes"] if v["target"].endswith(".json"))
    given = {secret["target"] for secret in services["backfilld"]["secrets"]}
    expected = {
        "database.url and replicas": (urls, [f"postgres://backfilld@{name}:5432/shop" for name in ("primary", "replica")]),
        "database.password_file": ({daemon["database"]["password_file"]} & given, given),
        "the target of Prometheus": (scrape[0]["static_configs"][0]["targets"], [f"backfilld:{http}"]),
        "Grafana's data source": ([one["url"] for one in source], ["http://prometheus:9090"]),
        "Grafana's folder of dashboards": ([one["options"]["path"] for one in boards], [str(Path(board).parent)]),
    }
    return [f"{what}: {has}, not {wants}" for what, (has, wants) in expected.items() if has != wants]


def main() -> None:
    compose = json.loads(Path(sys.argv[1]).read_text())
    if problems := problems_of(compose):
        sys.exit("\n".join(f"deploy/compose/compose.yaml: {problem}" for problem in problems))
    for volume in compose["services"]["prometheus"]["volumes"]:
        if volume["type"] == "bind":
            shutil.copy(volume["source"], Path(sys.argv[2], Path(volume["target"]).name))


main()
