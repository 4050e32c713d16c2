#!/usr/bin/env python3
"""Test suites of others against Ebbtide's HTTP/2: h2spec, and gRPC's interoperability client.

judges.py [--short] [--write] [--proxy PATH]

1. h2spec: each case of the frames' rules, strict, without TLS and with it.
2. gRPC's interoperability cases through the proxy, in the clear and over TLS.
3. gRPC's soak test while the servers behind the proxy are replaced one by one, in four ways to leave. Counted are
   `failed`, calls that their client got no answer to, and `begun`, calls that a server began and did not answer.
   A call that a server has begun is not sent again, so `failed` may reach `begun` where a server leaves without a word.

--short: fewer calls.  --write: writes RESULTS.md beside this file.
Ends with 1 if a case failed, or if a call failed where servers leave gracefully or after they were taken out.
Needs Go (builds the suites into $EBBTIDE_JUDGES, default ~/.cache/ebbtide-suites, 3 minutes) and openssl. All of it is on
loopback and ends with this script.
"""
import argparse
import collections
import http.server
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = pathlib.Path(os.environ.get("EBBTIDE_JUDGES") or pathlib.Path.home() / ".cache/ebbtide-suites")
PROGRAMS = {
    "h2spec": "github.com/summerwind/h2spec/cmd/h2spec",
    "client": "google.golang.org/grpc/interop/client",
    "server": ".",
}
CASES = """empty_unary large_unary client_streaming server_streaming ping_pong empty_stream timeout_on_sleeping_server
    cancel_after_begin cancel_after_first_response status_code_and_message special_status_message custom_metadata
    unimplemented_method unimplemented_service""".split()
# A listener that also takes HTTP/1 answers a preface that is none with HTTP/1, which the case reads as a frame.
NOT_OURS = {"http2/3.5 Sends invalid connection preface"}
running = []


class Page(http.server.BaseHTTPRequestHandler):
    """Reads what is sent, and answers with as much as h2spec wants to see."""
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                self.rfile.read(size + 2)
            self.rfile.readline()
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Length", "1024")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b"0123456789abcdef" * 64)

    do_POST = do_HEAD = do_GET

    def log_message(self, *_):
        pass


class Pages(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):
        """A client that leaves in the middle is a part of the suite."""


