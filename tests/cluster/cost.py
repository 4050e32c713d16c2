"""What the way from a pod through a cluster IP to a pod of another node costs, by each proxy.

The application and the load generator are the same on each way, and their CPU is counted with it: no proxy shows its own share,
since what kube-proxy's rules cost is spent in the kernel, on behalf of others. So is all that else runs on the machine.
"""
import json

import lab
from lab import rolled, service, workload

SECONDS, CONNECTIONS = 8, 16
TITLE = f"G. What the way costs: pod, cluster IP, pod of another node; {CONNECTIONS} clients, as fast as they can"


def busy():
    """CPU seconds that the machine has used."""
    with open("/proc/stat") as file:
        user, nice, system, _, _, irq, softirq, *_ = map(int, file.readline().split()[1:])
    return (user + nice + system + irq + softirq) / 100


def experiment_g(out, column):
    """Requests on kept connections, and connections of one request each, without a rollout."""
    lab.apply(workload("g", 3, "app:v1", probe=True, node=lab.nodes()[0]), service("g", 31160, column),
              workload("client", 1, "app:v1", probe=True, node=lab.nodes()[-1]))
    rolled("deployment/g")
    rolled("deployment/client")
    lab.settled("g", 31160)
    cluster_ip = lab.get("service", "g")["spec"]["clusterIP"]
    pods = {name: [pod["status"]["podIP"] for pod in lab.pods("app=" + name)] for name in ("g", "client")}
    within = lab.inside(pods["client"][0])
    ways = [("no proxy: one pod, by its own address", pods["g"][0], 8080), ("by the cluster IP", cluster_ip, 80)]
    for way, host, port in ways:
        for keepalive, unit in ((True, "requests"), (False, "connections")):
            lab.Load(port, seconds=2, connections=CONNECTIONS, qps=0, keepalive=keepalive, host=host, within=within).stop()
            before = busy()
            load = lab.Load(port, seconds=SECONDS, connections=CONNECTIONS, qps=0, keepalive=keepalive, host=host, within=within)
            result = load.stop()
            used = busy() - before
            with open(load.result) as file:
                seen = json.load(file)
            p99 = next(it["Value"] for it in seen["DurationHistogram"]["Percentiles"] if it["Percentile"] == 99)
            out.row(TITLE, way, f"{unit}/s", column, f"{seen['ActualQPS']:,.0f}", seen["ActualQPS"])
            out.row(TITLE, way, f"CPU-us a {unit[:-1]}, of all", column, f"{used / max(result['requests'], 1) * 1e6:,.0f}", used)
            out.row(TITLE, way, f"p99 of {unit}, ms", column, f"{p99 * 1000:.1f}", p99)
            out.target(column, f"G: {way}, {unit}: 0 failed", result["failed"] == 0)
    lab.clean()
