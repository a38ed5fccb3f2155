// Holds ServiceMonitors and PodMonitors, as JSON on standard input, against the schemas that the Prometheus operator
// publishes.
import { readFileSync } from "node:fs";
import * as models from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";

for (const monitor of JSON.parse(readFileSync(0, "utf8"))) {
    new models[monitor.kind](monitor).validate();
}
