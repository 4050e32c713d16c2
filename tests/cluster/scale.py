#!/usr/bin/env python3
"""What one event costs an API server when many nodes watch, and what that makes of 1,000 and 5,000 nodes.

`make apiserver-scale` runs this in the cluster of `make cluster` and writes SCALE.md. Only etcd and
the API server run meanwhile. `watchers` (watchers.rs) stands for N nodes. The cost is the API server's own CPU time, as its
metrics say, divided by the events; the same events without any watcher are subtracted.
"""
import datetime
import http.client
import json
import os
import ssl
import subprocess
import sys
import time

from lab import HERE, LAB, NODE, enter_network, nodes, say

KINDS = ("before", "now", "node")
COUNTS = [int(it) for it in os.environ.get("COUNTS", "1 50 200").split()]
EVENTS = int(os.environ.get("EVENTS", "200"))
WATCHERS = os.environ.get("WATCHERS", os.path.join(os.path.dirname(os.path.dirname(HERE)), "target/release/examples/watchers"))
STOPPED = ("kubelet", "kube-proxy", "kube-scheduler", "kube-controller-manager")
NAMESPACE, FOREIGN = "scale", "scale-foreign"
PODS, SERVICES = 100, 500
CLAIM = "service.kubernetes.io/service-proxy-name"
# What one replaced pod is: its old pod's and its new pod's events, and its slice's.
POD_EVENTS, SLICE_EVENTS = 8, 4


class Api:
    def __init__(self):
        context = ssl.create_default_context(cafile=f"{LAB}/pki/ca.crt")
        context.load_cert_chain(f"{LAB}/pki/admin.crt", f"{LAB}/pki/admin.key")
        self.connection = http.client.HTTPSConnection("10.10.0.1", 6443, context=context, timeout=60)

    def ask(self, method, path, body=None, kind="application/json"):
        data = None if body is None else json.dumps(body)
        self.connection.request(method, path, data, {"Content-Type": kind})
        response = self.connection.getresponse()
        text = response.read()
        if response.status >= 300 and response.status not in (404, 409):
            raise SystemExit(f"{method} {path}: {response.status} {text[:300]}")
        return text

    def cpu(self):
        """Seconds of CPU that the API server has used."""
        for line in self.ask("GET", "/metrics").decode().splitlines():
            if line.startswith("process_cpu_seconds_total "):
                return float(line.split()[1])
        raise SystemExit("the API server tells no CPU time")


