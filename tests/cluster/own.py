"""Ebbtide's own replacement, as experiment O of e2e.py: what it costs the clients that it serves, and what a crash costs.

OLD_IMAGE=FILE: also rolls from another version's image to it and back.
"""
import os
import random
import signal
import threading
import time

import lab
from own_clients import Clients, end_all

PORTS = {"http": 31310, "pairs": 31311, "redis": 31312, "postgres": 31313, "long": 31314}
OLD_IMAGE = os.environ.get("OLD_IMAGE")


def applied(column):
    """`own` is rolled beside the proxy. Nobody can move the sessions of a server that ends, so `own-long` and the databases stay."""
    stable = lab.workload("own", 3, "app:v1", labels={"track": "stable"}, probe=True)
    pairs = lab.service("own-pairs", PORTS["pairs"], column, selector={"app": "own-long"})
    pairs["metadata"]["annotations"] = {"ebbtide.dev/protocol": "tcp"}
    redis, postgres = lab.workload("own-redis", 1, "redis:7"), lab.workload("own-postgres", 1, "postgres:15")
    postgres["spec"]["template"]["spec"]["containers"][0]["securityContext"] = {"runAsUser": 65534}
    databases = []
    for deployment, name, port in ((redis, "redis", 6379), (postgres, "postgres", 5432)):
        deployment["spec"]["template"]["spec"]["containers"][0]["readinessProbe"] = {"tcpSocket": {"port": port}, "periodSeconds": 1}
        service = lab.service("own-" + name, PORTS[name], column)
        service["spec"]["ports"][0] |= {"port": port, "targetPort": port}
        databases += [deployment, service]
    lab.apply(stable, lab.service("own", PORTS["http"], column), lab.workload("own-long", 3, "app:v1", probe=True), pairs,
              lab.service("own-long", PORTS["long"], column), *databases)
    for name in ("own", "own-long", "own-redis", "own-postgres"):
        lab.rolled("deployment/" + name)
    for name, port in (("own", "http"), ("own-pairs", "pairs"), ("own-long", "long")):
        lab.settled(name, PORTS[port])


class Rollouts(threading.Thread):
    """A new version of the application, its rollback, a canary and a change of scale, in turn, until `stop`."""

    def __init__(self):
        super().__init__(daemon=True)
        self.ends, self.done, self.error = False, 0, None
        self.start()

    def run(self):
        while not self.ends:
            for step in (self._deploy, self._roll_back, self._canary, self._scale):
                try:
                    step()
                    lab.kubectl("rollout", "status", "deployment/own", "--timeout=90s", timeout=95)
                except lab.LabError as error:
                    self.error = error
                    return
                self.done += 1
                time.sleep(1)

    def _deploy(self):
        lab.set_image("deployment/own", "app:v2")

    def _roll_back(self):
        lab.kubectl("rollout", "undo", "deployment/own")

    def _canary(self):
        canary = lab.workload("own-canary", 1, "app:v3", labels={"app": "own", "track": "canary"}, probe=True)
        lab.apply(canary)
        lab.kubectl("rollout", "status", "deployment/own-canary", "--timeout=90s", timeout=95)
        time.sleep(1)
        lab.kubectl("delete", "deployment/own-canary")

    def _scale(self):
        for replicas in (6, 3):
            lab.kubectl("scale", "deployment/own", f"--replicas={replicas}")
            lab.kubectl("rollout", "status", "deployment/own", "--timeout=90s", timeout=95)

    def stop(self):
        self.ends = True
        self.join()
        if self.error:
            raise self.error
        return self.done


def replace(column):
    lab.restart_proxy(column)
    if column == "ebbtide":
        old_gone()


def old_gone():
    """The rollout's status does not wait for the old pods."""
    count = len(lab.nodes())
    lab.wait("the old pods gone", 90, lambda: len(lab.kubectl_ebbtide("get", "pods", "-l", "app.kubernetes.io/name=ebbtide", "-o", "name").split()) == count)


def proxies(elsewhere=False):
    """The pids of the proxies on this node, which has the network that this program is in, or on the others."""
    here, found = os.stat("/proc/self/ns/net").st_ino, set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if file.read() == b"/ebbtide\0run\0" and (os.stat(f"/proc/{pid}/ns/net").st_ino != here) == elsewhere:
                    found.add(int(pid))
        except OSError:
            continue  # it has ended
    return found


def name_taken():
    """Which socket has the name at which a process takes clients over. It is another one as soon as the old process is told to end."""
    with open("/proc/net/unix") as file:
        return {fields[6] for fields in map(str.split, file) if fields[-1] == f"@ebbtide-clients-{lab.ADMIN_PORT}" and int(fields[3], 16) & 0x10000}


