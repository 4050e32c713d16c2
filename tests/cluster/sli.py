"""How long after its deletion a pod still receives traffic, as experiment SLI of e2e.py."""
import math

import lab


def experiment_sli(out, column):
    """How long after its deletion a pod still receives traffic. It serves for 3 s more, so that late traffic is seen."""
    title, port = "SLI. From a pod's deletion to the last that is sent to it, ms", 31140
    lab.apply(lab.workload("sli", 10, "app:v1", pre_stop=3, strategy={"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "50%", "maxUnavailable": 0}}),
              lab.service("sli", port, column))
    lab.rolled("deployment/sli")
    lab.settled("sli", port)
    addresses, connections = {}, lab.Connections()
    loads = [lab.Load(port, connections=4, qps=200, keepalive=False), lab.Load(port, connections=4, qps=200)]
    for i in range(out.knobs["SLI_ROUNDS"]):
        addresses |= {p["metadata"]["name"]: p["status"]["podIP"] for p in lab.pods("app=sli")}
        lab.set_image("deployment/sli", ("app:v2", "app:v1")[i % 2])
        lab.rolled("deployment/sli")
    for load in loads:
        load.stop()
    deleted = {pod: at for pod, at in lab.deletions().items() if pod in addresses}
    if not deleted:
        raise lab.LabError("the audit log has no deletion")
    dialled, sent = {}, {}
    for at, address in connections.stop():
        dialled[address] = max(at, dialled.get(address, 0))
    for r in lab.requests():
        sent[r.pod] = max(r.at, sent.get(r.pod, 0))
    for case, last in (("last new connection", {p: dialled.get(a, 0) for p, a in addresses.items()}), ("last request", sent)):
        # 0 if the pod received nothing after its deletion.
        lags = sorted(max(0.0, (last.get(pod, 0) - at) * 1000) for pod, at in deleted.items())
        for measure, q in (("p50", 0.5), ("p99", 0.99), ("max", 1)):
            out.row(title, case, measure, column, f"{quantile(lags, q):,.1f}", lags)
        out.row(title, case, "pods", column, len(lags))
    if column == "ebbtide":
        reaction = lab.ebbtide_quantile("ebbtide_drain_reaction_seconds", 0.99)
        out.row(title, "watch event to drain begun", "p99, at most", column, "not observed" if reaction is None else f"{reaction * 1000:g}")
        out.target(column, "SLI: p99 of watch event to drain begun at most 10 ms", reaction is not None and reaction <= 0.010, decides=False)


def quantile(ordered, q):
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]
