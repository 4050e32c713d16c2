"""pgbench across rolling updates: a connection for each transaction, and sessions that end themselves before their server does."""
import re
import subprocess
import time

import lab

# A session cannot move to another server. So a run of the second kind is shorter than the server's grace period: PostgreSQL
# lets its sessions end after SIGTERM, and refuses new ones.
RUNS = {
    "a connection for each transaction (-C)": ["-C", "-c", "8", "-T", "2"],
    "sessions of 2 s": ["-c", "8", "-T", "2"],
}


def experiment_j(out, column):
    """PostgreSQL in three pods that serve for 1 s after their deletion, and then until their sessions have ended."""
    rollouts = out.knobs["ROLLOUTS"]
    title = f"J. {rollouts} rolling updates of PostgreSQL under runs of pgbench, 8 connections in each"
    deployment = lab.workload("postgres", 3, "postgres:15", env={"ROUND": "0"}, pre_stop=1)
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    container |= {"readinessProbe": {"tcpSocket": {"port": 5432}, "periodSeconds": 1}, "securityContext": {"runAsUser": 65534}}
    service = lab.service("postgres", 31180, column)
    service["spec"]["ports"][0] |= {"port": 5432, "targetPort": 5432}
    lab.apply(deployment, service, lab.workload("client", 1, "app:v1", probe=True, node=lab.nodes()[-1]))
    lab.rolled("deployment/postgres")
    lab.rolled("deployment/client")
    host = lab.get("service", "postgres")["spec"]["clusterIP"]
    script = lab.LAB + "/results/select.sql"
    with open(script, "w") as file:
        file.write("SELECT 1;\n")
    within = lab.inside(lab.pods("app=client")[0]["status"]["podIP"])

    def start(kind):
        command = [*within, lab.LAB + "/postgres/pgbench", "-n", "-h", host, "-U", "postgres", "-f", script, *RUNS[kind], "postgres"]
        return time.monotonic(), lab.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def end(began, run):
        """Why the run failed, how long it took, and how many transactions it made."""
        try:
            text = run.communicate(timeout=max(0.0, began + 15 - time.monotonic()))[0]
        except subprocess.TimeoutExpired:
            run.kill()
            return "stuck for 15 s: " + run.communicate()[0][-200:], 15.0, 0
        # pgbench goes on with the clients that are left, and says so.
        failed = run.returncode != 0 or "aborted" in text or "could not" in text
        made = re.search(r"actually processed: (\d+)", text)
        return text[-300:] if failed else "", time.monotonic() - began, int(made[1]) if made else 0
    for kind in RUNS:
        lab.wait("PostgreSQL", 60, lambda: not end(*start(kind))[0])
    seen = {kind: ([], [], []) for kind in RUNS}
    for number in range(rollouts):
        lab.kubectl("set", "env", "deployment/postgres", f"ROUND={number + 1}")
        rollout = lab.start(["kubectl", "-n", lab.NAMESPACE, "rollout", "status", "deployment/postgres", "--timeout=120s"], stdout=subprocess.DEVNULL)
        ends = None
        while ends is None or time.monotonic() < ends:
            if ends is None and rollout.poll() is not None:
                ends = time.monotonic() + lab.LATE
            # Both kinds at once.
            for kind, run in [(kind, start(kind)) for kind in RUNS]:
                error, took, made = end(*run)
                times, transactions, errors = seen[kind]
                times.append(took)
                transactions.append(made)
                errors += [error] if error else []
    for kind, (times, transactions, errors) in seen.items():
        out.row(title, kind, "failed runs", column, f"{len(errors)} of {len(times):,}", errors)
        out.row(title, kind, "transactions", column, f"{sum(transactions):,}")
        out.row(title, kind, "slowest run, s", column, f"{max(times):.1f}")
        out.target(column, f"J: {kind}: no run failed", not errors)
    lab.clean()
