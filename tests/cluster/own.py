"""Ebbtide's own rolling updates, as experiment O of e2e.py: what they cost the clients that it serves."""
import socket
import threading
import time

import lab

PORT, PAIRS_PORT, PAIRS = 31310, 31311, 200
ASK = b"GET / HTTP/1.1\r\nHost: own\r\n\r\n"


class Pairs:
    """TCP connections on each of which a message and its answer pass each second, until `stop`."""

    def __init__(self):
        self.ends, self.errors, self.asked = False, [], 0
        self.sockets = [socket.create_connection((lab.NODE_IP, PAIRS_PORT), 10) for _ in range(PAIRS)]
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        while not self.ends:
            began = time.monotonic()
            for i, it in enumerate(self.sockets):
                if it is None:
                    continue
                try:
                    it.settimeout(10)
                    it.sendall(ASK)
                    if not it.recv(4096):
                        raise OSError("ended")
                    self.asked += 1
                except OSError as error:
                    self.errors.append(str(error))
                    self.sockets[i] = None
            time.sleep(max(0.0, began + 1 - time.monotonic()))

    def stop(self):
        self.ends = True
        self.thread.join()
        for it in self.sockets:
            if it:
                it.close()
        return self.asked, self.errors


def replace(column):
    lab.restart_proxy(column)
    if column == "ebbtide":
        # The rollout's status does not wait for the old pods.
        count = len(lab.nodes())
        lab.wait("the old pods gone", 90, lambda: len(lab.kubectl_ebbtide("get", "pods", "-l", "app.kubernetes.io/name=ebbtide", "-o", "name").split()) == count)


def experiment_o(out, column):
    """The proxy itself is replaced on all nodes, again and again, under keep-alive clients and TCP connections."""
    rolls = out.knobs["OWN_ROLLS"]
    title = f"O. The proxy itself rolled {rolls} times (kube-proxy: restarted), 8 keep-alive clients with 500 requests/s and {PAIRS} TCP connections"
    pairs_service = lab.service("own-pairs", PAIRS_PORT, column, selector={"app": "own"})
    pairs_service["metadata"]["annotations"] = {"ebbtide.dev/protocol": "tcp"}
    lab.apply(lab.workload("own", 3, "app:v1", probe=True), lab.service("own", PORT, column), pairs_service)
    lab.rolled("deployment/own")
    lab.settled("own", PORT)
    lab.settled("own-pairs", PAIRS_PORT)
    # It makes the node forget flows to its port, so it starts first.
    fresh = lab.Load(PORT, connections=4, qps=200, keepalive=False)
    load, pairs, lengths = lab.Load(PORT), Pairs(), []
    for _ in range(rolls):
        time.sleep(3)
        began = time.monotonic()
        replace(column)
        lengths.append(round(time.monotonic() - began))
    time.sleep(lab.LATE)
    result, (asked, errors), new = load.stop(), pairs.stop(), fresh.stop()
    out.load(title, "keep-alive clients", column, [result])
    out.load(title, "a connection each, 200/s", column, [new])
    out.row(title, "TCP connections", "lost", column, f"{len(errors)} of {PAIRS} ({asked:,} messages)", errors)
    out.row(title, "all", "seconds a roll", column, ", ".join(map(str, lengths)), lengths)
    out.target(column, f"O: {rolls} own rolls: 0 failed", result["failed"] == 0)
    out.target(column, f"O: {rolls} own rolls, a connection each: 0 failed", new["failed"] == 0)
    out.target(column, f"O: {rolls} own rolls: exactly 8 sockets", result["sockets"] == 8)
    out.target(column, f"O: {rolls} own rolls: no TCP connection lost", not errors)
    lab.clean()