def roll_and_kill(moment):
    """Rolls the proxy, and kills the new process of this node in the second after its start, or while clients pass to it."""
    before, names = proxies(), name_taken()
    lab.kubectl_ebbtide("rollout", "restart", "daemonset/ebbtide")
    new = lab.wait("a new process on this node", 180, lambda: proxies() - before)
    if moment == "start":
        time.sleep(random.uniform(0, 1))
    else:
        deadline = time.monotonic() + 90
        while not name_taken() - names:
            if time.monotonic() > deadline:
                raise lab.LabError("the new process does not take the name over")
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.1))
    for pid in new:
        os.kill(pid, signal.SIGKILL)
    # Seen with Kubernetes 1.35: every pod is ready, and the controller does not look again before something changes. Perhaps
    # since the killed pod gets ready twice within minReadySeconds.
    time.sleep(15)
    lab.kubectl_ebbtide("annotate", "daemonset/ebbtide", f"looked-at={time.time()}", "--overwrite")
    lab.kubectl_ebbtide("rollout", "status", "daemonset/ebbtide", "--timeout=240s", timeout=250)
    old_gone()


def crash():
    """SIGKILL of this node's proxy. Its kubelet starts it again: at once, or after a back-off if it had to lately."""
    for pid in proxies():
        os.kill(pid, signal.SIGKILL)
    lab.wait("the proxy back", 60, lambda: proxies() and lab.answers(PORTS["http"]))
    time.sleep(10)


def running():
    return set(lab.kubectl_ebbtide("get", "pods", "-l", "app.kubernetes.io/name=ebbtide", "-o", "jsonpath={.items[*].status.containerStatuses[*].imageID}").split())


def to_image(image):
    """The image has the name that the manifests ask for, whatever its version."""
    before = running()
    for node in lab.nodes():
        lab.run(lab.HERE + "/import.sh", node, image)
    replace("ebbtide")
    if running() & before:
        raise lab.LabError(f"{image} is not what runs now: {before}")


def measure(out, title, column, times, action, rollouts=True):
    """Runs all clients while `action` is done so many times. Returns what they have lost, and the errors of the lost connections."""
    application, lengths = None, []
    try:
        clients = Clients(out.knobs, PORTS)
        application = Rollouts() if rollouts else None
        for number in range(times):
            time.sleep(3)
            began = time.monotonic()
            action(number)
            lengths.append(round(time.monotonic() - began))
        done = application.stop() if application else 0
        time.sleep(lab.LATE)
        lost, errors = clients.stop(out, title, column)
    except OSError as error:
        raise lab.LabError(f"the clients of O: {error}") from None
    finally:
        end_all()
        if application:
            application.ends = True
    out.row(title, "all", "seconds each", column, ", ".join(map(str, lengths)), lengths)
    if application:
        out.row(title, "all", "rollouts of the application", column, done)
    return lost, errors


def experiment_o(out, column):
    """The proxy itself is replaced on all nodes, again and again, under clients of every kind."""
    knobs = out.knobs
    rolls, kills = knobs["OWN_ROLLS"], knobs["OWN_KILLS"]
    title = f"O. The proxy itself rolled {rolls} times (kube-proxy: restarted), beside rollouts of the application"
    applied(column)
    lost, _ = measure(out, title, column, rolls, lambda _: replace(column))
    judge(out, column, f"O: {rolls} own rolls", lost)
    if column != "ebbtide":
        return lab.clean()
    # What follows has columns of its own.
    if kills:
        measure(out, title, "SIGKILL", 1, lambda _: crash(), rollouts=False)
        measure(out, title, "SIGKILL again", 1, lambda _: crash(), rollouts=False)
        lost, _ = measure(out, title, f"{kills} times, the new process killed at its start", kills, lambda _: roll_and_kill("start"))
        # A client that connects takes its chance: the new process may have been the one that answered.
        lost.pop("a connection each")
        judge(out, column, f"O: the new process killed at its start, {kills} times", lost)
        _, errors = measure(out, title, f"{kills} times, the new process killed in the hand-over", kills, lambda _: roll_and_kill("hand-over"), rollouts=False)
        out.target(column, "O: the new process killed in the hand-over: no connection is left hanging", not any("timed out" in it for it in errors))
    if OLD_IMAGE:
        lost, _ = measure(out, title, f"to {lab.image_version(OLD_IMAGE)} and back", 2, lambda number: to_image((OLD_IMAGE, lab.IMAGE)[number % 2]))
        judge(out, column, "O: to another version and back", lost)
    lab.clean()


def judge(out, column, what, lost):
    out.target(column, f"{what}: 0 failed", lost["keep-alive clients"] == 0 and lost.get("a connection each", 0) == 0)
    out.target(column, f"{what}: exactly 8 sockets", lost["their sockets over 8"] == 0)
    held = {name: n for name, n in lost.items() if name not in ("keep-alive clients", "their sockets over 8", "a connection each")}
    out.target(column, f"{what}: no TCP connection, session, tunnel, upload or poll lost", not any(held.values()))
