#!/usr/bin/env python3
"""The drain contract, measured in a real cluster: the same rollouts with kube-proxy's two modes and with Ebbtide.

e2e.py [A B C D E F G H I J K L M N O P Q SLI] [--columns iptables,nftables,ebbtide] [--write]

SHORT=1 runs short loads. TRIES, LOADS, ROLLOUTS, SECONDS, OUTAGE, CALL_ROLLOUTS, HELD_ROLLOUTS, OWN_* and SLI_ROUNDS set one length each.
OLD_IMAGE: see own.py.
"""
import argparse
import collections
import json
import os
import signal
import subprocess
import sys
import time

import lab
import report
from calls import experiment_l
from cost import experiment_g
from datagrams import experiment_h
from edge import experiment_k
from held import experiment_p, experiment_q
from own import experiment_o
from redis import experiment_i
from leader import experiment_n
from postgres import experiment_j
from sli import experiment_sli
from table import experiment_m
from lab import LATE, LabError, counted, curl, kubectl, rolled, say, service, set_image, verdict, workload

SHORT = os.environ.get("SHORT", "") not in ("", "0")
# name: (full, short, meaning)
LENGTHS = {
    "TRIES": (20, 2, "tries in A"),
    "LOADS": (1, 1, "loads of each kind in B"),
    "ROLLOUTS": (5, 1, "rolling updates in each load of B, F, H, I, J and K"),
    "SECONDS": (60, 12, "each load of B and F, at least, and the changes of M, s"),
    "OUTAGE": (60, 10, "API server stopped in E, s; the kubelet for half of it"),
    "CALL_ROLLOUTS": (100, 3, "rolling updates in L"),
    "HELD_ROLLOUTS": (100, 3, "rolling updates in Q"),
    "OWN_ROLLS": (10, 2, "rolls of the proxy itself in O"),
    "OWN_PAIRS": (1000, 100, "TCP connections in O"),
    "OWN_TUNNELS": (50, 5, "WebSocket tunnels in O"),
    "OWN_POLLS": (10, 2, "clients with long polls in O"),
    "OWN_HELD": (20, 5, "each long poll and each upload of O, s"),
    "OWN_MIB": (1024, 64, "each upload of O, MiB"),
    "OWN_KILLS": (3, 0, "kills of the new process in O, of each kind; with them comes a crash"),
    "SLI_ROUNDS": (10, 2, "rollouts of 10 pods in SLI"),
}
KNOB = {name: int(os.environ.get(name) or (short if SHORT else full)) for name, (full, short, _) in LENGTHS.items()}
# Experiments that the short form does not run with kube-proxy, so that it ends within a CI job. No target
# depends on them.
SHORT_LEAVES_OUT = {"iptables": ("C", "D", "E", "F", "G", "H", "I", "J", "L", "O", "P", "Q"), "nftables": ("C", "D", "E", "F", "G", "H", "I", "J", "L", "O", "P", "Q")}
WORST_MS = 150
EXTERNAL_IP = "203.0.113.9"
# After 40 s without a kubelet, the node and its pods are not ready. On a cluster of one node these are all
# pods.
KUBELET_OUTAGE = KNOB["OUTAGE"] // 2
VERSIONS = ("app:v2", "app:v1")


def experiment_a(out, column):
    """A request of 10 s is in flight when the image changes. The application exits at SIGTERM."""
    title, port = "A. A 10 s request, the image changed after 1 s", 31100
    lab.apply(workload("a", 3, "app:v1", env={"DELAY": "10s"}), service("a", port, column))
    rolled("deployment/a")
    got, posted = [], []
    for i in range(KNOB["TRIES"]):
        lab.settled("a", port, "/healthz")
        get, post = curl(f"http://{lab.NODE_IP}:{port}/?id=get-{i}"), curl(f"http://{lab.NODE_IP}:{port}/?id=post-{i}", "-d", "once")
        time.sleep(1)
        set_image("deployment/a", VERSIONS[i % 2])
        got.append(verdict(get))
        posted.append(verdict(post))
        rolled("deployment/a")
    runs = collections.Counter(r.id for r in lab.requests() if r.method == "POST")
    times = [runs[f"post-{i}"] for i in range(KNOB["TRIES"])]
    out.row(title, "GET", "answers", column, counted(got))
    out.row(title, "POST", "answers", column, counted(posted))
    out.row(title, "POST", "times run, at most", column, max(times), times)
    out.target(column, f"A: {len(got)} of {len(got)} GETs answered 200", set(got) == {"200"})
    # A POST that a pod answers in time is good, too. A second run, or a client without a response, is not.
    out.target(column, "A: each POST answered 502 (or 200) and run once", set(posted) <= {"502", "200"} and set(times) == {1})


