"""The clients of experiment O. Each keeps its connections for as long as it runs, and says at its end what it has lost."""
import hashlib
import http.client
import os
import re
import socket
import subprocess
import threading
import time

import lab

PATIENCE = 10  # seconds without an answer, after which a connection counts as stuck
MIB = 1 << 20


_workers = []


def end_all():
    """Also ends what a broken experiment has left."""
    while _workers:
        _workers.pop().ends = True


class Worker(threading.Thread):
    """Goes on with `_run` until `ends`. What it has done is known after `join`."""

    def __init__(self):
        super().__init__(daemon=True)
        self.ends, self.errors, self.answered, self.slowest = False, [], 0, 0.0
        _workers.append(self)
        self.start()

    def run(self):
        while not self.ends:
            self._run()


class Talks(Worker):
    """Connections on each of which a numbered message and its answer pass each second. A message that is lost or comes
    twice makes the next answer a wrong one. A tenth of them talk at a time. Who has lost its connection makes a new one."""

    def __init__(self, count, connect, ask, answer):
        self.count, self.connect, self.ask, self.answer, self.round = count, connect, ask, answer, 0
        self.sockets = {i: connect(i, 0) for i in range(count)}
        super().__init__()

    def _run(self):
        began = time.monotonic()
        for i in set(range(self.count)) - set(self.sockets):
            try:
                self.sockets[i] = self.connect(i, self.round)
            except OSError:
                continue  # in the next second
        self.round += 1
        for group in range(10):
            sent, members = time.monotonic(), [i for i in self.sockets if i % 10 == group]
            for step in (self._send, self._receive):
                for i in [i for i in members if i in self.sockets]:
                    try:
                        step(i, sent)
                    except OSError as error:
                        self.errors.append(f"{error} in round {self.round}")
                        self.sockets.pop(i).close()
            self.slowest = max(self.slowest, time.monotonic() - sent) if members else self.slowest
            time.sleep(max(0.0, began + (group + 1) / 10 - time.monotonic()))

    def _send(self, i, _):
        self.sockets[i].sendall(self.ask(i, self.round))

    def _receive(self, i, sent):
        wanted, got = self.answer(i, self.round), b""
        while len(got) < len(wanted):
            self.sockets[i].settimeout(max(0.01, sent + PATIENCE - time.monotonic()))
            part = self.sockets[i].recv(len(wanted) - len(got))
            if not part:
                raise OSError("ended")
            got += part
        if got != wanted:
            raise OSError(f"{got} instead of {wanted}")
        self.answered += 1


def frame(i, number, mask=b""):
    text = f"{i} {number}".encode()
    return bytes([0x81, len(text) | (0x80 if mask else 0)]) + mask + text


