#!/usr/bin/env python3
"""Clients of others over TLS and HTTP/2 (ALPN), while an endpoint is replaced each 0.5 s.

clients.py [--short] [--write] [--proxy PATH]

Endpoints are servers of Go that speak HTTP/1.1 and answer after 10 ms. A new one comes, an old one is taken out, and gets SIGTERM
after 0.2 s. Half of the requests are POSTs. A request has failed that did not get the whole 200 by HTTP/2. `at once`: what failed
of as many requests to an endpoint that answers at once and stays.
--short: fewer requests.  --write: writes the section of RESULTS.md.
Ends with 1 if a request failed, or if a client opened more than one connection.
Needs Go and openssl; curl, Node, Java, and a Python with httpx[http2] ($EBBTIDE_JUDGES/venv) are left out if they are not there.
"""
import re
import shutil
import subprocess
import tempfile
import time
import urllib.request

import rig

CLIENTS = rig.HERE / "clients"
AT_ONCE = 10


class Endpoints(rig.Servers):
    """Servers that answer after 10 ms, one that answers at once, and the proxy in front of them."""

    def __init__(self, folder, binary):
        self.program = folder / "client"
        subprocess.run(["go", "build", "-o", self.program, CLIENTS / "client.go"], check=True, env={**rig.os.environ, "GO111MODULE": "off"})
        proxy = rig.Proxy(folder, binary, {"web": "http", "fast": "http"})
        super().__init__(proxy, "web", "127.0.2", lambda listen: [self.program, "serve", listen, "10ms"])
        port = rig.free_port()
        rig.start([self.program, "serve", f"127.0.0.1:{port}", "0s"], f"127.0.0.1:{port}")
        proxy.tell("fast", port, ["127.0.0.1"])
        proxy.start()

    def connections(self):
        """How many TLS handshakes there were with clients. The page is rendered at most once a second."""
        time.sleep(1.1)
        with urllib.request.urlopen(f"http://{self.proxy.admin}/metrics") as page:
            text = page.read().decode()
        return sum(int(float(n)) for n in re.findall(r"^ebbtide_tls_handshakes_total\{.*\} (\S+)$", text, re.M))


def commands(url, authority, program, requests):
    """The clients that are there: {name: argv}."""
    words = [url, authority, requests, AT_ONCE]
    python = rig.CACHE / "venv/bin/python"
    one = f"{url}?[1-{requests}]"
    quiet = ["curl", "--http2", "--no-progress-meter", "--cacert", authority, "-o", "/dev/null", "-w", "%{http_version} %{http_code} %{size_download} %{errormsg}\\n"]
    every = {
        "curl, one after the other": [*quiet, url + f"?[1-{requests // 3}]"],
        "curl, 10 at once": [*quiet, "--parallel", "--parallel-max", AT_ONCE, one],
        "Go net/http": [program, "ask", *words],
        "Node http2": ["node", CLIENTS / "client.js", *words],
        "Python httpx": [python, CLIENTS / "client.py", *words],
        "Java HttpClient": ["java", CLIENTS / "Client.java", *words],
    }
    return {name: list(map(str, argv)) for name, argv in every.items() if shutil.which(argv[0])}


def ask(endpoints, argv, replacing):
    """(requests that went well, endpoints replaced, what the client said of others)"""
    with tempfile.TemporaryFile("w+") as out:
        load = subprocess.Popen(argv, stdout=out, stderr=subprocess.STDOUT)
        rig.running.append(load)
        replaced = 0
        while load.poll() is None:
            if replacing:
                endpoints.replace()
                replaced += 1
            time.sleep(0.1)
        out.seek(0)
        lines = out.read().splitlines()
    total = [int(line[3:]) for line in lines if re.fullmatch(r"ok \d+", line)]
    well = "2 200 1024 "
    rest = [line for line in lines if line != well and not re.fullmatch(r"ok \d+", line)]
    return total[0] if total else lines.count(well), replaced, rest


def main(args, folder, say):
    wrong = []
    endpoints = Endpoints(folder, args.proxy)
    many = 1500 if args.short else 6000
    url = lambda service: f"https://localhost:{endpoints.proxy.addresses[service, True].rsplit(':', 1)[1]}/"
    clients = {service: commands(url(service), endpoints.proxy.authority, endpoints.program, many) for service in ("web", "fast")}
    say("| client over TLS and HTTP/2 | replaced | requests | failed | at once | connections | |\n|---|---|---|---|---|---|---|")
    for name in clients["web"]:
        requests = many // 3 if "one after" in name else many
        before = endpoints.connections()
        ok, replaced, rest = ask(endpoints, clients["web"][name], True)
        connections = endpoints.connections() - before
        quick, _, more = ask(endpoints, clients["fast"][name], False)
        failed = requests - ok, requests - quick
        say(f"| {name} | {replaced} | {requests} | {failed[0]} | {failed[1]} | {connections} | {'; '.join(sorted({*rest, *more}))[:200]} |")
        if any(failed) or connections != 1:
            wrong.append(f"{name}: {failed} of {requests}, {connections} connections")
    return wrong


if __name__ == "__main__":
    words = rig.parser(__doc__)
    words.add_argument("--short", action="store_true", help="fewer requests")
    rig.run(main, words)