def experiment_b(out, column):
    """Rolling updates in the middle of a load."""
    title = f"B. {KNOB['ROLLOUTS']} rolling updates in a load of 8 connections, 500 requests/s"
    for replicas in (3, 10) if column == "ebbtide" or not SHORT else (3,):
        for keepalive in (True, False):
            case = f"{replicas} replicas, {'keep-alive' if keepalive else 'a connection each'}"
            results = rollouts(out, title, case, column, replicas, keepalive)
            out.target(column, f"B: {case}: 0 failed", not any(r["failed"] for r in results))
            if keepalive:
                out.target(column, f"B: {case}: exactly 8 sockets", all(r["sockets"] == 8 for r in results))
            out.target(column, f"B: {case}: no request slower than {WORST_MS} ms", all(r["worst_ms"] <= WORST_MS for r in results), decides=False)
        if column != "ebbtide":
            rollouts(out, title, f"{replicas} replicas, keep-alive, cured by preStop 10 s", column, replicas, True, pre_stop=10)


def rollouts(out, title, case, column, replicas, keepalive, pre_stop=0):
    port, results, lengths = 31110, [], []
    lab.apply(workload("b", replicas, "app:v1", probe=True, pre_stop=pre_stop), service("b", port, column))
    rolled("deployment/b")
    for _ in range(KNOB["LOADS"]):
        lab.settled("b", port)
        load, over = lab.Load(port, keepalive=keepalive), time.time() + KNOB["SECONDS"]
        for _ in range(KNOB["ROLLOUTS"]):
            time.sleep(3)
            began = time.time()
            set_image("deployment/b", VERSIONS[len(lengths) % 2])
            rolled("deployment/b", 300)
            ended = time.time()
            lengths.append(round(ended - began, 1))
        time.sleep(max(LATE, over - time.time()))
        results.append(load.stop(rollout_end=None if keepalive else ended))
    out.load(title, case, column, results)
    out.row(title, case, "seconds a rollout", column, ", ".join(map(str, lengths)), lengths)
    lab.clean()
    return results


def experiment_c(out, column):
    """nginx through all steps in the life of a Deployment and a Service."""
    title, port = "C. nginx without a probe: the version mix after each step", 31180
    target, stable, canary = "deployment/stable", {"app": "stable", "site": "c", "track": "stable"}, {"app": "canary", "site": "c", "track": "canary"}
    lab.apply(workload("stable", 6, "nginx:v1", labels=stable),
              service("c", port, column, selector={"site": "c", "track": "stable"}))
    rolled(target)
    lab.settled("c", port)
    load = lab.Load(port)
    sampled_failures, right = 0, []

    def expect(case, shares):
        """Counts the versions that answer new connections. `shares` maps version to share."""
        nonlocal sampled_failures
        lab.settled("c", port)
        mixed = len(shares) > 1
        bodies, failed = lab.sample(port, 1000 if mixed else 100)
        sampled_failures += failed
        total = sum(bodies.values())
        ok = set(bodies) == set(shares) and all(abs(bodies[v] / total - share) <= 0.05 for v, share in shares.items())
        mix = ", ".join(f"{v} {n / total:.0%}" for v, n in sorted(bodies.items()))
        wanted = ", ".join(f"{v} {share:.0%}" for v, share in sorted(shares.items()))
        out.row(title, case, "answers", column, mix if ok else f"{mix} (wanted {wanted})", {"bodies": bodies, "failed": failed})
        right.append(ok)

    def change(case, version, *command):
        kubectl(*command)
        rolled(target)
        expect(case, {version: 1})

    expect("deployed", {"v1": 1})
    change("set image", "v2", "set", "image", target, "main=lab.local/nginx:v2")
    change("set image again", "v3", "set", "image", target, "main=lab.local/nginx:v3")
    change("rollout undo", "v2", "rollout", "undo", target)
    change("undo --to-revision=1", "v1", "rollout", "undo", target, "--to-revision=1")

    kubectl("patch", target, "-p", '{"spec":{"strategy":{"type":"Recreate","rollingUpdate":null}}}')
    change("Recreate", "v2", "set", "image", target, "main=lab.local/nginx:v2")
    kubectl("patch", target, "-p", '{"spec":{"strategy":{"type":"RollingUpdate"}}}')

    set_image(target, "nginx:v3")
    kubectl("rollout", "pause", target)
    new = lab.wait("the first new pods", 30, lambda: paused_share(target, "lab.local/nginx:v3"))
    expect("paused after the first new pods", {"v2": 1 - new, "v3": new})
    change("resumed", "v3", "rollout", "resume", target)

    lab.apply(workload("canary", 1, "nginx:v1", labels=canary))
    rolled("deployment/canary")
    select({"site": "c"})
    expect("two Deployments, 6:1", {"v3": 6 / 7, "v1": 1 / 7})
    select({"site": "c", "track": "canary"})
    expect("selector switched over", {"v1": 1})
    select({"site": "c", "track": "stable"})
    expect("selector switched back", {"v3": 1})

    change("scaled 6 to 1", "v3", "scale", target, "--replicas=1")
    change("scaled 1 to 6", "v3", "scale", target, "--replicas=6")
    select({"site": "c"})
    kubectl("delete", target)
    lab.wait("the old Deployment's pods gone", 30, lambda: not lab.pods("track=stable"))
    expect("old Deployment deleted", {"v1": 1})

    result = load.stop()
    out.load(title, "all steps", column, [result])
    out.row(title, "all steps", "failed, of the samples", column, sampled_failures)
    out.target(column, f"C: the version mix that should answer, after each of {len(right)} steps", all(right))
    out.target(column, "C: 0 failed over all steps", result["failed"] + sampled_failures == 0)


