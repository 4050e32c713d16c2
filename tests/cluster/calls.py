"""gRPC calls across many rolling updates, as experiment L of e2e.py."""
import json
import signal
import subprocess
import time

import lab
from lab import rolled, set_image

PORT, CONNECTIONS, RATE = 31200, 8, 200


class Calls:
    """fortio's Ping on 8 connections, one call at a time on each, until `stop`."""

    def __init__(self):
        stem = f"{lab.LAB}/results/grpc-{time.time_ns()}"
        self.result, self.log = stem + ".json", stem + ".log"
        self.connections = lab.Connections(PORT)
        with open(self.log, "w") as log:
            self.process = lab.start(["fortio", "load", "-grpc", "-ping", "-allow-initial-errors", "-c", str(CONNECTIONS), "-qps", str(RATE), "-t", "0s",
                                      "-json", self.result, f"{lab.NODE_IP}:{PORT}"], stdout=log, stderr=log)
        time.sleep(1)
        if self.process.poll() is not None:
            raise lab.LabError(f"fortio did not start: see {self.log}")

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise lab.LabError(f"fortio did not end: see {self.log}") from None
        with open(self.result) as file:
            result = json.load(file)
        codes = result["RetCodes"]
        return {"requests": sum(codes.values()), "failed": sum(codes.values()) - codes.get("SERVING", 0), "late": 0, "codes": codes,
                "sockets": len(self.connections.stop()), "worst_ms": round(result["DurationHistogram"]["Max"] * 1000, 1)}


def workload():
    """Both pods are replaced at once, which makes a rollout short. The server exits at SIGTERM."""
    deployment = lab.workload("l", 2, "fortio:v1", strategy={"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "100%", "maxUnavailable": 0}})
    deployment["spec"]["template"]["spec"]["containers"][0]["readinessProbe"] = {"grpc": {"port": 8079}, "periodSeconds": 1}
    return deployment


def service(column):
    it = lab.service("l", PORT, column)
    it["spec"]["ports"][0] |= {"targetPort": 8079, "appProtocol": "kubernetes.io/h2c"}
    return it


def experiment_l(out, column):
    """gRPC's unary calls while the servers are replaced again and again."""
    rollouts = out.knobs["CALL_ROLLOUTS"]
    title = f"L. {rollouts} rolling updates of a gRPC server, {CONNECTIONS} connections, {RATE} calls/s"
    lab.apply(workload(), service(column))
    rolled("deployment/l")

    def answers():
        done = subprocess.run(["fortio", "grpcping", "-n", "1", f"{lab.NODE_IP}:{PORT}"], capture_output=True)
        return done.returncode == 0
    lab.wait("an answer to a gRPC call", 40, answers)
    time.sleep(1.5)
    calls, began = Calls(), time.monotonic()
    for i in range(rollouts):
        set_image("deployment/l", ("fortio:v2", "fortio:v1")[i % 2])
        rolled("deployment/l")
    seconds = time.monotonic() - began
    time.sleep(lab.LATE)
    result = calls.stop()
    case = "unary, without TLS"
    out.load(title, case, column, [result])
    out.row(title, case, "seconds a rollout", column, f"{seconds / rollouts:.1f}")
    out.target(column, "L: 0 calls failed", result["failed"] == 0)
    out.target(column, f"L: exactly {CONNECTIONS} sockets", result["sockets"] == CONNECTIONS)
    lab.clean()
