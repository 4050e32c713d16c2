#!/usr/bin/env python3
"""Runs the conformance suite of Ingress against Ebbtide in the cluster, and writes what passed and failed to CONFORMANCE-INGRESS.md.

KEEP=1 leaves Ebbtide in place. The suite's reports are in $LAB/results/ingress.
"""
import glob
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import lab

SUITE = lab.LAB + "/ingress-suite"
REPORTS = lab.LAB + "/results/ingress"
LAN = "/run/netns/ebbtide-lab-lan"
CLASS = "ebbtide"
MARK = "<!-- `make conformance-ingress` writes everything below this line. -->"


def echo_image():
    """The image that the suite asks for, by a digest that only its own registry can have."""
    with open(SUITE + "/test/kubernetes/deployment.go", encoding="utf-8") as file:
        return re.search(r'EchoContainer = "([^:"]+):([^@"]+)@([^"]+)"', file.read()).groups()


def prepare():
    name, tag, digest = echo_image()
    for node in lab.nodes():
        lab.run(lab.HERE + "/import.sh", node, *glob.glob(lab.LAB + "/images/*echoserver*.tar"))
        ctr = ["ctr", "-a", f"{lab.LAB}/run/{node}/containerd.sock", "-n", "k8s.io", "images"]
        lab.run(*ctr, "tag", "--force", f"{name}:{tag}", f"{name}@{digest}")
        lab.run(lab.HERE + "/import.sh", node, lab.IMAGE)
    lab.uninstall_ebbtide()
    lab.run("kubectl", "apply", "-k", lab.HERE + "/ingress")
    lab.kubectl_ebbtide("rollout", "status", "deployment/ebbtide", "--timeout=90s", timeout=100)
    lab.wait("the load balancer's address", 60, lambda: lab.kubectl_ebbtide("get", "service", "ebbtide", "-o", "jsonpath={.status.loadBalancer.ingress[0].ip}"))


def delete_ingresses():
    """Since 1.33, Kubernetes deletes the pods of a namespace before its other objects. The default backend of one scenario would then be
    there, without a pod, while the next one runs: as the oldest, it has the requests."""
    found = json.loads(lab.run("kubectl", "get", "namespaces", "-l", "app.kubernetes.io/name=ingress-conformance", "-o", "json"))["items"]
    for namespace in found:
        if namespace["status"]["phase"] == "Terminating":
            lab.run("kubectl", "-n", namespace["metadata"]["name"], "delete", "ingress", "--all", "--ignore-not-found")


def suite():
    shutil.rmtree(REPORTS, ignore_errors=True)
    os.makedirs(REPORTS)
    command = [
        "nsenter", "--net=" + LAN, "--", lab.LAB + "/bin/ingress-conformance", "-ingress-class", CLASS, "-format", "cucumber", "-output-directory", REPORTS,
        "-wait-time-for-ingress-status", "60s", "-wait-time-for-ready", "120s", "-test.timeout", "60m", "-test.run", "TestSuite",
    ]
    begun = time.monotonic()
    with open(REPORTS + "/log", "w", encoding="utf-8") as log:
        run = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=SUITE, start_new_session=True)
        try:
            while run.poll() is None:
                delete_ingresses()
                try:
                    run.wait(1)
                except subprocess.TimeoutExpired:
                    pass
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
    return round(time.monotonic() - begun)


def results():
    """Each scenario: its feature, its name, and the first step that failed with what it says."""
    for path in sorted(glob.glob(REPORTS + "/*-report.json")):
        with open(path, encoding="utf-8") as file:
            features = json.load(file) or []
        for feature in features:
            for scenario in feature.get("elements", []):
                steps = [step for step in scenario.get("steps", []) if step["result"]["status"] != "passed"]
                why = next((f"{step['name']}: {step['result'].get('error_message', '')}" for step in steps if step["result"]["status"] == "failed"), None)
                yield feature["name"], scenario["name"], why or (steps and "no step ran") or None


def write(tests, seconds):
    path = lab.HERE + "/CONFORMANCE-INGRESS.md"
    with open(path, encoding="utf-8") as file:
        head = file.read().split(MARK)[0]
    passed = sum(not why for _, _, why in tests)
    lines = [f"{passed} of {len(tests)} passed, in {seconds} s. Ebbtide {lab.versions()['Ebbtide']}.", "", "| feature | scenario | |", "|---|---|---|"]
    lines += [f"| {feature} | {name} | {'**failed**' if why else 'passed'} |" for feature, name, why in tests]
    failures = [(name, " ".join(why.split())[:300]) for _, name, why in tests if why]
    if failures:
        lines += ["", "What failed, and why:", ""] + [f"- {name}: {why}" for name, why in failures]
    with open(path, "w", encoding="utf-8") as file:
        file.write(head + MARK + "\n\n" + "\n".join(lines) + "\n")


def main():
    prepare()
    seconds = suite()
    tests = list(results())
    write(tests, seconds)
    for _, name, why in tests:
        if why:
            lab.say(f"failed: {name}: {why[:300]}")
    lab.say(f"{sum(not why for _, _, why in tests)} of {len(tests)} passed in {seconds} s")
    if not os.environ.get("KEEP"):
        lab.run("kubectl", "delete", "-k", lab.HERE + "/ingress", "--ignore-not-found", "--timeout=80s", timeout=90)
    return not tests or any(why for _, _, why in tests)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    lab.enter_network()
    sys.exit(main())