def web_socket(port):
    it = socket.create_connection((lab.NODE_IP, port), PATIENCE)
    it.sendall(b"GET /echo HTTP/1.1\r\nHost: own\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
               b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        part = it.recv(4096)
        if not part:
            raise OSError(f"no WebSocket at port {port}: {head}")
        head += part
    if b" 101 " not in head or b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" not in head:
        raise OSError(f"no WebSocket at port {port}: {head}")
    return it


def echoes(count, port):
    """WebSocket connections to the sample application."""
    # A mask of zeros leaves the text as it is.
    return Talks(count, lambda *_: web_socket(port), lambda i, number: frame(i, number, bytes(4)), frame)


def counts(count, port):
    """Sessions of redis, each of which counts a key up."""
    def connect(i, number):
        it = socket.create_connection((lab.NODE_IP, port), PATIENCE)
        it.sendall(f"SET own-{i} {number}\r\n".encode())
        if it.recv(5) != b"+OK\r\n":
            raise OSError(f"no redis at port {port}")
        return it
    return Talks(count, connect, lambda i, _: f"INCR own-{i}\r\n".encode(), lambda _, number: f":{number}\r\n".encode())


class Asks(Worker):
    """One client of HTTP with a connection that it keeps, and `one` after another on it. It returns what is wrong, or nothing."""

    def __init__(self, port, one):
        self.port, self.one, self.connection, self.sockets = port, one, None, 0
        super().__init__()

    def _run(self):
        if not self.connection:
            connection = http.client.HTTPConnection(lab.NODE_IP, self.port, timeout=90)
            try:
                connection.connect()
            except OSError:
                return time.sleep(0.1)
            connection.auto_open = 0
            self.connection, self.sockets = connection, self.sockets + 1
        began = time.monotonic()
        try:
            if wrong := self.one(self.connection):
                raise OSError(wrong)
            self.answered += 1
        except (OSError, http.client.HTTPException) as error:
            self.errors.append(f"{type(error).__name__} {error} after {time.monotonic() - began:.1f} s")
            self.connection.close()
        self.slowest = max(self.slowest, time.monotonic() - began)
        if not self.connection.sock:  # also when the answer said `Connection: close`
            self.connection = None


def poll(seconds):
    def one(connection):
        connection.request("GET", f"/?delay={seconds}s")
        answer = connection.getresponse()
        answer.read()
        return "" if answer.status == 200 else f"status {answer.status}"
    return one


def upload(mib, seconds):
    """A body of so many MiB in about so many seconds. The application tells its checksum."""
    block = os.urandom(MIB)

    def one(connection):
        sum_, began = hashlib.sha256(), time.monotonic()
        connection.putrequest("POST", "/hash")
        connection.putheader("Content-Length", str(mib * MIB))
        connection.endheaders()
        for i in range(mib):
            part = i.to_bytes(8, "big") + block[8:]
            sum_.update(part)
            connection.send(part)
            time.sleep(max(0.0, began + (i + 1) * seconds / mib - time.monotonic()))
        answer = connection.getresponse()
        body = answer.read().decode()
        return "" if answer.status == 200 and body == sum_.hexdigest() else f"status {answer.status}, {body[:100]} instead of {sum_.hexdigest()}"
    return one


class Visits(Worker):
    """One short session of the echo after another: `seconds` of messages, and then the client ends it."""

    def __init__(self, port, seconds):
        self.port, self.seconds, self.sockets = port, seconds, 0
        super().__init__()

    def _run(self):
        try:
            it, over, number = web_socket(self.port), time.monotonic() + self.seconds, 0
            self.sockets += 1
            it.settimeout(PATIENCE)
            while time.monotonic() < over and not self.ends:
                number += 1
                sent = time.monotonic()
                it.sendall(frame(0, number, bytes(4)))
                wanted, got = frame(0, number), b""
                while len(got) < len(wanted):
                    part = it.recv(len(wanted) - len(got))
                    if not part:
                        raise OSError(f"cut after {number} messages")
                    got += part
                if got != wanted:
                    raise OSError(f"{got} instead of {wanted}")
                self.slowest = max(self.slowest, time.monotonic() - sent)
                time.sleep(0.2)
            it.close()
            self.answered += 1
        except OSError as error:
            self.errors.append(str(error))
            time.sleep(0.1)


class Group:
    """Some clients of one kind, as one."""

    def __init__(self, clients):
        self.clients = clients

    def join(self):
        for it in self.clients:
            it.join()
        self.errors = [error for it in self.clients for error in it.errors]
        self.answered, self.slowest = sum(it.answered for it in self.clients), max(it.slowest for it in self.clients)
        self.sockets = sum(it.sockets for it in self.clients)


class Program:
    """A program with connections of its own, which ends when it loses one, or says so."""

    def __init__(self, name, *command):
        self.log = f"{lab.LAB}/results/{name}-{time.time_ns()}.log"
        with open(self.log, "w") as log:
            self.process = lab.start(command, stdout=log, stderr=log)

    def stop(self):
        """What it said if it has lost a connection, else nothing."""
        ended = self.process.poll()
        self.process.kill()
        self.process.wait()
        with open(self.log) as log:
            text = log.read()
        lost = [line for line in re.split(r"[\r\n]+", text) if re.search("abort|could not|rror|closed", line)]
        return lost or ([f"ended with {ended}: {text[-200:]}"] if ended is not None else [])


class Knocks(Worker):
    """A new connection each 20 ms, and for how long none was taken."""

    def __init__(self, port):
        self.port, self.last, self.longest = port, time.monotonic(), 0.0
        super().__init__()

    def _run(self):
        try:
            socket.create_connection((lab.NODE_IP, self.port), 1).close()
            self.last = time.monotonic()
        except OSError:
            self.errors.append("refused")
        self.longest = max(self.longest, time.monotonic() - self.last)
        time.sleep(0.02)


class Clients:
    """All of them, at the ports of own.py."""

    def __init__(self, knobs, ports):
        self.knobs = knobs
        # It makes the node forget flows to its port, so it starts first.
        self.fresh = lab.Load(ports["http"], connections=4, qps=200, keepalive=False)
        self.load = lab.Load(ports["http"])
        held = knobs["OWN_HELD"]
        self.talks = {
            "TCP connections": echoes(knobs["OWN_PAIRS"], ports["pairs"]),
            "WebSocket tunnels": echoes(knobs["OWN_TUNNELS"], ports["long"]),
            "sessions of redis": counts(8, ports["redis"]),
        }
        self.asks = {
            f"long polls of {held} s": Group([Asks(ports["long"], poll(held)) for _ in range(knobs["OWN_POLLS"])]),
            f"uploads of {knobs['OWN_MIB']:,} MiB in {held} s": Group([Asks(ports["long"], upload(knobs["OWN_MIB"], held)) for _ in range(2)]),
        }
        # A command that waits in the server keeps redis-benchmark to 10 a second on each connection.
        self.programs = {
            "redis-benchmark, 8 sessions": Program("redis-benchmark", "redis-benchmark", "-h", lab.NODE_IP, "-p", str(ports["redis"]),
                                                   "-c", "8", "-n", "10000000", "-q", "BLPOP", "none", "0.1"),
            "pgbench, 8 sessions": Program("pgbench", lab.LAB + "/postgres/pgbench", "-n", "-h", lab.NODE_IP, "-p", str(ports["postgres"]), "-U", "postgres",
                                           "-f", script(), "-c", "8", "-R", "40", "-T", "100000", "-P", "10", "postgres"),
        }
        self.knocks = Knocks(ports["http"])

    def stop(self, out, title, column):
        """Writes what they have measured. Returns the errors of each kind."""
        end_all()
        lost = {name: program.stop() for name, program in self.programs.items()}
        for name, it in {**self.talks, **self.asks}.items():
            it.join()
            lost[name] = it.errors
        self.knocks.join()
        result, new = self.load.stop(), self.fresh.stop()
        out.load(title, "keep-alive clients", column, [result])
        out.load(title, "a connection each, 200/s", column, [new])
        for name, it in self.talks.items():
            out.row(title, name, "lost", column, f"{len(it.errors):,} of {it.count:,} ({it.answered:,} messages)", it.errors)
            out.row(title, name, "slowest answer, s", column, f"{it.slowest:.1f}")
        for name, it in self.asks.items():
            out.row(title, name, "failed", column, f"{len(it.errors)} of {it.answered + len(it.errors):,}", it.errors)
            out.row(title, name, "sockets", column, f"{it.sockets} for {len(it.clients)} clients")
            out.row(title, name, "slowest, s", column, f"{it.slowest:.1f}")
            lost[name + ", connections"] = [""] * (it.sockets - len(it.clients))
        for name in self.programs:
            out.row(title, name, "lost", column, len(lost[name]), lost[name])
        out.row(title, "new connections", "longest without one, s", column, f"{self.knocks.longest:.1f}", self.knocks.errors)
        return {"keep-alive clients": result["failed"], "their sockets over 8": result["sockets"] - 8, "a connection each": new["failed"],
                **{name: len(errors) for name, errors in lost.items()}}, [error for it in self.talks.values() for error in it.errors]


def script():
    path = lab.LAB + "/results/select.sql"
    with open(path, "w") as file:
        file.write("SELECT 1;\n")
    return path
