"""Pods that stop when nothing is in flight on them any more (the gate), as experiments P and Q of e2e.py."""
import collections
import json
import os
import signal
import time

import lab
from lab import counted, curl, kubectl, rolled, set_image, verdict
from own import proxies
from own_clients import Group, Visits, end_all

PORT, TCP = 31320, 31321
HOOKS = {"ebbtide": {"httpGet": {"port": 9902}}}  # of the others, `sleep` is the usual cure
SLEEP = {"sleep": {"seconds": 20}}


def workload(column, name="p", delay="10s", **more):
    """Its application exits at SIGTERM, also in the middle of a request."""
    deployment = lab.workload(name, 3, "app:v1", env={"DELAY": delay}, **more)
    spec = deployment["spec"]["template"]["spec"]
    spec["terminationGracePeriodSeconds"] = 60
    spec["containers"][0]["lifecycle"] = {"preStop": HOOKS.get(column, SLEEP)}
    return deployment


def experiment_p(out, column):
    """POSTs of 10 s are in flight when the image changes, and the application exits at SIGTERM. The pods have the gate's hook, or sleep for 20 s."""
    tries = out.knobs["TRIES"]
    title = "P. A POST of 10 s, the image changed after 1 s; preStop: the gate (kube-proxy: sleep 20)"
    lab.apply(workload(column), lab.service("p", PORT, column))
    rolled("deployment/p")
    posted, lengths = [], []
    for i in range(tries):
        lab.settled("p", PORT, "/healthz")
        post = curl(f"http://{lab.NODE_IP}:{PORT}/?id=gate-{i}", "-d", "once")
        time.sleep(1)
        began = time.monotonic()
        set_image("deployment/p", ("app:v2", "app:v1")[i % 2])
        posted.append(verdict(post))
        rolled("deployment/p", 180)
        lengths.append(round(time.monotonic() - began, 1))
    runs = collections.Counter(r.id for r in lab.requests() if r.method == "POST")
    times = [runs[f"gate-{i}"] for i in range(tries)]
    out.row(title, "POST", "answers", column, counted(posted))
    out.row(title, "POST", "times run, at most", column, max(times), times)
    out.row(title, "rollout", "seconds", column, ", ".join(map(str, lengths)), lengths)
    out.target(column, f"P: {tries} of {tries} POSTs answered 200 and run once", set(posted) == {"200"} and set(times) == {1})
    lab.clean()


def experiment_q(out, column):
    """POSTs and TCP sessions of 3 s through rolling updates, a drained node and a silent instance. The application exits at SIGTERM; its pods have the hook of P."""
    rollouts, title = out.knobs["HELD_ROLLOUTS"], "Q. POSTs of 100 ms by 8 connections, and 20 TCP sessions of 3 s, one after another, on pods with the hook of P"
    sessions = lab.service("q-tcp", TCP, column, selector={"app": "q"})
    sessions["metadata"]["annotations"] = {"ebbtide.dev/protocol": "tcp"}
    lab.apply(workload(column, "q", "100ms", probe=True), lab.service("q", PORT, column), sessions)
    rolled("deployment/q")
    lab.settled("q", PORT)
    lab.settled("q-tcp", TCP)

    def case(name, action):
        posts = lab.Load(PORT, qps=60, options=("-payload", "once"))
        visits = Group([Visits(TCP, 3) for _ in range(20)])
        action()
        result = posts.stop()
        end_all()
        visits.join()
        out.load(title, name, column, [result])
        cut = len(visits.errors)
        out.row(title, name, "TCP sessions cut", column, f"{cut} of {visits.answered + cut:,}", visits.errors)
        out.target(column, f"Q: {name}: 0 POSTs failed, on 8 sockets, and no session cut", result["failed"] == 0 and result["sockets"] == 8 and not cut)

    def roll():
        for i in range(rollouts):
            set_image("deployment/q", ("app:v2", "app:v1")[i % 2])
            kubectl("rollout", "status", "deployment/q", "--timeout=180s", timeout=185)
        rolled("deployment/q", 180)
        time.sleep(3)
    case(f"{rollouts} rolling updates", roll)

    def drain():
        lab.drain_node("q")
        time.sleep(3)
    case("a node drained", drain)

    if column == "ebbtide":
        lab.clean()
        lab.apply(workload(column, "q", "100ms", probe=True, node=lab.NODE), lab.service("q", PORT, column))
        rolled("deployment/q")
        quiet = holds(3)
        stopped = proxies(elsewhere=True).pop()
        os.kill(stopped, signal.SIGSTOP)
        try:
            silent = holds(3)
        finally:
            os.kill(stopped, signal.SIGCONT)
        for name, held in (("nothing in flight", quiet), ("nothing in flight, an instance stopped (SIGSTOP)", silent)):
            out.row(title, name, "seconds a pod is held", column, ", ".join(f"{seconds:.2f}" for seconds in held), held)
        out.target(column, "Q: an instance that does not answer holds a pod for 1 s at most", max(silent) <= 1.2, decides=False)
    lab.clean()


def holds(count):
    """Deletes pods of this node one by one. Returns how long the gate held each, in seconds."""
    held = []
    for _ in range(count):
        lab.settled("q", PORT)
        pod = next(it for it in lab.pods("app=q") if lab.is_ready(it))["metadata"]["name"]
        kubectl("delete", "pod", pod)
        ended = json.loads(lab.fetch(lab.ADMIN_PORT, "/api/v1/drains", "127.0.0.1"))["gate"]
        held.append(next(it["heldSeconds"] for it in ended if it["pod"] == f"{lab.NAMESPACE}/{pod}"))
        rolled("deployment/q")
    return held
