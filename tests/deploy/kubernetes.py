"""Holds what kustomize makes of each overlay against what no schema knows, and all of them against each other, since they may be
in one namespace; and lays out the files that the daemon's container of each would see:
`kubernetes.py SECRET.yaml FOLDER OVERLAY.yaml...`."""

import itertools
import re
import sys
import tomllib
from pathlib import Path

import yaml

MOUNTED = "/etc/backfilld"
PROBES = {"livenessProbe": "/healthz", "readinessProbe": "/readyz"}


def seconds(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(s|m|h)", text).groups()
    return int(number) * {"s": 1, "m": 60, "h": 3600}[unit]


class Overlay:
    def __init__(self, file: str, secret: str):
        self.name = Path(file).stem
        self.objects = [one for one in yaml.safe_load_all(Path(file).read_text()) if one]
        self.secret = yaml.safe_load(Path(secret).read_text())
        self.problems: list[str] = []
        (self.workload,) = self.of("Deployment") + self.of("Job")
        self.template = self.workload["spec"]["template"]
        self.pod = self.template["spec"]
        self.labels = self.template["metadata"]["labels"]
        self.containers = self.pod["containers"] + self.pod.get("initContainers", [])
        self.daemon = next(one for one in self.containers if one["name"] == "backfilld")
        self.files: dict[str, str] = {}

    def of(self, kind: str) -> list[dict]:
        return [one for one in self.objects if one["kind"] == kind]

    def hold(self, holds: object, text: str) -> None:
        if not holds:
            self.problems.append(text)

    def selects(self, what: str, selector: dict, labels: dict) -> None:
        self.hold(selector and selector.items() <= labels.items(), f"{what} selects {selector}, and there is {labels}")

    def selectors(self) -> list[tuple[str, dict]]:
        """Those that are to find this overlay's pods and no others. A NetworkPolicy may be there for several."""
        found = []
        for kind in ("Deployment", "PodDisruptionBudget", "PodMonitor"):
            found += [(kind, one["spec"]["selector"]["matchLabels"]) for one in self.of(kind)]
        found += [("Service", one["spec"]["selector"]) for one in self.of("Service")]
        constraints = self.pod.get("topologySpreadConstraints", [])
        return found + [("topologySpreadConstraint", one["labelSelector"]["matchLabels"]) for one in constraints]

    def check_beside(self, other: "Overlay") -> None:
        """Both are in one namespace."""
        for kind, selector in self.selectors():
            self.hold(not selector.items() <= other.labels.items(), f"the {kind} selects the pods of {other.name} too: {selector}")
        for monitor in self.of("ServiceMonitor"):
            selector = monitor["spec"]["selector"]["matchLabels"]
            for service in other.of("Service"):
                found = selector.items() <= service["metadata"]["labels"].items()
                self.hold(not found, f"the ServiceMonitor selects the Service of {other.name} too: {selector}")
        for one, its in itertools.product(self.objects, other.objects):
            named = lambda of: (of["apiVersion"], of["kind"], of["metadata"]["name"])
            self.hold(named(one) != named(its) or one == its, f"{other.name} has another {one['kind']} {one['metadata']['name']}")

    def check_selectors(self) -> None:
        ports = {port["name"] for one in self.containers for port in one.get("ports", [])}
        if self.workload["kind"] == "Deployment":
            self.selects("the Deployment", self.workload["spec"]["selector"]["matchLabels"], self.labels)
        for kind in ("PodDisruptionBudget", "NetworkPolicy"):
            for one in self.of(kind):
                selector = one["spec"].get("selector") or one["spec"].get("podSelector")
                self.selects(f"the {kind}", selector["matchLabels"], self.labels)
        for service in self.of("Service"):
            self.selects("the Service", service["spec"]["selector"], self.labels)
            for port in service["spec"]["ports"]:
                self.hold(port["targetPort"] in ports, f"the Service's targetPort {port['targetPort']} is no container's")
        for monitor in self.of("ServiceMonitor"):
            (service,) = self.of("Service")
            self.selects("the ServiceMonitor", monitor["spec"]["selector"]["matchLabels"], service["metadata"]["labels"])
            served = {port["name"] for port in service["spec"]["ports"]}
            self.check_endpoints(monitor["spec"]["endpoints"], served)
        for monitor in self.of("PodMonitor"):
            self.selects("the PodMonitor", monitor["spec"]["selector"]["matchLabels"], self.labels)
            self.check_endpoints(monitor["spec"]["podMetricsEndpoints"], ports)
        constraints = self.pod.get("topologySpreadConstraints", [])
        for one in constraints:
            self.selects("a topologySpreadConstraint", one["labelSelector"]["matchLabels"], self.labels)
        for kind in ["NetworkPolicy"] + (["PodDisruptionBudget", "ServiceMonitor"] if constraints else []):
            self.hold(self.of(kind), f"there is no {kind}")

    def check_endpoints(self, endpoints: list[dict], ports: set[str]) -> None:
        for one in endpoints:
            self.hold(one["port"] in ports, f"a monitor's port {one['port']} is none of {sorted(ports)}")
            self.hold(one.get("honorLabels"), "a monitor would rename the label job: honorLabels")

    def check_policy(self) -> None:
        (policy,) = self.of("NetworkPolicy")
        allowed = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
        for one in self.containers:
            for port in one.get("ports", []):
                self.hold(port["containerPort"] in allowed, f"the NetworkPolicy lets nobody to port {port['containerPort']}")
        out = {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}
        self.hold({53, 5432} <= out, f"the NetworkPolicy lets out to {out} only")

    def check_rights(self) -> None:
        accounts = {one["metadata"]["name"] for one in self.of("ServiceAccount")}
        self.hold(self.pod["serviceAccountName"] in accounts, "the ServiceAccount is missing")
        self.hold(self.pod.get("automountServiceAccountToken") is False, "the pod gets the account's token")
        of_pod = self.pod["securityContext"]
        self.hold(of_pod.get("runAsNonRoot") is True, "the pod may run as root")
        self.hold(of_pod.get("seccompProfile") == {"type": "RuntimeDefault"}, "no seccompProfile")
        for one in self.containers:
            name, its = one["name"], one.get("securityContext", {})
            self.hold(its.get("readOnlyRootFilesystem") is True, f"{name}: the root can be written to")
            self.hold(its.get("allowPrivilegeEscalation") is False, f"{name}: allowPrivilegeEscalation")
            self.hold(its.get("capabilities") == {"drop": ["ALL"]}, f"{name}: capabilities")
            self.hold(its.get("runAsUser", of_pod.get("runAsUser", 0)) > 0, f"{name}: its user is not said")
            asked, limits = (one.get("resources", {}).get(key, {}) for key in ("requests", "limits"))
            self.hold({"cpu", "memory"} <= asked.keys() and "memory" in limits, f"{name}: resources")
            pinned = re.fullmatch(r"[a-z0-9.-]+\.[a-z]+/[a-z0-9/-]+:\d+\.\d+\.\d+", one["image"])
            self.hold(pinned, f"{name}: the image {one['image']} has no registry, or no version")
            for variable in one.get("env", []):
                self.hold("value" not in variable, f"{name}: {variable['name']} in plain")

    def check_probes(self) -> None:
        (port,) = self.daemon["ports"]
        for probe, path in PROBES.items():
            if probe in self.daemon:
                get = self.daemon[probe]["httpGet"]
                self.hold(get == {"path": path, "port": port["name"]}, f"{probe} asks {get}")
        is_job = self.workload["kind"] == "Job"
        self.hold(is_job or "livenessProbe" in self.daemon, "no livenessProbe")
        beside = self.daemon not in self.pod["containers"]
        if beside and not is_job:
            self.hold(self.daemon.get("restartPolicy") == "Always", "the application would wait for the sidecar's end")
            held = {"startupProbe", "readinessProbe"} & self.daemon.keys()
            self.hold(not held, f"the application would wait for the sidecar: {held}")
        elif self.workload["kind"] == "Deployment":
            self.hold(PROBES.keys() <= self.daemon.keys(), "a probe is missing")
        if is_job:
            self.hold("--until-idle" in self.daemon["args"], "the Job would never end")
            # It leaves with 0 when it is stopped, too.
            last = self.pod["containers"][-1]
            self.hold(beside and last["args"] == self.daemon["args"], "a pod that is stopped in the middle would count as a success")
            self.hold(self.pod["restartPolicy"] == "Never", "podFailurePolicy needs restartPolicy: Never")
            for rule in self.workload["spec"]["podFailurePolicy"]["rules"]:
                self.hold("containerName" not in rule.get("onExitCodes", {}), "podFailurePolicy is to look at each container")

    def mount(self) -> None:
        """Reads what the volumes would show."""
        volumes = {one["name"]: one for one in self.pod["volumes"]}
        for one in self.containers:
            for mount in one.get("volumeMounts", []):
                self.hold(mount["name"] in volumes, f"{one['name']}: no volume {mount['name']}")
        (mount,) = self.daemon["volumeMounts"]
        self.hold(mount["mountPath"] == MOUNTED and mount.get("readOnly"), f"the configuration is mounted as {mount}")
        maps = {one["metadata"]["name"]: one["data"] for one in self.of("ConfigMap")}
        secrets = {self.secret["metadata"]["name"]: self.secret["stringData"]}
        projected = volumes[mount["name"]]["projected"]
        self.hold(projected["defaultMode"] & 0o007 == 0, "everybody may read the token, which the daemon refuses")
        self.hold("fsGroup" in self.pod["securityContext"], "without fsGroup the daemon cannot read its files")
        for source in projected["sources"]:
            (kind, of), = source.items()
            data = (maps if kind == "configMap" else secrets).get(of["name"])
            if data is None:
                self.problems.append(f"no {kind} {of['name']}")
                continue
            for item in of.get("items") or [{"key": key, "path": key} for key in data]:
                self.hold(item["key"] in data, f"the {kind} {of['name']} has no {item['key']}")
                self.files[item["path"]] = data.get(item["key"], "")

    def check_configuration(self) -> None:
        settings = tomllib.loads(self.files["backfilld.toml"])
        database, http = settings["database"], settings["http"]
        for path in (database["password_file"], database["ssl_root_cert"], http["token_file"]):
            self.hold(path.removeprefix(f"{MOUNTED}/") in self.files, f"backfilld.toml names {path}, which is not mounted")
        folder = settings["jobs"]["directory"].removeprefix(f"{MOUNTED}/")
        self.hold(any(path.startswith(f"{folder}/") for path in self.files), f"no job is mounted in {folder}")
        self.hold(not re.search(r"://[^/@]*:[^/@]*@", database["url"]), "a password in database.url")
        host, _, port = http["listen"].rpartition(":")
        self.hold(host in ("0.0.0.0", "[::]"), f"nobody reaches http.listen = {http['listen']} from outside")
        self.hold(self.daemon["ports"][0]["containerPort"] == int(port), f"http.listen has port {port}")
        grace = seconds(settings["daemon"].get("shutdown_grace", "30s"))
        given = self.pod["terminationGracePeriodSeconds"]
        # And twenty seconds to say goodbye to a database that is slow.
        self.hold(given >= grace + 20, f"terminationGracePeriodSeconds {given} for a shutdown_grace of {grace} s")
        for service in self.of("Service"):
            name = service["metadata"]["name"]
            self.hold(name in http["allowed_hosts"], f"{name} is not among http.allowed_hosts")

    def lay_out(self, folder: Path) -> None:
        for path, text in self.files.items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)


def main() -> None:
    secret, folder, *files = sys.argv[1:]
    overlays = [Overlay(file, secret) for file in files]
    for overlay in overlays:
        overlay.mount()
        overlay.check_selectors()
        overlay.check_policy()
        overlay.check_rights()
        overlay.check_probes()
        overlay.check_configuration()
    for overlay, other in itertools.permutations(overlays, 2):
        overlay.check_beside(other)
    problems = [f"{overlay.name}: {problem}" for overlay in overlays for problem in overlay.problems]
    if problems:
        sys.exit("\n".join(problems))
    for overlay in overlays:
        overlay.lay_out(Path(folder) / overlay.name)


main()
