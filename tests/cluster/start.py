#!/usr/bin/env python3
"""How long Ebbtide takes to be ready beside an API server that holds a large cluster, and what it keeps.

`make apiserver-start` runs this in the cluster of `make cluster`, writes its part of SCALE.md, and ends the
cluster: that is quicker than to delete the objects. Only etcd and the API server run meanwhile, on the same
cores as Ebbtide. SERVICES=5000 and ENDPOINTS=20 (of each Service) are the default. Each endpoint has a Pod.
"""
import datetime
import http.client
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time

from lab import HERE, LAB, REPO, enter_network, say
from scale import CLAIM, STOPPED, Api, component, pod

SERVICES = int(os.environ.get("SERVICES", "5000"))
ENDPOINTS = int(os.environ.get("ENDPOINTS", "20"))
NAMESPACES = 20
PROGRAM = os.path.join(REPO, "target/release/ebbtide")
BEGIN, END = "<!-- `make apiserver-start` writes from here -->", "<!-- to here -->"
ADMIN = "127.0.0.1:9977"


def fill(part):
    """Makes the objects of one namespace."""
    api, namespace = Api(), f"start-{part}"
    api.ask("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
    api.ask("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": "default"}})
    for number in range(part, SERVICES, NAMESPACES):
        name = f"app-{number}"
        api.ask("POST", f"/api/v1/namespaces/{namespace}/services", {
            "metadata": {"name": name, "labels": {CLAIM: "ebbtide"}, "annotations": {"ebbtide.dev/join-check": "off"}},
            "spec": {"clusterIP": "None", "selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}})
        members = []
        for n in range(ENDPOINTS):
            object = pod(0)
            object["metadata"].update(name=f"{name}-{n}", labels={"app": name, "pod-template-hash": "6d4cf56db6"})
            made = api.ask("POST", f"/api/v1/namespaces/{namespace}/pods", object)
            uid = made.decode().split('"uid":"', 1)[1].split('"', 1)[0]
            at = number * ENDPOINTS + n
            members.append({"addresses": [f"10.{64 + (at >> 16)}.{at >> 8 & 255}.{at & 255}"], "nodeName": "ghost",
                            "conditions": {"ready": True, "serving": True, "terminating": False},
                            "targetRef": {"kind": "Pod", "namespace": namespace, "name": f"{name}-{n}", "uid": uid}})
        api.ask("POST", f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices", {
            "metadata": {"name": f"{name}-s", "labels": {"kubernetes.io/service-name": name, CLAIM: "ebbtide"}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": members})
    return part


def page(path):
    try:
        connection = http.client.HTTPConnection(ADMIN, timeout=30)
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    except OSError:
        return 0, ""


def private(process):
    with open(f"/proc/{process.pid}/smaps_rollup") as file:
        return 1024 * sum(int(line.split()[1]) for line in file if line.startswith("Private_") and "Hugetlb" not in line)


def measure(pods):
    """Seconds from the start until ready, private MB, and the API server's CPU seconds meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/ebbtide.yaml", "w") as file:
            file.write(f"discovery: {{kubernetes: {{kubeconfig: {LAB}/cfg/admin.kubeconfig, pods: {pods}}}}}\nadmin: {{address: '{ADMIN}'}}\nworkers: 2\n")
        before, begun = Api().cpu(), time.monotonic()
        with open(f"{folder}/log", "w") as log:
            process = subprocess.Popen([PROGRAM, "run", "--config", f"{folder}/ebbtide.yaml"], stderr=log, env={**os.environ, "EBBTIDE_NODE": "ghost", "NODE_NAME": "ghost"})
        try:
            while page("/readyz")[0] != 200:
                if process.poll() is not None or time.monotonic() - begun > 300:
                    with open(f"{folder}/log") as log:
                        raise SystemExit("not ready: " + log.read()[-800:])
                time.sleep(0.02)
            took = time.monotonic() - begun
            used = Api().cpu() - before
            time.sleep(3)
            memory = private(process) / 1e6
            count = page("/api/v1/status")[1].count('"state":"ready"')
        finally:
            process.terminate()
            process.wait(60)
    if count != SERVICES * ENDPOINTS:
        raise SystemExit(f"{count} endpoints are in rotation, not {SERVICES * ENDPOINTS}")
    say(f"pods: {pods}: ready after {took:.2f} s, {memory:.0f} MB, {used:.1f} s of the API server")
    return took, memory, used


def write(rows):
    path = os.path.join(HERE, "SCALE.md")
    with open(path) as file:
        text = file.read()
    version = subprocess.run(["git", "-C", HERE, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False).stdout.strip()
    lines = [f"Measured on {datetime.date.today()}: Ebbtide {version}, {os.cpu_count()} cores, which the API server shares.", "",
             f"| {SERVICES:,} Services, {SERVICES * ENDPOINTS:,} endpoints with their pods | ready after, s | private MB | CPU of the API server, s |", "|---|---:|---:|---:|"]
    lines += [f"| `pods: {kind}`, start {number + 1} | {took:.1f} | {memory:.0f} | {used:.1f} |" for kind, number, (took, memory, used) in rows]
    head, rest = text.split(BEGIN)
    with open(path, "w") as file:
        file.write(head + BEGIN + "\n\n" + "\n".join(lines) + "\n\n" + END + rest.split(END, 1)[1])


def main():
    for name in STOPPED:
        component("stop", name)
    begun = time.monotonic()
    with multiprocessing.Pool(4) as pool:
        for done, _ in enumerate(pool.imap_unordered(fill, range(NAMESPACES)), 1):
            say(f"{done} of {NAMESPACES} namespaces after {time.monotonic() - begun:.0f} s")
    write([(kind, number, measure(kind)) for kind in ("all", "none") for number in range(3)])


if __name__ == "__main__":
    if not os.access(PROGRAM, os.X_OK):
        sys.exit(f"start: {PROGRAM} is missing: make apiserver-start")
    enter_network()
    main()