def paused_share(target, image):
    """The share of new pods once a paused rollout is stable, otherwise None."""
    deployment = lab.get(target)
    status = deployment["status"]
    if status.get("observedGeneration") != deployment["metadata"]["generation"] or status.get("unavailableReplicas"):
        return None
    running = lab.pods("app=stable")
    new = [p for p in running if p["spec"]["containers"][0]["image"] == image]
    return len(new) / len(running) if new and all(map(lab.is_ready, running)) else None


def select(selector):
    spec = {"track": None, **selector}
    kubectl("patch", "service/c", "-p", json.dumps({"spec": {"selector": spec}}))


def experiment_d(out, column):
    """A version that never becomes ready stops its own rollout."""
    title, port = "D. Ten replicas, 35 %/35 %, a version that never gets ready", 31120
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "35%", "maxUnavailable": "35%"}}
    lab.apply(workload("d", 10, "app:v1", probe=True, strategy=strategy), service("d", port, column))
    rolled("deployment/d")
    lab.settled("d", port)
    load = lab.Load(port)
    set_image("deployment/d", "app:never-ready")

    def stuck():
        pods = lab.pods("app=d")
        return len(pods) == 14 and sum(map(lab.is_ready, pods)) == 7 and all(p["status"]["phase"] == "Running" for p in pods)
    lab.wait("7 old pods and 7 that never get ready", 60, stuck)
    lab.settled("d", port)
    bodies, failed = lab.sample(port, 300)
    kubectl("rollout", "undo", "deployment/d")
    rolled("deployment/d")
    lab.settled("d", port)
    result = load.stop()
    wrong = sum(r.version == "never-ready" for r in lab.requests())
    out.row(title, "stuck", "old pods that answer", column, len(bodies))
    out.row(title, "stuck", "failed, of 300 samples", column, failed)
    out.row(title, "stuck and undone", "requests to pods not ready", column, wrong)
    out.load(title, "stuck and undone", column, [result])
    out.target(column, "D: exactly the 7 old pods answer, none of the new", len(bodies) == 7 and wrong == 0)
    out.target(column, "D: 0 failed", result["failed"] + failed == 0)