def build():
    (CACHE / "bin").mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false -modcacherw"}
    for name, package in PROGRAMS.items():
        out = CACHE / "bin" / name
        if not out.exists():
            print(f"building {package}", flush=True)
            subprocess.run(["go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, package], cwd=HERE / "server", env=environment, check=True)


def free_port(host):
    with socket.create_server((host, 0)) as listener:
        return listener.getsockname()[1]


def start(argv, address, **options):
    """Starts a program and waits until it listens."""
    process = subprocess.Popen([str(word) for word in argv], stdin=subprocess.DEVNULL, **options)
    running.append(process)
    host, port = address.rsplit(":", 1)
    for _ in range(1000):
        try:
            socket.create_connection((host, int(port)), 1).close()
            return process
        except OSError:
            if process.poll() is not None:
                sys.exit(f"{argv[0]} has ended with {process.returncode}: {address} never listened")
            time.sleep(0.02)
    sys.exit(f"{argv[0]} does not listen on {address}")


def end_all():
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()


class Endpoints:
    """gRPC servers at addresses of their own, a page of HTTP/1.1, and the proxy in front of them."""

    def __init__(self, folder, proxy, delay=0, leave="graceful"):
        self.folder, self.delay, self.leave = folder, delay, leave
        self.port = free_port("127.0.1.1")
        self.ledger = folder / "ledger"
        self.ledger.touch()
        self.next, self.ready, self.leaving, self.servers = 1, [], [], {}
        (folder / "manifests").mkdir()
        authority, key, certificate = (folder / name for name in ("ca.pem", "key.pem", "cert.pem"))
        openssl(folder, authority, key, certificate)
        page = Pages(("127.0.0.1", 0), Page)
        threading.Thread(target=page.serve_forever, daemon=True).start()
        self.page = page.server_port
        self.addresses = {}
        config = f"discovery: {{files: {{path: {folder}/manifests}}}}\nadmin: {{address: '127.0.0.1:0'}}\nlisteners:\n"
        for service in ("grpc", "web"):
            for secure in (False, True):
                address = self.addresses[service, secure] = f"127.0.0.1:{free_port('127.0.0.1')}"
                config += f"  - name: {service}-{secure}\n    address: '{address}'\n    service: judges/{service}\n    port: {service}\n"
                if secure:
                    config += f"    tls: {{certificates: [{{certificate: {certificate}, key: {key}}}]}}\n"
        (folder / "ebbtide.yaml").write_text(config)
        for _ in range(3):
            self.arrive()
        self.tell()
        with open(folder / "proxy.log", "wb") as log:
            start([proxy, "run", "--config", folder / "ebbtide.yaml"], self.addresses["grpc", False], stdout=log, stderr=log)

    def address(self, slot):
        return f"127.0.1.{slot}"

    def arrive(self):
        slot, self.next = self.next, self.next % 250 + 1
        listen = f"{self.address(slot)}:{self.port}"
        argv = [CACHE / "bin/server", "-listen", listen, "-delay", f"{self.delay}ms", "-leave", self.leave, "-ledger", self.ledger]
        self.servers[slot] = start(argv, listen, stderr=subprocess.DEVNULL)
        self.ready.append(slot)

    def tell(self):
        """Writes what Kubernetes would say of them."""
        def endpoint(slot):
            is_ready = str(slot in self.ready).lower()
            leaves = str(slot not in self.ready).lower()
            return (f"  - addresses: [{self.address(slot)}]\n    conditions: {{ready: {is_ready}, serving: true, terminating: {leaves}}}\n"
                    f"    targetRef: {{kind: Pod, namespace: judges, name: pod-{slot}, uid: uid-{slot}}}\n")

        def manifests(name, protocol, port, endpoints):
            return (
                f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: judges}}\n"
                f"spec: {{ports: [{{name: {name}, port: 80, appProtocol: {protocol}}}]}}\n---\n"
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n"
                f"metadata: {{name: {name}-1, namespace: judges, labels: {{kubernetes.io/service-name: {name}}}}}\n"
                f"ports: [{{name: {name}, port: {port}}}]\nendpoints:\n{endpoints}---\n"
            )

        grpc = "".join(map(endpoint, self.ready + self.leaving))
        text = manifests("grpc", "grpc", self.port, grpc) + manifests("web", "http", self.page, "  - addresses: [127.0.0.1]\n")
        new = self.folder / "manifests/.new"
        new.write_text(text)
        new.rename(self.folder / "manifests/grpc.yaml")

    def replace(self, how, lead, lag):
        self.leaving = [slot for slot in self.leaving if self.servers[slot].poll() is None]
        self.arrive()
        self.tell()
        time.sleep(0.2)
        old = self.ready.pop(0)
        self.leaving.append(old)
        if not lag:
            self.tell()
            time.sleep(lead)
        self.servers[old].send_signal(how)
        if lag:
            time.sleep(lag)
            self.tell()


def openssl(folder, authority, key, certificate):
    """An authority, and a certificate of its own: Go's clients refuse one that is both."""
    new = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2".split()
    run = lambda *words: subprocess.run(["openssl", *new, *map(str, words)], check=True, stderr=subprocess.DEVNULL)
    run("-subj", "/CN=judges", "-keyout", folder / "ca.key", "-out", authority)
    run("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE",
        "-CA", authority, "-CAkey", folder / "ca.key", "-keyout", key, "-out", certificate)


def h2spec(address, secure):
    """(passed, [failed cases])"""
    host, port = address.rsplit(":", 1)
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        argv = [CACHE / "bin/h2spec", "-h", host, "-p", port, "-o", "5", "--strict", "-j", report.name]
        out = subprocess.run([str(word) for word in argv] + (["-t", "-k"] if secure else []), capture_output=True, text=True, timeout=900)
        text = pathlib.Path(report.name).read_text()
    total = re.search(r"(\d+) tests, (\d+) passed", out.stdout)
    if not total:
        sys.exit(f"h2spec did not end as it should: {out.stdout[-500:]}{out.stderr[-500:]}")
    cases = re.findall(r'<testcase package="([^"]*)" classname="([^"]*)"[^>]*>\s*<(?:failure|error)', text)
    return int(total[2]), [f"{package} {case}" for package, case in cases]


def client(address, *words, timeout):
    host, port = address.rsplit(":", 1)
    argv = [CACHE / "bin/client", "-server_host", host, "-server_port", port, *words]
    return subprocess.run([str(word) for word in argv], capture_output=True, text=True, timeout=timeout)


