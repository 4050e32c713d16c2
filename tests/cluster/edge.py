"""The four rollouts through an Ingress and through an HTTPRoute, with TLS, as experiment K of e2e.py."""
import os
import time

import lab
import peers
from lab import kubectl, rolled, set_image

HOST = "k.example.test"
FOLDER = lab.LAB + "/edge"
HTTPS = 8443  # ingress.httpsPort in edge/ebbtide.yaml
OVERLAY = "tests/cluster/edge"


def certificate():
    os.makedirs(FOLDER, exist_ok=True)
    crt, key = FOLDER + "/tls.crt", FOLDER + "/tls.key"
    lab.run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30",
            "-subj", "/CN=" + HOST, "-addext", f"subjectAltName=DNS:{HOST},DNS:*.{HOST}", "-keyout", key, "-out", crt)
    with open(FOLDER + "/tls.pem", "w") as pem:
        for path in (crt, key):
            with open(path) as file:
                pem.write(file.read())
    kubectl("delete", "secret", "k-tls", "--ignore-not-found")
    kubectl("create", "secret", "tls", "k-tls", "--cert", crt, "--key", key)


def install():
    """Ebbtide with both of its sections, in place of the one that serves Services only."""
    crds = lab.LAB + "/gateway/crds"
    lab.run("kubectl", "apply", "--server-side", "--force-conflicts", "-f", crds)
    lab.run("kubectl", "wait", "--for=condition=Established", "--timeout=30s", "-f", crds)
    lab.uninstall_ebbtide()
    lab.install_ebbtide(OVERLAY)


def uninstall():
    lab.uninstall_ebbtide(OVERLAY)
    lab.install_ebbtide()


