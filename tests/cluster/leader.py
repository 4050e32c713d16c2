"""How soon statuses are written again when the instance that writes them is gone, as experiment N of e2e.py."""
import json
import time

import edge
import lab
from lab import kubectl, kubectl_ebbtide


def holder():
    return kubectl_ebbtide("get", "lease", "ebbtide", "-o", "jsonpath={.spec.holderIdentity}")


def accepted(name):
    parents = lab.get("httproute", name).get("status", {}).get("parents", [])
    return any(c["type"] == "Accepted" and c["status"] == "True" for p in parents for c in p["conditions"])


def pod_of(identity):
    """The pod whose name the identity begins with."""
    pods = json.loads(kubectl_ebbtide("get", "pods", "-o", "json"))["items"]
    return next(it for it in pods if identity.startswith(it["metadata"]["name"]))


def experiment_n(out, column):
    """The elected instance ends, once in order, and once with its node."""
    if column != "ebbtide":
        return
    title, own = "N. From the end of the instance that writes statuses to the status of a new route, s", "Ebbtide"
    edge.install()
    try:
        edge.certificate()
        lab.apply(lab.service("n", 31220, "kube-proxy"), edge.gateway("ebbtide", 443))
        edge.gateway_address("ebbtide")
        for case, end in (("its pod is deleted", deleted), ("SIGKILL, and the kubelet of its node is down", killed)):
            before = holder()
            undo = end(pod_of(before))
            began = time.monotonic()
            name = "n" + str(time.time_ns())
            lab.apply(edge.http_route(name, ["ebbtide"], "n", f"{name}.{edge.HOST}"))
            lab.wait("the status of a new route", 90, lambda: accepted(name))
            seconds = time.monotonic() - began
            undo()
            after = holder()
            out.row(title, case, "seconds", own, f"{seconds:.1f}")
            out.target("ebbtide", f"N: {case}: another instance writes", after != before)
            lab.kubectl_ebbtide("rollout", "status", "daemonset/ebbtide", "--timeout=90s", timeout=100)
    finally:
        kubectl("delete", "httproutes,gateways", "--all")
        edge.uninstall()
    lab.clean()


def deleted(pod):
    kubectl_ebbtide("delete", "pod", pod["metadata"]["name"], "--wait=false")
    return lambda: None


def killed(pod):
    node = pod["spec"]["nodeName"]
    lab.component("stop", node, "kubelet")
    ids = {it["name"]: it["containerID"].removeprefix("containerd://") for it in pod["status"]["containerStatuses"]}
    lab.run("ctr", "-a", f"{lab.LAB}/run/{node}/containerd.sock", "-n", "k8s.io", "task", "kill", "-s", "SIGKILL", ids["ebbtide"])
    return lambda: lab.component("start", node, "kubelet")
