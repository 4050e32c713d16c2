#!/usr/bin/env python3
"""Test suites of others against Ebbtide's HTTP/2: h2spec, and gRPC's interoperability client.

judges.py [--short] [--write] [--proxy PATH]

1. h2spec: each case of the frames' rules, strict, without TLS and with it.
2. gRPC's interoperability cases through the proxy, in the clear and over TLS.
3. gRPC's soak test while the servers behind the proxy are replaced one by one, in four ways to leave. Counted are
   `failed`, calls that their client got no answer to, and `begun`, calls that a server began and did not answer.
   A call that a server has begun is not sent again, so `failed` may reach `begun` where a server leaves without a word.
4. Streams of 2 seconds in each direction and in both, over TLS, while a server is replaced each 0.7 s. It ends gracefully.

--short: fewer calls.  --write: writes the section of RESULTS.md.
Ends with 1 if a case failed, or if a call or a stream failed where servers leave gracefully or after they were taken out.
Needs Go (builds the suites into $EBBTIDE_JUDGES, default ~/.cache/ebbtide-suites, 3 minutes) and openssl. All of it is on
loopback and ends with this script.
"""
import collections
import os
import pathlib
import re
import signal
import subprocess
import tempfile
import time

import rig
from rig import CACHE, HERE

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


def build():
    (CACHE / "bin").mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false -modcacherw"}
    for name, package in PROGRAMS.items():
        out = CACHE / "bin" / name
        if package == "." or not out.exists():
            print(f"building {package}", flush=True)
            subprocess.run(["go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, package], cwd=HERE / "server", env=environment, check=True)


class Endpoints(rig.Servers):
    """gRPC servers, a page of HTTP/1.1, and the proxy in front of them."""

    def __init__(self, folder, binary, delay=0, leave="graceful"):
        self.ledger, self.held = folder / "ledger", folder / "held"
        self.ledger.touch()
        self.held.touch()
        words = ["-delay", f"{delay}ms", "-leave", leave, "-ledger", self.ledger, "-held", self.held]
        proxy = rig.Proxy(folder, binary, {"grpc": "grpc", "web": "http"})
        super().__init__(proxy, "grpc", "127.0.1", lambda listen: [CACHE / "bin/server", "-listen", listen, *words])
        self.addresses = proxy.addresses
        proxy.tell("web", rig.page(), ["127.0.0.1"])
        proxy.start()


def h2spec(address, secure):
    """(passed, [failed cases])"""
    host, port = address.rsplit(":", 1)
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        argv = [CACHE / "bin/h2spec", "-h", host, "-p", port, "-o", "5", "--strict", "-j", report.name]
        out = subprocess.run([str(word) for word in argv] + (["-t", "-k"] if secure else []), capture_output=True, text=True, timeout=900)
        text = pathlib.Path(report.name).read_text()
    total = re.search(r"(\d+) tests, (\d+) passed", out.stdout)
    if not total:
        raise SystemExit(f"h2spec did not end as it should: {out.stdout[-500:]}{out.stderr[-500:]}")
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
    rig.running.append(load)
    replaced = 0
    while load.poll() is None:
        time.sleep(0.5)
        endpoints.replace(how, lead, lag)
        replaced += 1
    text = log.read_text(errors="replace")
    total = re.search(r"soak test successes: (\d+) / (\d+) iterations. Total failures: (\d+)", text)
    if not total:
        raise SystemExit(f"gRPC's client did not end as it should: {text[-500:]}")
    slow = len(re.findall("exceeds max acceptable latency", text))
    failed, begun = int(total[3]) - slow, endpoints.ledger.stat().st_size - int(total[1])
    errors = collections.Counter(re.findall(r"RPC failed: rpc error: (code = \w+ desc = [\w ]+)", text))
    return replaced, int(total[2]), failed, begun, slow, "; ".join(f"{n} x {what}" for what, n in errors.most_common(3))


def streams(folder, proxy, count):
    """The rows of the table of streams: [(kind, streams, failed, how)], how many servers were replaced, how many streams they had then."""
    endpoints = Endpoints(folder, proxy)
    argv = [CACHE / "bin/server", "-streams", endpoints.addresses["grpc", True], "-authority", endpoints.proxy.authority, "-count", count, "-at-once", 30]
    with open(folder / "client.log", "w") as out:
        load = subprocess.Popen(list(map(str, argv)), stdout=out, stderr=subprocess.STDOUT)
    rig.running.append(load)
    replaced = 0
    while load.poll() is None:
        time.sleep(0.5)
        endpoints.replace(signal.SIGTERM, 0, 0)
        replaced += 1
    text = (folder / "client.log").read_text()
    rows = re.findall(r"^(\w+) (\d+) (\d+)$", text, re.M)
    if load.returncode or len(rows) != 3:
        raise SystemExit(f"the client of streams did not end as it should: {text[-500:]}")
    how = lambda kind: "; ".join(sorted(set(re.findall(rf"^ {kind}: (.*)$", text, re.M))))[:200]
    return [(kind, int(all_of), int(failed), how(kind)) for kind, all_of, failed in rows], replaced, endpoints.held.stat().st_size


def main(args, folder, say):
    build()
    bad = []
    (folder / "calm").mkdir()
    calm = Endpoints(folder / "calm", args.proxy)
    say("| h2spec, strict | passed | failed |\n|---|---|---|")
    for name, secure in (("without TLS", False), ("with TLS", True)):
        passed, failed = h2spec(calm.addresses["web", secure], secure)
        say(f"| {name} | {passed} | {'; '.join(failed) or 0} |")
        bad += [f"h2spec {name}: {case}" for case in failed if case not in NOT_OURS]
    say("\n| gRPC interoperability | passed | failed |\n|---|---|---|")
    secure = ["-use_tls", "-use_test_ca", "-ca_file", calm.proxy.authority, "-server_host_override", "localhost"]
    for name, words in (("without TLS", []), ("with TLS", secure)):
        address = calm.addresses["grpc", bool(words)]
        failed = [case for case in CASES if client(address, "-test_case", case, *words, timeout=60).returncode]
        say(f"| {name} | {len(CASES) - len(failed)} | {'; '.join(failed) or 0} |")
        bad += [f"gRPC {name}: {case}" for case in failed]
    rig.end_all()
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
        rig.end_all()
    (folder / "streams").mkdir()
    rows, replaced, held = streams(folder / "streams", args.proxy, 30 if args.short else 200)
    say(f"\n| gRPC streams of 2 s over TLS, whose messages come from | streams | failed | |\n|---|---|---|---|")
    for kind, all_of, failed, how in rows:
        say(f"| {'both sides' if kind == 'both' else 'the ' + kind} | {all_of} | {failed} | {how} |")
        if failed:
            bad.append(f"gRPC streams, {kind}: {failed} of {all_of}")
    say(f"\n{replaced} servers were replaced meanwhile, and told while {held} streams were open on them.")
    if not held:
        bad.append("gRPC streams: none was held across a drain")
    return bad


if __name__ == "__main__":
    words = rig.parser(__doc__)
    words.add_argument("--short", action="store_true", help="fewer calls")
    rig.run(main, words)