def gateway_class(name, controller):
    return {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": name}, "spec": {"controllerName": controller}}


def gateway(name, port):
    tls = {"mode": "Terminate", "certificateRefs": [{"name": "k-tls"}]}
    return {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": name, "namespace": lab.NAMESPACE},
            "spec": {"gatewayClassName": name, "listeners": [{"name": "https", "port": port, "protocol": "HTTPS", "tls": tls}]}}


def http_route(name, gateways, service, host=HOST):
    return {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": name, "namespace": lab.NAMESPACE},
            "spec": {"parentRefs": [{"name": it} for it in gateways], "hostnames": [host], "rules": [{"backendRefs": [{"name": service, "port": 80}]}]}}


def ingress(name, service, ingress_class, host=HOST):
    backend = {"service": {"name": service, "port": {"number": 80}}}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": name, "namespace": lab.NAMESPACE},
            "spec": {"ingressClassName": ingress_class, "tls": [{"secretName": "k-tls", "hosts": [host]}],
                     "rules": [{"host": host, "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}]}}


def gateway_address(name):
    def given():
        status = lab.get("gateway", name).get("status", {})
        programmed = any(c["type"] == "Programmed" and c["status"] == "True" for c in status.get("conditions", []))
        return programmed and status.get("addresses") and status["addresses"][0]["value"]
    return lab.wait(f"the address of the Gateway {name}", 30, given)


def steady(way, host, port, name, path="/"):
    """Waits until the way has answered for 1.5 s without a failure, with the right certificate."""
    since = [time.monotonic()]

    def answered():
        try:
            lab.run("curl", "-sSf", "-m", "5", "-o", "/dev/null", "--cacert", FOLDER + "/tls.crt", "--resolve", f"{name}:{port}:{host}", f"https://{name}:{port}{path}")
        except lab.LabError:
            since[0] = time.monotonic()
        return time.monotonic() - since[0] > 1.5
    lab.wait(f"answers of {way}", 60, answered)


def secure_load(host, port, name, **options):
    return lab.Load(port, connections=8, qps=200, host=name, scheme="https", options=["-cacert", FOLDER + "/tls.crt", "-resolve", host], **options)


def bad_release():
    """A version that never becomes ready comes, stands for 3 s, and is taken back."""
    set_image("deployment/k", "app:never-ready")
    lab.wait("a pod of the bad release", 30, lambda: [p for p in lab.pods("app=k") if p["spec"]["containers"][0]["image"].endswith("never-ready")
                                                    and p["status"]["phase"] == "Running"])
    time.sleep(3)
    kubectl("rollout", "undo", "deployment/k")
    rolled("deployment/k")


def steps(rollouts):
    """Name of a rollout -> (what happens before the loads begin, what happens in them)."""
    def updates():
        for i in range(rollouts):
            set_image("deployment/k", ("app:v2", "app:v1")[i % 2])
            rolled("deployment/k")
            time.sleep(2)

    def rollback():
        kubectl("rollout", "undo", "deployment/k")
        rolled("deployment/k")

    def scale(replicas):
        kubectl("scale", "deployment/k", f"--replicas={replicas}")
        rolled("deployment/k")
    return {
        f"{rollouts} rolling update" + "s" * (rollouts > 1): (lambda: None, updates),
        "rollback": (lambda: None, rollback),
        "scaled from 8 to 2": (lambda: scale(8), lambda: scale(2)),
        "a bad release, taken back": (lambda: scale(3), bad_release),
    }


def experiment_k(out, column):
    """The four rollouts under a load through each ingress controller, all at once, so that each sees the same rollouts."""
    if column != "ebbtide":
        return
    title = "K. The four rollouts by HTTPS through an Ingress and through an HTTPRoute, 8 connections and 200 requests/s each, all at once"
    objects = [lab.workload("k", 3, "app:v1", probe=True), lab.service("k", 31190, "kube-proxy"),
               ingress("k", "k", "ebbtide"), gateway("ebbtide", 443), http_route("k", ["ebbtide"], "k")]
    alone = os.environ.get("SHORT", "") not in ("", "0")  # the peers are for the full run
    if not alone:
        traefik_class = {"apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "metadata": {"name": "traefik"}, "spec": {"controller": "traefik.io/ingress-controller"}}
        objects += [traefik_class, gateway_class("traefik", "traefik.io/gateway-controller"), ingress("traefik", "k", "traefik"),
                    gateway("traefik", peers.PORTS["Traefik"]), http_route("traefik", ["traefik"], "k", "route." + HOST)]
    install()
    stop = lambda: None
    try:
        certificate()
        lab.apply(*objects)
        rolled("deployment/k")
        lab.settled("k", 31190)
        ways = {"Ebbtide, Ingress": (lab.NODE_IP, HTTPS, HOST), "Ebbtide, HTTPRoute": (gateway_address("ebbtide"), 443, HOST)}
        names, stop = ([], stop) if alone else peers.start("k", FOLDER)
        for peer in names:
            hosts = {"Traefik, Ingress": HOST, "Traefik, HTTPRoute": "route." + HOST} if peer == "Traefik" else {peer: HOST}
            ways |= {way: (lab.NODE_IP, peers.PORTS[peer], name) for way, name in hosts.items()}
        measure(out, title, ways)
    finally:
        stop()
        lab.run("kubectl", "delete", "--ignore-not-found", "-f", "-", stdin=lab.listed(*objects[2:]))
        uninstall()
    lab.clean()


def measure(out, title, ways):
    for case, (before, during) in steps(out.knobs["ROLLOUTS"]).items():
        before()
        lab.settled("k", 31190)
        for way, target in ways.items():
            steady(way, *target)
        loads = {way: secure_load(*target) for way, target in ways.items()}
        time.sleep(2)
        during()
        time.sleep(lab.LATE)
        for way, load in loads.items():
            result = load.stop()
            out.load(title, case, way, [result])
            if way.startswith("Ebbtide"):
                out.target("ebbtide", f"K: {way}: {case}: 0 failed", result["failed"] == 0)
                out.target("ebbtide", f"K: {way}: {case}: exactly 8 sockets", result["sockets"] == 8)
