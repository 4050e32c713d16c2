"""redis-benchmark across rolling updates: many short runs over TCP, with pipelined commands, and which of them fail."""
import subprocess
import time

import lab


def experiment_i(out, column):
    """redis in three pods that serve for 1 s after their deletion, and end then. Each run has 8 connections and takes less."""
    rollouts = out.knobs["ROLLOUTS"]
    title = f"I. {rollouts} rolling updates of redis under runs of redis-benchmark, 8 connections and 16 commands at once in each"
    deployment = lab.workload("redis", 3, "redis:7", env={"ROUND": "0"}, pre_stop=1)
    deployment["spec"]["template"]["spec"]["containers"][0]["readinessProbe"] = {"tcpSocket": {"port": 6379}, "periodSeconds": 1}
    service = lab.service("redis", 31170, column)
    service["spec"]["ports"][0] |= {"port": 6379, "targetPort": 6379}
    lab.apply(deployment, service, lab.workload("client", 1, "app:v1", probe=True, node=lab.nodes()[-1]))
    lab.rolled("deployment/redis")
    lab.rolled("deployment/client")
    host = lab.get("service", "redis")["spec"]["clusterIP"]
    command = [*lab.inside(lab.pods("app=client")[0]["status"]["podIP"]),
               "redis-benchmark", "-h", host, "-c", "8", "-n", "800", "-P", "16", "-t", "set", "-q"]

    def fails():
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        except subprocess.TimeoutExpired:
            return "stuck for 10 s"
        return "" if done.returncode == 0 and "rror" not in done.stderr + done.stdout else (done.stderr + done.stdout)[-100:]
    lab.wait("redis", 60, lambda: not fails())
    runs, failed, slowest = 0, [], 0.0
    for number in range(rollouts):
        lab.kubectl("set", "env", "deployment/redis", f"ROUND={number + 1}")
        rollout = lab.start(["kubectl", "-n", lab.NAMESPACE, "rollout", "status", "deployment/redis", "--timeout=90s"], stdout=subprocess.DEVNULL)
        ends = None
        while ends is None or time.monotonic() < ends:
            if ends is None and rollout.poll() is not None:
                ends = time.monotonic() + lab.LATE
            began = time.monotonic()
            error = fails()
            slowest = max(slowest, time.monotonic() - began)
            runs += 1
            failed += [error] if error else []
    out.row(title, "cluster IP, from a pod", "failed runs", column, f"{len(failed)} of {runs:,}", failed)
    out.row(title, "cluster IP, from a pod", "slowest run, s", column, f"{slowest:.1f}")
    out.target(column, "I: no run failed", not failed)
    lab.clean()