def pod(number):
    env = [{"name": f"SETTING_{n}", "value": "x" * 20} for n in range(12)]
    probe = {"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 5}
    container = {"name": "app", "image": "registry.example/shop/app:1.2.3", "env": env, "readinessProbe": probe,
                 "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}}}
    return {"metadata": {"name": f"app-{number}", "labels": {"app": "app", "pod-template-hash": "6d4cf56db6"}},
            "spec": {"nodeName": "ghost", "automountServiceAccountToken": False, "containers": [container]}}


def service(name, labels):
    return {"metadata": {"name": name, "labels": labels},
            "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}}


def slice_of(service, labels, count):
    endpoints = [{"addresses": [f"10.1.{n // 250}.{n % 250 + 1}"], "nodeName": "ghost", "conditions": {"ready": True, "serving": True, "terminating": False},
                  "targetRef": {"kind": "Pod", "namespace": NAMESPACE, "name": f"app-{n}", "uid": f"00000000-0000-0000-0000-{n:012}"}} for n in range(count)]
    return {"metadata": {"name": f"{service}-s", "labels": {"kubernetes.io/service-name": service, **labels}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints}


def wait_until_gone(api):
    """Waits for the end of an earlier run's namespaces. The controller-manager ends them."""
    for namespace in (NAMESPACE, FOREIGN):
        while b'"phase"' in api.ask("GET", f"/api/v1/namespaces/{namespace}"):
            time.sleep(1)


def make_objects(api):
    for namespace in (NAMESPACE, FOREIGN):
        api.ask("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
        api.ask("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": "default"}})
    api.ask("POST", f"/api/v1/namespaces/{NAMESPACE}/services", service("app", {CLAIM: "ebbtide"}))
    slices = f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"
    api.ask("POST", slices, slice_of("app", {CLAIM: "ebbtide"}, PODS))
    for number in range(PODS):
        api.ask("POST", f"/api/v1/namespaces/{NAMESPACE}/pods", pod(number))
    for number in range(SERVICES):
        api.ask("POST", f"/api/v1/namespaces/{FOREIGN}/services", service(f"foreign-{number}", {}))


def pod_event(api, number):
    conditions = [{"type": "Ready", "status": "True" if number % 2 else "False", "lastTransitionTime": "2026-01-01T00:00:00Z"}]
    status = {"phase": "Running", "podIP": "10.1.0.1", "conditions": conditions, "message": f"event {number}"}
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/app-{number % PODS}/status"
    api.ask("PATCH", path, {"status": status}, "application/merge-patch+json")


def slice_event(api, number):
    patch = {"metadata": {"annotations": {"event": str(number)}}}
    path = f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices/app-s"
    api.ask("PATCH", path, patch, "application/merge-patch+json")


def foreign_event(api, number):
    patch = {"metadata": {"annotations": {"event": str(number)}}}
    path = f"/api/v1/namespaces/{FOREIGN}/services/foreign-{number % SERVICES}"
    api.ask("PATCH", path, patch, "application/merge-patch+json")


WHAT = {"pod": pod_event, "slice": slice_event, "foreign Service": foreign_event}


def used_by(process):
    """Seconds of CPU that a process has used."""
    with open(f"/proc/{process.pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_until_read(process):
    """Waits until the watchers have read what was sent. Before that, the API server has not sent it all."""
    used, end = used_by(process), time.monotonic() + 90
    while time.monotonic() < end:
        time.sleep(0.5)
        before, used = used, used_by(process)
        if used - before < 0.05:
            return
    say("the watchers are slower than the events: their row is too low")


def cost(api, act, process=None):
    """Milliseconds of CPU for an event, without what the API server uses when nothing happens."""
    time.sleep(1)
    start, idle = time.monotonic(), api.cpu()
    time.sleep(2)
    idle = (api.cpu() - idle) / (time.monotonic() - start)
    start, before = time.monotonic(), api.cpu()
    for number in range(EVENTS):
        act(api, number)
    time.sleep(1)  # the last events are under way
    if process:
        wait_until_read(process)
    used = api.cpu() - before - idle * (time.monotonic() - start)
    return 1000 * used / EVENTS


def measure(api, kind, count):
    before, start = api.cpu(), time.monotonic()
    command = [WATCHERS, kind, str(count), NAMESPACE]
    environment = {**os.environ, "KUBECONFIG": f"{LAB}/cfg/admin.kubeconfig"}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        if process.stdout.readline() != "ready\n":
            raise SystemExit(f"{' '.join(command)} did not get ready")
        row = {"start": 1000 * (api.cpu() - before) / count, "seconds": time.monotonic() - start}
        wait_until_read(process)
        row.update({what: cost(api, act, process) for what, act in WHAT.items()})
    finally:
        process.stdin.close()
        process.wait(30)
    say(f"{kind}, {count}: " + ", ".join(f"{what} {value:.2f}" for what, value in row.items()))
    return row


def per_watcher(rows, kind, what, base):
    """The slope: what one more watcher adds, from the largest count."""
    count = COUNTS[-1]
    return max(0.0, rows[kind, count][what] - base[what]) / count


def table(rows, base):
    lines = ["| | watchers | start of one, ms | pod event, ms | slice event, ms | foreign Service event, ms |", "|---|---|---|---|---|---|",
             f"| nobody | 0 | | {base['pod']:.2f} | {base['slice']:.2f} | {base['foreign Service']:.2f} |"]
    for kind in KINDS:
        for count in COUNTS:
            row = rows[kind, count]
            lines.append(f"| {NAMES[kind]} | {count} | {row['start']:.1f} | {row['pod']:.2f} | {row['slice']:.2f} | {row['foreign Service']:.2f} |")
    return lines


NAMES = {"before": "before (7ed7776)", "now": "`pods: all`", "node": "`pods: node`"}


def arithmetic(rows, base):
    lines = ["| | added by one watcher, µs: pod / slice / foreign Service event | a replaced pod, 1,000 nodes, CPU s | 5,000 nodes, CPU s | 100 status changes/s, 1,000 nodes, cores |", "|---|---|---|---|---|"]
    for kind in KINDS:
        added = {what: per_watcher(rows, kind, what, base) for what in WHAT}
        replaced = (POD_EVENTS * added["pod"] + SLICE_EVENTS * added["slice"]) / 1000
        cells = " / ".join(f"{1000 * added[what]:.1f}" for what in WHAT)
        lines.append(f"| {NAMES[kind]} | {cells} | {1000 * replaced:.2f} | {5000 * replaced:.2f} | {100 * 1000 * added['pod'] / 1000:.2f} |")
    return lines


def write(rows, base):
    path = os.path.join(HERE, "SCALE.md")
    with open(path) as file:
        text = file.read().split(MARK)[0]
    version = subprocess.run(["git", "-C", HERE, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False).stdout.strip()
    body = [f"Measured on {datetime.date.today()}: Ebbtide {version}, {os.cpu_count()} cores, {EVENTS} events a cell, {PODS} pods in one claimed Service,",
            f"{SERVICES} Services of others.", "", *table(rows, base), "", "## What that makes of many nodes", "", *arithmetic(rows, base)]
    with open(path, "w") as file:
        file.write(text + MARK + "\n\n" + "\n".join(body) + "\n")


MARK = "<!-- `make apiserver-scale` writes everything below this line. -->"


def component(verb, name):
    for node in nodes() if name in ("kubelet", "kube-proxy") else [NODE]:
        subprocess.run([os.path.join(HERE, "component.sh"), verb, node, name], check=True)


def main():
    if not os.access(WATCHERS, os.X_OK):
        sys.exit(f"scale: {WATCHERS} is missing: make apiserver-scale")
    api = Api()
    wait_until_gone(api)
    try:
        for name in STOPPED:
            component("stop", name)
        make_objects(api)
        for act in WHAT.values():
            cost(api, act)  # the first events cost more
        base = {what: cost(api, act) for what, act in WHAT.items()}
        say("nobody: " + ", ".join(f"{what} {value:.2f}" for what, value in base.items()))
        rows = {(kind, count): measure(api, kind, count) for kind in KINDS for count in COUNTS}
        write(rows, base)
    finally:
        for name in STOPPED:
            component("start", name)
        for namespace in (NAMESPACE, FOREIGN):
            Api().ask("DELETE", f"/api/v1/namespaces/{namespace}")


if __name__ == "__main__":
    enter_network()
    main()
