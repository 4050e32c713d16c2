"""A large table of routes under load, and many changes of it, as experiment M of e2e.py."""
import http.client
import json
import os
import ssl
import threading
import time

import edge
import lab
from cost import busy
from lab import rolled, set_image

RULES, RULES_EACH, CHANGES_A_MINUTE = 5000, 16, 1000  # an HTTPRoute has 16 rules at most
ROUTES = -(-RULES // RULES_EACH)
PATH = f"/apis/gateway.networking.k8s.io/v1/namespaces/{lab.NAMESPACE}/httproutes"


class Api:
    """One connection to the API server: kubectl would start a process for each change."""

    def __init__(self):
        tls = ssl.create_default_context(cafile=lab.LAB + "/pki/ca.crt")
        tls.load_cert_chain(lab.LAB + "/pki/admin.crt", lab.LAB + "/pki/admin.key")
        self.connection = http.client.HTTPSConnection(lab.NODE_IP, 6443, context=tls, timeout=20)

    def call(self, method, path, body=None, kind="application/json"):
        self.connection.request(method, path, body and json.dumps(body), {"Content-Type": kind})
        answer = self.connection.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise lab.LabError(f"{method} {path}: {answer.status} {text[:200]}")
        return json.loads(text)


def route(number, version):
    """Each rule says `version` to the application, so that a change of it changes all of the route's rules."""
    filters = [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "X-Version", "value": str(version)}]}}]
    it = edge.http_route(f"m{number}", ["ebbtide"], "m", f"m{number}.{edge.HOST}")
    it["spec"]["rules"] = [{"matches": [{"path": {"type": "PathPrefix", "value": f"/a{n}"}}], "filters": filters, "backendRefs": [{"name": "m", "port": 80}]}
                           for n in range(min(RULES_EACH, RULES - number * RULES_EACH))]
    return it


def change(seconds):
    """Changes one route after the other, that of the load among them, at an even pace. Returns (changes, the last route)."""
    api, began, changed = Api(), time.monotonic(), 0
    last = None
    while (now := time.monotonic() - began) < seconds:
        if changed < now * CHANGES_A_MINUTE / 60:
            number, version = changed % ROUTES, changed // ROUTES + 1
            last = api.call("PATCH", f"{PATH}/m{number}", {"spec": {"rules": route(number, version)["spec"]["rules"]}}, "application/merge-patch+json")
            changed += 1
        else:
            time.sleep(0.002)
    return changed, last


def accepted(name, generation):
    parents = lab.get("httproute", name).get("status", {}).get("parents", [])
    return any(c["type"] == "Accepted" and c["status"] == "True" and c["observedGeneration"] >= generation for p in parents for c in p["conditions"])


def p99(load):
    with open(load.result) as file:
        return next(it["Value"] for it in json.load(file)["DurationHistogram"]["Percentiles"] if it["Percentile"] == 99) * 1000


def experiment_m(out, column):
    """A rolling update and many changes of routes, with a table of 5,000 rules."""
    if column != "ebbtide":
        return
    title, own = f"M. A table of {RULES:,} rules in {ROUTES} HTTPRoutes, 8 connections and 200 requests/s by HTTPS", "Ebbtide"
    edge.install()
    try:
        edge.certificate()
        lab.apply(lab.workload("m", 3, "app:v1", probe=True), lab.service("m", 31210, "kube-proxy"), edge.gateway("ebbtide", 443))
        rolled("deployment/m")
        lab.settled("m", 31210)
        api = Api()
        for number in range(ROUTES):
            api.call("POST", PATH, route(number, 0))
        lab.wait("the last route", 60, lambda: accepted(f"m{ROUTES - 1}", 1))
        name = f"m{ROUTES // 2}.{edge.HOST}"
        target = (edge.gateway_address("ebbtide"), 443, name)
        edge.steady("the Gateway", *target, path="/a7/x")
        measure(out, title, own, target)
    finally:
        lab.kubectl("delete", "httproutes,gateways", "--all", timeout=120)
        edge.uninstall()
    lab.clean()


def measure(out, title, own, target):
    seconds = out.knobs["SECONDS"]

    def loaded(case, during):
        load, began, before = edge.secure_load(*target, path="/a7/x"), time.monotonic(), busy()
        during()
        share = (busy() - before) / (time.monotonic() - began) / os.cpu_count()
        result = load.stop()
        out.load(title, case, own, [result])
        out.row(title, case, "the machine's processors busy, %", own, f"{share:.0%}".rstrip("%"))
        return load, result

    quiet, _ = loaded("quiet", lambda: time.sleep(seconds / 2))
    out.row(title, "quiet", "p99, ms", own, f"{p99(quiet):.1f}")

    def rollout():
        set_image("deployment/m", "app:v2")
        rolled("deployment/m")
        time.sleep(lab.LATE)
    _, result = loaded("a rolling update", rollout)
    decide(out, "a rolling update", result)

    made = []
    worker = threading.Thread(target=lambda: made.extend(change(seconds)))

    def changes():
        worker.start()
        worker.join()
    case = f"{CHANGES_A_MINUTE:,} changes a minute"
    load, result = loaded(case, changes)
    if not made:
        raise lab.LabError("the changes of routes failed")
    count, last = made
    began = time.monotonic()
    lab.wait("the last change taken over", 60, lambda: accepted(last["metadata"]["name"], last["metadata"]["generation"]))
    behind = time.monotonic() - began
    out.row(title, case, "changes", own, f"{count:,}")
    out.row(title, case, "p99, ms", own, f"{p99(load):.1f}")
    out.row(title, case, "p99, to quiet", own, f"{p99(load) / p99(quiet):.2f}")
    out.row(title, case, "the last one's status written after, s, at most", own, f"{behind:.1f}")
    decide(out, case, result)
    out.target("ebbtide", f"M: {case}: p99 within 1.5 of quiet", p99(load) <= 1.5 * p99(quiet), decides=False)


def decide(out, case, result):
    out.target("ebbtide", f"M: {case}: 0 failed", result["failed"] == 0)
    out.target("ebbtide", f"M: {case}: exactly 8 sockets", result["sockets"] == 8)
