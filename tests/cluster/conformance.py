#!/usr/bin/env python3
"""Runs Kubernetes' own tests of Services against the cluster, and writes what passed, failed and was skipped to CONFORMANCE.md.

conformance.py [COLUMN...]   COLUMN: kube-proxy-iptables, kube-proxy-nftables, ebbtide-iptables, ebbtide-nftables, ebbtide-none (default: all)

ebbtide-MODE: each Service that a test creates is labelled for Ebbtide (policy.yaml), and kube-proxy in that mode serves the cluster's
own Services. ebbtide-none: kube-proxy runs nowhere, and Ebbtide serves all Services. FOCUS=REGEX runs some tests and writes no table. SHORT=1 runs ten tests. PROCS sets how many run at once (4).
A run is in $LAB/results: COLUMN.json (state, seconds and reason of each test) and COLUMN.log.
"""
import json
import os
import re
import signal
import subprocess
import sys
import time

import lab

RESULTS = lab.LAB + "/results"
LAN = "/run/netns/ebbtide-lab-lan"
COLUMNS = ("kube-proxy-iptables", "kube-proxy-nftables", "ebbtide-iptables", "ebbtide-nftables", "ebbtide-none")
FOCUS = r"\[sig-network\] (Services|Networking Granular Checks: Services|Conntrack|Traffic Distribution|Connectivity Pod Lifecycle|LoadBalancers)"
# SCTP: no kernel module here. Disruptive: wants kube-proxy and the API server as pods.
SKIP = "SCTP|Disruptive"
# Each is one way to a Service, or one rule of it, and is over within seconds.
TEN = ("serve a basic endpoint from pods", "serve multiport endpoints from pods", "be rejected when no endpoints exist", "able to create a functioning NodePort service",
       "hairpin back to themselves", "respect internalTrafficPolicy=Local Pod to Pod", "session affinity work for service with type clusterIP",
       "preserve source pod IP for traffic thru service cluster IP", "via ExternalIP when the external IP is not assigned", "initial unready endpoints get ready")


def run_tests(column, focus):
    raw = f"{column}.ginkgo.json"
    command = [
        "nsenter", "--net=" + LAN, "--", lab.LAB + "/bin/ginkgo", "run", "-v", "--no-color", f"--procs={os.environ.get('PROCS', '4')}", "--timeout=60m",
        f"--focus={focus}", f"--skip={SKIP}", "--output-dir", RESULTS, "--json-report", raw,
        lab.LAB + "/bin/e2e.test", "--", "-kubeconfig", lab.LAB + "/cfg/admin.kubeconfig", "-provider", "local", "-kubectl-path", lab.LAB + "/bin/kubectl",
        "-report-dir", f"{RESULTS}/{column}", "-disable-log-dump", "-num-nodes", str(len(lab.nodes())),
    ]
    begun = time.monotonic()
    with open(f"{RESULTS}/{column}.log", "w", encoding="utf-8") as log:
        ginkgo = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=RESULTS, start_new_session=True)
        try:
            while ginkgo.poll() is None:
                try:
                    ginkgo.wait(30)
                except subprocess.TimeoutExpired:
                    pass
                with open(f"{RESULTS}/{column}.log", encoding="utf-8", errors="replace") as file:
                    lab.say(f"{column}: {len(re.findall('^• ', file.read(), re.M))} tests are over after {time.monotonic() - begun:.0f} s")
        finally:  # asked to end, it would first finish what it is at
            if ginkgo.poll() is None:
                os.killpg(ginkgo.pid, signal.SIGKILL)
    with open(f"{RESULTS}/{raw}", encoding="utf-8") as file:
        specs = json.load(file)[0]["SpecReports"]
    tests = {}
    for spec in specs:
        why = spec.get("Failure", {}).get("Message", "").strip()
        if spec["LeafNodeType"] != "It" or (spec["State"] == "skipped" and not why):
            continue  # not chosen
        name = " ".join((spec.get("ContainerHierarchyTexts") or []) + [spec["LeafNodeText"]]).removeprefix("[sig-network] ").strip()
        tests[re.sub(r" \[(LinuxOnly|Privileged|Conformance)\]", "", name)] = {"state": spec["State"], "seconds": round(spec["RunTime"] / 1e9, 1), "why": why[:600]}
    return {"seconds": round(time.monotonic() - begun), "versions": lab.versions(), "tests": dict(sorted(tests.items()))}


def count(tests):
    states = [test["state"] for test in tests.values()]
    return {state: states.count(state) for state in ("passed", "failed", "skipped") if state in states or state != "skipped"}