def experiment_e(out, column):
    """Other ways in which a pod ends."""
    title, port = "E. Beyond the four", 31130
    lab.apply(workload("e", 3, "app:v1", probe=True, memory="64Mi"), service("e", port, column))
    rolled("deployment/e")

    def case(name, action, decides=True):
        lab.settled("e", port)
        load = lab.Load(port)
        action()
        time.sleep(2)
        result = load.stop()
        out.load(title, name, column, [result])
        if decides:
            out.target(column, f"E: {name}: 0 failed", result["failed"] == 0)

    def victims():
        return [p for p in lab.pods("app=e") if lab.is_ready(p)]

    def force_delete():
        kubectl("delete", "pod", victims()[0]["metadata"]["name"], "--grace-period=0", "--force")
        rolled("deployment/e")

    def restarted(signal_name, reason):
        pod = victims()[0]
        lab.signal_container(pod, signal_name)

        def back():
            now = lab.get("pod", pod["metadata"]["name"])
            status = now["status"]["containerStatuses"][0]
            if status["restartCount"] and lab.is_ready(now):
                return status["lastState"]["terminated"]["reason"]
        seen = lab.wait(f"the container back after {signal_name}", 60, back)
        if seen != reason:
            raise LabError(f"the container ended by {seen}, not by {reason}")

    case("eviction by kubectl drain", lambda: lab.drain_node("e"))
    case("force delete, grace 0", force_delete)
    case("kill -9 of a container", lambda: restarted("SIGKILL", "Error"))
    kubectl("delete", "pods", "-l", "app=e")  # so that the next crash is its pod's first, without back-off
    rolled("deployment/e")
    case("OOM kill", lambda: restarted("SIGUSR1", "OOMKilled"))
    case(f"kubelet stopped for {KUBELET_OUTAGE} s", kubelet_outage)
    case("scaled every 2 s, as an HPA may", scale_about)
    restarted_name = "Ebbtide's DaemonSet rolled (kube-proxy: restarted)"
    case(restarted_name, lambda: lab.restart_proxy(column), decides=False)  # O decides
    case(f"API server stopped for {KNOB['OUTAGE']} s, a container killed meanwhile, a pod deleted after", lambda: api_outage(victims()[0]))
    kubectl("scale", "deployment/e", "--replicas=40")
    rolled("deployment/e", 300)  # 37 sandboxes on one small node
    case("20 of 40 pods deleted at once", lambda: delete_many(victims()[:20]))
    kubectl("delete", "deployment/e")

    lab.apply(workload("e", 3, "app:v1", kind="StatefulSet", probe=True))
    rolled("statefulset/e")

    def roll_stateful():
        set_image("statefulset/e", "app:v2")
        rolled("statefulset/e")
    case("StatefulSet rolled, names reused", roll_stateful)


def kubelet_outage():
    for node in lab.nodes():
        lab.component("stop", node, "kubelet")
    time.sleep(KUBELET_OUTAGE)
    for node in lab.nodes():
        lab.component("start", node, "kubelet")
    lab.wait("the pods ready again", 60, lambda: sum(map(lab.is_ready, lab.pods("app=e"))) == 3)


def api_outage(victim):
    lab.component("stop", lab.NODE, "kube-apiserver")
    time.sleep(KNOB["OUTAGE"] / 3)
    lab.signal_container(victim, "SIGKILL")
    time.sleep(KNOB["OUTAGE"] * 2 / 3)
    lab.component("start", lab.NODE, "kube-apiserver")

    def healthy():
        try:
            return sum(map(lab.is_ready, lab.pods("app=e"))) == 3
        except LabError:
            return False
    lab.wait("the API server and the pods back", 90, healthy)
    # Controllers and proxies reconnect at different times. A replaced pod shows that they have.
    kubectl("delete", "pod", "--wait=false", lab.pods("app=e")[0]["metadata"]["name"])
    rolled("deployment/e", 120)


def scale_about():
    for replicas in (6, 2, 8, 1, 4, 3):
        kubectl("scale", "deployment/e", f"--replicas={replicas}")
        time.sleep(2)
    rolled("deployment/e")


def delete_many(pods):
    kubectl("delete", "pod", "--wait=false", *(p["metadata"]["name"] for p in pods))
    rolled("deployment/e", 300)


