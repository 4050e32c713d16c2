#!/usr/bin/env python3
"""Runs the Gateway API's own conformance suite against Ebbtide in the cluster, and writes its report to docs/conformance.

gateway.py [FLAG...]   FLAGs go to the suite, for example -run-test HTTPRouteWeight: then no report is written

PROFILES sets the profiles, KEEP=1 leaves Ebbtide and the suite's objects in place. The log is $LAB/results/gateway.log.
"""
import glob
import json
import os
import re
import signal
import subprocess
import sys

import lab

GATEWAY = lab.LAB + "/gateway"
LAN = "/run/netns/ebbtide-lab-lan"
PROFILES = "GATEWAY-HTTP,GATEWAY-TLS,GATEWAY-GRPC,GATEWAY-TCP,GATEWAY-UDP"
# Addresses of the pool in gateway/ebbtide.yaml: the outside client reaches them through any node. One is in no pool.
POOL, USABLE, UNUSABLE = "10.30.2.0/24", "10.30.2.200", "10.99.99.99"
NAMESPACES = [f"gateway-conformance-{name}" for name in ("infra", "app-backend", "web-backend")]


def prepare():
    for node in lab.nodes():
        lab.run(lab.HERE + "/import.sh", node, *glob.glob(GATEWAY + "/*.tar"), timeout=120)
    lab.run("kubectl", "apply", "--server-side", "--force-conflicts", "-f", GATEWAY + "/crds")
    lab.run("kubectl", "wait", "--for=condition=Established", "--timeout=30s", "-f", GATEWAY + "/crds")
    hops = [word for node in lab.nodes() for word in ("nexthop", "via", "10.10.0." + node.removeprefix("node"))]
    lab.run("nsenter", "--net=" + LAN, "ip", "route", "replace", POOL, *hops)
    lab.uninstall_ebbtide()
    lab.install_ebbtide("tests/cluster/gateway")


def clean():
    lab.run("kubectl", "delete", "namespace", "--ignore-not-found", "--timeout=90s", *NAMESPACES, timeout=100)
    lab.run("kubectl", "delete", "-k", lab.HERE + "/gateway", "--ignore-not-found", "--timeout=80s", timeout=90)
    lab.run("nsenter", "--net=" + LAN, "ip", "route", "flush", POOL)


def suite(flags, report):
    command = [
        "nsenter", "--net=" + LAN, "--", GATEWAY + "/gateway.test", "-test.run", "TestConformance", "-test.timeout", "40m", "-test.v",
        "-gateway-class", "ebbtide", "-conformance-profiles", os.environ.get("PROFILES", PROFILES),
        "-usable-address", USABLE, "-unusable-address", UNUSABLE, "-organization", "ebbtide", "-project", "ebbtide", "-url", "https://ebbtide.dev",
        "-version", lab.versions()["Ebbtide"], "-contact", "@ebbtide", "-report-output", report, *flags,
    ]
    path = lab.LAB + "/results/gateway.log"
    with open(path, "w", encoding="utf-8") as log:
        run = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=GATEWAY, start_new_session=True)
        try:
            while run.poll() is None:
                try:
                    run.wait(30)
                except subprocess.TimeoutExpired:
                    lab.say(f"{len(results(path))} tests are over")
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
    return results(path), run.returncode


def results(path):
    """The tests of the suite, and how each ended."""
    with open(path, encoding="utf-8", errors="replace") as log:
        return {name: state for state, name in re.findall(r"^    --- (PASS|FAIL|SKIP): TestConformance/(\w+) ", log.read(), re.M)}


def main():
    flags = sys.argv[1:]
    os.makedirs(lab.LAB + "/results", exist_ok=True)
    report = lab.LAB + "/results/gateway.yaml" if flags else lab.REPO + "/docs/conformance/gateway-api-v1.6.3.yaml"
    os.makedirs(os.path.dirname(report), exist_ok=True)
    prepare()
    tests, status = suite(flags, report)
    states = {state: sorted(name for name, it in tests.items() if it == state) for state in ("PASS", "FAIL", "SKIP")}
    lab.say(json.dumps({state: len(names) for state, names in states.items()}))
    for name in states["FAIL"]:
        lab.say(f"  failed: {name}")
    if not os.environ.get("KEEP"):
        clean()
    return bool(status or states["FAIL"] or not states["PASS"])


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    lab.enter_network()
    sys.exit(main())