def soak(folder, proxy, leave, how, lead, lag, calls):
    """One row of the table of soaks, and whether it holds."""
    endpoints = Endpoints(folder, proxy, delay=20, leave=leave)
    host, port = endpoints.addresses["grpc", False].rsplit(":", 1)
    words = ["-server_host", host, "-server_port", port, "-test_case", "rpc_soak", "-soak_num_threads", "16", "-soak_iterations", calls,
             "-soak_min_time_ms_between_rpcs", "30", "-soak_request_size", "4096", "-soak_response_size", "4096",
             "-soak_overall_timeout_seconds", "600", "-soak_max_failures", "0"]
    log = folder / "client.log"
    with open(log, "w") as out:
        load = subprocess.Popen([str(CACHE / "bin/client"), *map(str, words)], stderr=out, stdout=subprocess.DEVNULL)
    running.append(load)
    replaced = 0
    while load.poll() is None:
        time.sleep(0.5)
        endpoints.replace(how, lead, lag)
        replaced += 1
    text = log.read_text(errors="replace")
    total = re.search(r"soak test successes: (\d+) / (\d+) iterations. Total failures: (\d+)", text)
    if not total:
        sys.exit(f"gRPC's client did not end as it should: {text[-500:]}")
    slow = len(re.findall("exceeds max acceptable latency", text))
    failed, begun = int(total[3]) - slow, endpoints.ledger.stat().st_size - int(total[1])
    errors = collections.Counter(re.findall(r"RPC failed: rpc error: (code = \w+ desc = [\w ]+)", text))
    return replaced, int(total[2]), failed, begun, slow, "; ".join(f"{n} x {what}" for what, n in errors.most_common(3))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--proxy", default=ROOT / "target/release/ebbtide", type=pathlib.Path)
    args = parser.parse_args()
    build()
    lines, bad = [], []

    def say(line):
        lines.append(line)
        print(line, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "calm").mkdir()
        calm = Endpoints(folder / "calm", args.proxy)
        say("| h2spec, strict | passed | failed |\n|---|---|---|")
        for name, secure in (("without TLS", False), ("with TLS", True)):
            passed, failed = h2spec(calm.addresses["web", secure], secure)
            say(f"| {name} | {passed} | {'; '.join(failed) or 0} |")
            bad += [f"h2spec {name}: {case}" for case in failed if case not in NOT_OURS]
        say("\n| gRPC interoperability | passed | failed |\n|---|---|---|")
        secure = ["-use_tls", "-use_test_ca", "-ca_file", folder / "calm/ca.pem", "-server_host_override", "localhost"]
        for name, words in (("without TLS", []), ("with TLS", secure)):
            address = calm.addresses["grpc", bool(words)]
            failed = [case for case in CASES if client(address, "-test_case", case, *words, timeout=60).returncode]
            say(f"| {name} | {len(CASES) - len(failed)} | {'; '.join(failed) or 0} |")
            bad += [f"gRPC {name}: {case}" for case in failed]
        end_all()
        say("\n| gRPC soak, how servers leave | replaced | calls | failed | begun | over 1 s | errors |\n|---|---|---|---|---|---|---|")
        calls = 1600 if args.short else 8000
        ways = (
            ("gracefully: SIGTERM, GOAWAY", "graceful", signal.SIGTERM, 0, 0),
            ("at once, taken out 0.5 s before", "exit", signal.SIGTERM, 0.5, 0),
            ("at once, told at the same time", "exit", signal.SIGTERM, 0, 0),
            ("SIGKILL, told 0.2 s later", "exit", signal.SIGKILL, 0, 0.2),
        )
        for number, (name, leave, how, lead, lag) in enumerate(ways):
            (folder / str(number)).mkdir()
            row = soak(folder / str(number), args.proxy, leave, how, lead, lag, calls)
            say(f"| {name} | " + " | ".join(map(str, row)) + " |")
            if number < 2 and (row[2] or row[3]):
                bad.append(f"gRPC soak: {name}: {row[2]} failed, {row[3]} begun in vain")
            end_all()
    if args.write:
        out = subprocess.run([str(args.proxy), "--version"], capture_output=True, text=True, check=True)
        text = f"# Suites of others\n\nWritten by `make judges`. {out.stdout.strip()}, {time.strftime('%Y-%m-%d')}.\n\n" + "\n".join(lines) + "\n"
        (HERE / "RESULTS.md").write_text(text)
    if bad:
        sys.exit("failed: " + "; ".join(bad))


try:
    main()
finally:
    end_all()