def experiment_f(out, column):
    """Rolling updates under loads that reach the Service by its other addresses, all at once."""
    title, port = f"F. {KNOB['ROLLOUTS']} rolling updates under four loads by the Service's addresses, 200 requests/s each", 31150
    lab.apply(workload("f", 3, "app:v1", probe=True), service("f", port, column, external_ips=[EXTERNAL_IP]),
              workload("client", 1, "app:v1", probe=True, node=lab.nodes()[-1]))
    rolled("deployment/f")
    rolled("deployment/client")
    lab.settled("f", port)
    cluster_ip = lab.get("service", "f")["spec"]["clusterIP"]
    pod = lab.inside(lab.pods("app=client")[0]["status"]["podIP"])
    # The load with a connection each comes first: it makes the node forget the flows to port 80, and a
    # flow with an answer under way would be cut.
    cases = {
        "cluster IP, from a pod, a connection each": (cluster_ip, pod, False),
        "cluster IP, from a pod": (cluster_ip, pod, True),
        "cluster IP, from the node": (cluster_ip, (), True),
        "external IP, from a pod": (EXTERNAL_IP, pod, True),
    }
    loads = {case: lab.Load(80, connections=8, qps=200, keepalive=keepalive, host=host, within=within)
             for case, (host, within, keepalive) in cases.items()}
    over = time.time() + KNOB["SECONDS"]
    for i in range(KNOB["ROLLOUTS"]):
        time.sleep(3)
        set_image("deployment/f", VERSIONS[i % 2])
        rolled("deployment/f", 300)
        ended = time.time()
    time.sleep(max(LATE, over - time.time()))
    for case, load in loads.items():
        keepalive = cases[case][2]
        result = load.stop(rollout_end=None if keepalive else ended)
        out.load(title, case, column, [result])
        out.target(column, f"F: {case}: 0 failed", result["failed"] == 0)
        if keepalive:
            out.target(column, f"F: {case}: exactly 8 sockets", result["sockets"] == 8)
    lab.clean()


EXPERIMENTS = {"A": experiment_a, "B": experiment_b, "C": experiment_c, "D": experiment_d, "E": experiment_e, "F": experiment_f, "G": experiment_g, "H": experiment_h, "I": experiment_i, "J": experiment_j, "K": experiment_k, "L": experiment_l, "M": experiment_m, "N": experiment_n, "O": experiment_o, "P": experiment_p, "Q": experiment_q, "SLI": experiment_sli}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="default: all of " + ", ".join(EXPERIMENTS))
    parser.add_argument("--columns", default=",".join(report.COLUMNS), help="default: %(default)s")
    parser.add_argument("--write", action="store_true", help="write to README.md even from a short or a partial run")
    args = parser.parse_args()
    columns, names = args.columns.split(","), args.experiments or list(EXPERIMENTS)
    for word, known in [(c, report.COLUMNS) for c in columns] + [(n, EXPERIMENTS) for n in names]:
        if word not in known:
            parser.error(f"{word}: not one of {', '.join(known)}")
    if "ebbtide" in columns:
        for path, cure in ((lab.IMAGE, "make image"), (lab.REPO + "/deploy/kustomize", "check out deploy/")):
            if not os.path.exists(path):
                sys.exit(f"e2e: {path} is missing: {cure}, or leave Ebbtide out with --columns iptables,nftables")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    lab.enter_network()
    os.makedirs(lab.LAB + "/results", exist_ok=True)

    out = report.Report(columns, KNOB)
    broken = []

    def attempt(what, action, *arguments):
        try:
            action(*arguments)
            return True
        except LabError as error:
            broken.append(f"{what}: {error}")
            say(f"  BROKEN: {broken[-1]}")
            return False

    for column in columns:
        say(report.COLUMNS[column])
        if attempt(column, lab.enter_column, column):
            for name in names:
                if SHORT and not args.experiments and name in SHORT_LEAVES_OUT.get(column, ()):
                    say(f" {name}: not in the short form")
                    continue
                say(f" {name}: {EXPERIMENTS[name].__doc__.splitlines()[0]}")
                for again in (True, False):
                    earlier, missed = len(broken), out.failed()
                    attempt(f"{name} by {column}", EXPERIMENTS[name], out, column)
                    lab.end_all()
                    attempt(f"after {name} by {column}", lab.restore)
                    if len(broken) == earlier or not again or out.failed() != missed:
                        break
                    # The lab can be late on a busy machine. A missed target gets no second try.
                    del broken[earlier:]
                    say(f" {name}: once more, since it did not finish")
                out.save()
        attempt(f"after {column}", lab.leave_column, column)
    print(out.markdown())
    for line in broken:
        print(f"did not finish: {line}")
    print(f"raw results: {out.file}")
    complete = not SHORT and set(names) == set(EXPERIMENTS) and set(columns) == set(report.COLUMNS) and not broken
    if complete or args.write:
        out.write(lab.versions())
    sys.exit(1 if broken or out.failed() else 0)


main()
