"""Pods that stop when nothing is in flight on them any more (the gate), as experiment P of e2e.py."""
import collections
import time

import lab
from lab import counted, curl, rolled, set_image, verdict

PORT = 31320
HOOKS = {"ebbtide": {"httpGet": {"port": 9902}}}  # of the others, `sleep` is the usual cure
SLEEP = {"sleep": {"seconds": 20}}


def workload(column):
    """Its application exits at SIGTERM, also in the middle of a request. A request takes 10 s."""
    deployment = lab.workload("p", 3, "app:v1", env={"DELAY": "10s"})
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