def prepare(column):
    proxy, mode = column.rsplit("-", 1)
    lab.component("mode", mode)
    lab.run("kubectl", "delete", "-f", lab.HERE + "/policy.yaml", "--ignore-not-found")
    lab.uninstall_ebbtide()
    if mode == "none":
        lab.install_ebbtide("deploy/kustomize/claim-all")
    elif proxy == "ebbtide":
        lab.install_ebbtide()
        lab.run("kubectl", "apply", "-f", lab.HERE + "/policy.yaml")
        lab.wait("the policy in force", 30, is_labelled)


def is_labelled():
    """The API server takes a moment until it obeys a new policy."""
    lab.run("kubectl", "delete", "namespace", "probe", "--ignore-not-found")
    objects = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "probe", "labels": {"e2e-framework": "probe"}}},
               {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "probe", "namespace": "probe"}, "spec": {"ports": [{"port": 80}]}}]
    lab.run("kubectl", "apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    labels = json.loads(lab.run("kubectl", "-n", "probe", "get", "service", "probe", "-o", "json"))["metadata"].get("labels", {})
    lab.run("kubectl", "delete", "namespace", "probe")
    return labels.get("service.kubernetes.io/service-proxy-name") == "ebbtide"


def write(results):
    path = lab.HERE + "/CONFORMANCE.md"
    with open(path, encoding="utf-8") as file:
        head = file.read().split(MARK)[0]
    columns = [column for column in COLUMNS if column in results]
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for state in ("passed", "failed", "skipped"):
        lines.append(f"| {state} | " + " | ".join(str(count(results[column]["tests"]).get(state, 0)) for column in columns) + " |")
    lines.append("| seconds | " + " | ".join(str(results[column]["seconds"]) for column in columns) + " |")
    lines.append("| Ebbtide | " + " | ".join(results[column]["versions"]["Ebbtide"] if column.startswith("ebbtide") else "–" for column in columns) + " |")
    lines += ["", "| test | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for test in sorted({test for column in columns for test in results[column]["tests"]}):
        cells = [results[column]["tests"].get(test) for column in columns]
        lines.append(f"| {test} | " + " | ".join(f"{'**' if it['state'] == 'failed' else ''}{it['state']}{'**' if it['state'] == 'failed' else ''}" if it else "–" for it in cells) + " |")
    failures = [(column, test, result["why"]) for column in columns for test, result in results[column]["tests"].items() if result["state"] == "failed"]
    if failures:
        lines += ["", "What failed, and its first line:", ""]
        lines += [f"- {column}: {test}: {why.splitlines()[0] if why else ''}" for column, test, why in failures]
    with open(path, "w", encoding="utf-8") as file:
        file.write(head + MARK + "\n\n" + "\n".join(lines) + "\n")


MARK = "<!-- `make conformance-service` writes everything below this line. -->"


def main():
    columns = sys.argv[1:] or COLUMNS
    if unknown := set(columns) - set(COLUMNS):
        sys.exit(f"conformance: unknown column {', '.join(unknown)}; there are {', '.join(COLUMNS)}")
    os.makedirs(RESULTS, exist_ok=True)
    for node in lab.nodes():  # the images may have been built after the cluster was started
        for image in ("agnhost", "busybox", "regression-issue-74839"):
            lab.run("bash", "-c", f"ls {lab.LAB}/images/*{image}*.tar && {lab.HERE}/import.sh {node} {lab.LAB}/images/*{image}*.tar", timeout=120)
    some = os.environ.get("FOCUS") or (os.environ.get("SHORT") and "|".join(map(re.escape, TEN)))
    focus = rf"\[sig-network\].*({some})" if some else FOCUS
    failed = 0
    for column in columns:
        prepare(column)
        result = run_tests(column, focus)
        failed += count(result["tests"])["failed"] + (not result["tests"])
        lab.say(f"{column}: {count(result['tests'])} in {result['seconds']} s")
        for test, it in result["tests"].items():
            if it["state"] == "failed":
                lab.say(f"  failed: {test}: {it['why'][:300]}")
        if focus == FOCUS:
            with open(f"{RESULTS}/{column}.json", "w", encoding="utf-8") as file:
                json.dump(result, file, indent=1)
    if focus == FOCUS:
        results = {}
        for column in COLUMNS:
            if os.path.exists(f"{RESULTS}/{column}.json"):
                with open(f"{RESULTS}/{column}.json", encoding="utf-8") as file:
                    results[column] = json.load(file)
        write(results)
    return bool(failed)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    lab.enter_network()
    sys.exit(main())
