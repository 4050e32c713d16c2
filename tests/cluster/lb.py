#!/usr/bin/env python3
"""Does what a cloud does for Services of type LoadBalancer: each gets an address, which up.sh's network routes to the nodes.

Packets arrive unchanged, as from a cloud's load balancer that keeps addresses. With externalTrafficPolicy Local they go to the
nodes whose health check answers 200, otherwise to all nodes. With session affinity they go to one node, because each node has a
table of clients of its own.
"""
import http.client
import json
import os
import ssl
import subprocess
import sys
import time
import urllib.parse

API = urllib.parse.urlparse(os.environ["API"])
POOL = [f"{os.environ['LBNET']}.{n}" for n in range(1, 255)]
# Kubernetes' own controller sets it, and a test waits for it (KEP-980).
FINALIZER = "service.kubernetes.io/load-balancer-cleanup"
TLS = ssl.create_default_context(cafile=os.environ["PKI"] + "/ca.crt")
TLS.load_cert_chain(os.environ["PKI"] + "/admin.crt", os.environ["PKI"] + "/admin.key")
NOT_NOW = (404, 409)  # the object is gone or has changed: the next round sees it


def api(method, path, body=None):
    connection = http.client.HTTPSConnection(API.hostname, API.port, context=TLS, timeout=10)
    try:
        connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/merge-patch+json"})
        answer = connection.getresponse()
        text = answer.read()
    finally:
        connection.close()
    if answer.status != 200 and answer.status not in NOT_NOW:
        raise OSError(f"{method} {path}: {answer.status} {text[:200]}")
    return json.loads(text)


def is_healthy(node, port):
    connection = http.client.HTTPConnection(node, port, timeout=0.5)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def ip_route(*words):
    subprocess.run(["ip", "route", *words], check=True)


class Routes:
    """The addresses in use and the nodes behind each."""

    def __init__(self):
        self.nodes = {}

    def set(self, address, nodes):
        before = self.nodes.get(address)
        if before == nodes:
            return
        if not (before and nodes):  # `replace` would put a route of another type beside the old one
            ip_route("flush", "exact", address)
        if nodes:
            ip_route("replace", address, "src", os.environ["CLIENT"], *(word for node in nodes for word in ("nexthop", "via", node)))
        else:
            ip_route("add", "unreachable", address)
        self.nodes[address] = nodes
        print(f"{time.time():.3f} {address} -> {nodes}", flush=True)

    def remove(self, address):
        if self.nodes.pop(address, None) is not None:
            ip_route("flush", "exact", address)


def is_wanted(service):
    spec = service["spec"]
    return spec["type"] == "LoadBalancer" and not spec.get("loadBalancerClass") and "deletionTimestamp" not in service["metadata"]


def address_of(service):
    ingress = service["status"].get("loadBalancer", {}).get("ingress")
    return ingress[0].get("ip") if ingress else None


def let_go(service, path):
    """A Service that needs no address any more: its finalizer says that it had one."""
    others = [it for it in service["metadata"].get("finalizers", []) if it != FINALIZER]
    if len(others) < len(service["metadata"].get("finalizers", [])):
        if address_of(service):
            api("PATCH", path + "/status", {"status": {"loadBalancer": None}})
        api("PATCH", path, {"metadata": {"finalizers": others}})


def serve(service, path, address, nodes, routes):
    meta, spec = service["metadata"], service["spec"]
    if spec.get("externalTrafficPolicy") == "Local":
        nodes = [node for node in nodes if is_healthy(node, spec.get("healthCheckNodePort"))]
    if spec.get("sessionAffinity") == "ClientIP":
        nodes = nodes[:1]
    routes.set(address, nodes)
    finalizers = meta.get("finalizers", [])
    if FINALIZER not in finalizers:
        api("PATCH", path, {"metadata": {"finalizers": finalizers + [FINALIZER], "resourceVersion": meta["resourceVersion"]}})
    elif not address_of(service):
        api("PATCH", path + "/status", {"status": {"loadBalancer": {"ingress": [{"ip": address, "ipMode": "VIP"}]}}})


def one_round(given, routes):
    """`given`: the address of each Service, by uid."""
    nodes = [at["address"] for node in api("GET", "/api/v1/nodes")["items"] for at in node["status"]["addresses"] if at["type"] == "InternalIP"]
    services = api("GET", "/api/v1/services")["items"]
    wanted = {service["metadata"]["uid"] for service in services if is_wanted(service)}
    for uid in set(given) - wanted:
        routes.remove(given.pop(uid))
    for service in services:
        meta = service["metadata"]
        path = f"/api/v1/namespaces/{meta['namespace']}/services/{meta['name']}"
        if meta["uid"] not in wanted:
            let_go(service, path)
            continue
        if meta["uid"] not in given:
            used = set(given.values())
            given[meta["uid"]] = address_of(service) or next(it for it in POOL if it not in used)
        serve(service, path, given[meta["uid"]], nodes, routes)


def main():
    given, routes = {}, Routes()
    while True:
        try:
            one_round(given, routes)
        except (OSError, KeyError, ValueError, subprocess.CalledProcessError) as error:  # the API server is away, say
            print(f"{time.time():.3f} {error!r}", file=sys.stderr, flush=True)
        time.sleep(0.3)


main()
