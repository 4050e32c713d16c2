#!/usr/bin/env python3
"""DNS queries across rolling updates, as experiment H of e2e.py, and the client that counts them.

datagrams.py HOST SECONDS   asks HOST for a name on 8 sockets that keep their ports, and prints what was lost, as JSON
"""
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time

import lab

SOCKETS, RATE, PATIENCE = 8, 200, 2.0
NAME = "kubernetes.default.svc.cluster.local"


def query(number):
    labels = b"".join(bytes([len(it)]) + it.encode() for it in NAME.split("."))
    return number.to_bytes(2, "big") + bytes([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]) + labels + bytes([0, 0, 1, 0, 1])


def ask(host, seconds):
    """Each query that has no answer within PATIENCE is lost: a resolver would send it again, seconds later."""
    stopped = []
    signal.signal(signal.SIGINT, lambda *_: stopped.append(True))
    sockets, waiting = [], {}
    select = selectors.DefaultSelector()
    for n in range(SOCKETS):
        it = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        it.setblocking(False)
        it.connect((host, 53))
        select.register(it, selectors.EVENT_READ, n)
        sockets.append(it)
    sent = lost = refused = 0
    worst, begun = 0.0, time.monotonic()
    while waiting or not (stopped or time.monotonic() - begun > seconds):
        now = time.monotonic()
        for key in [key for key, at in waiting.items() if now - at > PATIENCE]:
            del waiting[key]
            lost += 1
        if not stopped and now - begun <= seconds and sent < (now - begun) * RATE:
            socket_number, number = sent % SOCKETS, sent // SOCKETS % 65536
            try:
                sockets[socket_number].send(query(number))
            except OSError:  # the answer of a closed port to an earlier one; this one was not sent
                refused += 1
                continue
            waiting[(socket_number, number)] = now
            sent += 1
        for key, _ in select.select(0.001):
            try:
                answer = key.fileobj.recv(2048)
            except OSError:
                refused += 1
                continue
            at = waiting.pop((key.data, int.from_bytes(answer[:2], "big")), None)
            if at is not None and answer[3] & 15 == 0:
                worst = max(worst, time.monotonic() - at)
            elif at is not None:
                lost += 1
    print(json.dumps({"sent": sent, "lost": lost, "refused": refused, "worst_ms": round(worst * 1000, 1)}))


def experiment_h(out, column):
    """CoreDNS in three pods, which end at SIGTERM as they are, asked by a pod of another node while they are replaced."""
    rollouts = out.knobs["ROLLOUTS"]
    title = f"H. {rollouts} rolling updates of CoreDNS under {RATE} UDP queries/s from {SOCKETS} sockets"
    deployment = lab.workload("dns", 3, "coredns:1", env={"ROUND": "0"})
    spec = deployment["spec"]["template"]["spec"]
    spec["serviceAccountName"] = "dns"
    spec["containers"][0] |= {"args": ["-conf", "/etc/coredns/Corefile"], "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
                              "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns"}]}
    spec["volumes"] = [{"name": "config", "configMap": {"name": "dns"}}]
    meta = lambda name: {"name": name, "namespace": lab.NAMESPACE}
    labels = {"service.kubernetes.io/service-proxy-name": "ebbtide"} if column == "ebbtide" else {}
    lab.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta("dns")},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "e2e-dns"},
         "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "coredns"},
         "subjects": [{"kind": "ServiceAccount", "name": "dns", "namespace": lab.NAMESPACE}]},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta("dns"), "data": {"Corefile": ". {\n  ready\n  kubernetes cluster.local\n}\n"}},
        {"apiVersion": "v1", "kind": "Service", "metadata": meta("dns") | {"labels": labels},
         "spec": {"selector": {"app": "dns"}, "ports": [{"port": 53, "protocol": "UDP"}]}},
        deployment, lab.workload("client", 1, "app:v1", probe=True, node=lab.nodes()[-1]))
    lab.rolled("deployment/dns")
    lab.rolled("deployment/client")
    host = lab.get("service", "dns")["spec"]["clusterIP"]
    within = lab.inside(lab.pods("app=client")[0]["status"]["podIP"])
    client = lambda seconds: [*within, sys.executable, os.path.abspath(__file__), host, str(seconds)]
    lab.wait("answers", 60, lambda: json.loads(lab.run(*client(1)))["lost"] == 0)
    load = lab.start(client(3600), stdout=subprocess.PIPE)
    for number in range(rollouts):
        time.sleep(3)
        lab.kubectl("set", "env", "deployment/dns", f"ROUND={number + 1}")
        lab.rolled("deployment/dns")
    time.sleep(lab.LATE)
    load.send_signal(signal.SIGINT)
    result = json.loads(load.communicate(timeout=30)[0])
    out.row(title, "cluster IP, from a pod", "lost", column, f"{result['lost']:,} of {result['sent']:,}", result)
    out.row(title, "cluster IP, from a pod", "refused", column, f"{result['refused']:,}")
    out.row(title, "cluster IP, from a pod", "worst answer, ms", column, f"{result['worst_ms']:,}")
    # What a pod has taken in when it is killed, it answers to nobody.
    out.target(column, "H: at most one query lost for each replaced pod", result["lost"] <= 3 * rollouts)
    lab.run("kubectl", "delete", "clusterrolebinding", "e2e-dns")
    lab.kubectl("delete", "configmap/dns", "serviceaccount/dns")
    lab.clean()


if __name__ == "__main__":
    ask(sys.argv[1], float(sys.argv[2]))
