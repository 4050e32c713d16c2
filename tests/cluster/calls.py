"""gRPC calls across many rolling updates, as experiment L of e2e.py."""
import subprocess
import time

import lab
from lab import rolled, set_image

PORT, CONNECTIONS, RATE = 31200, 8, 200


class Calls(lab.Fortio):
    """fortio's Ping on 8 connections, one call at a time on each, until `stop`."""

    def __init__(self):
        self.connections = lab.Connections(PORT)
        super().__init__("grpc", "-grpc", "-ping", "-c", str(CONNECTIONS), "-qps", str(RATE), "-t", "0s", f"{lab.NODE_IP}:{PORT}")

    def stop(self):
        result = self.end()
        codes = result["RetCodes"]
        return {"requests": sum(codes.values()), "failed": sum(codes.values()) - codes.get("SERVING", 0), "late": 0, "codes": codes,
                "sockets": len(self.connections.stop()), "worst_ms": round(result["DurationHistogram"]["Max"] * 1000, 1)}


def workload(serves_on):
    """Both pods are replaced at once, which makes a rollout short. The server exits at SIGTERM, whatever it is at."""
    deployment = lab.workload("l", 2, "fortio:v1", pre_stop=serves_on, strategy={"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "100%", "maxUnavailable": 0}})
    deployment["spec"]["template"]["spec"]["containers"][0]["readinessProbe"] = {"grpc": {"port": 8079}, "periodSeconds": 1}
    return deployment


def service(column):
    it = lab.service("l", PORT, column)
    it["spec"]["ports"][0] |= {"targetPort": 8079, "appProtocol": "kubernetes.io/h2c"}
    return it


def experiment_l(out, column):
    """gRPC's unary calls while the servers are replaced again and again."""
    rollouts = out.knobs["CALL_ROLLOUTS"]
    title = f"L. Rolling updates of a gRPC server, {CONNECTIONS} connections, {RATE} calls/s"
    result = measure(out, title, "the server goes on for 1 s after its deletion", column, rollouts, 1)
    out.target(column, f"L: {rollouts} rolling updates: 0 calls failed", result["failed"] == 0)
    out.target(column, f"L: {rollouts} rolling updates: exactly {CONNECTIONS} sockets", result["sockets"] == CONNECTIONS)
    # A call that a server has begun is not sent again: it may have run. So some are lost with a server that leaves in the middle of one.
    result = measure(out, title, "it exits at SIGTERM, also in the middle of a call", column, max(1, rollouts // 5), 0)
    out.target(column, f"L: at SIGTERM: exactly {CONNECTIONS} sockets", result["sockets"] == CONNECTIONS)


def measure(out, title, case, column, rollouts, serves_on):
    lab.apply(workload(serves_on), service(column))
    rolled("deployment/l")

    def answers():
        done = subprocess.run(["fortio", "grpcping", "-n", "1", f"{lab.NODE_IP}:{PORT}"], capture_output=True)
        return done.returncode == 0
    lab.wait("an answer to a gRPC call", 40, answers)
    time.sleep(1.5)
    calls = Calls()
    for i in range(rollouts):
        set_image("deployment/l", ("fortio:v2", "fortio:v1")[i % 2])
        lab.kubectl("rollout", "status", "deployment/l", "--timeout=90s", timeout=95)
    rolled("deployment/l")
    time.sleep(lab.LATE)
    result = calls.stop()
    out.row(title, case, "rolling updates", column, rollouts)
    out.load(title, case, column, [result])
    lab.clean()
    return result
