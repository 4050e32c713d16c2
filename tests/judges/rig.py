"""What the judges beside this file share: processes, certificates, the proxy under test, and sections of RESULTS.md.

All of it is on loopback and ends with the script that started it: see `run`.
"""
import argparse
import http.server
import os
import pathlib
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
running = []


def run(main, parser):
    """Calls `main(args, folder, say)`, which returns what is wrong, and ends all that it started. Ends the script with 1 if something
    is wrong. What `main` says becomes the section of RESULTS.md, with --write."""
    parser.add_argument("--write", action="store_true", help="writes the section of RESULTS.md")
    parser.add_argument("--proxy", default=ROOT / "target/release/ebbtide", type=pathlib.Path)
    args = parser.parse_args()
    lines = []

    def say(line):
        lines.append(line)
        print(line, flush=True)

    try:
        with tempfile.TemporaryDirectory() as folder:
            wrong = main(args, pathlib.Path(folder), say)
    finally:
        end_all()
    if args.write:
        write_section(pathlib.Path(sys.argv[0]).name, args.proxy, lines)
    if wrong:
        sys.exit("failed: " + "; ".join(wrong))


def parser(text):
    return argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


def write_section(script, proxy, lines):
    """Replaces the section of one script, and leaves those of others as they are."""
    path = HERE / "RESULTS.md"
    head, *sections = path.read_text().split("\n## ")
    version = subprocess.run([str(proxy), "--version"], capture_output=True, text=True, check=True).stdout.strip()
    new = f"{script}\n\n{version}, {time.strftime('%Y-%m-%d')}.\n\n" + "\n".join(lines)
    kept = {section.split("\n", 1)[0]: section for section in sections} | {script: new}
    path.write_text("\n\n## ".join([head.strip()] + [kept[name].strip() for name in sorted(kept)]) + "\n")


def free_port(host="127.0.0.1"):
    with socket.create_server((host, 0)) as listener:
        return listener.getsockname()[1]


def free_address():
    return f"127.0.0.1:{free_port()}"


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


def certificate(folder, kind="ec"):
    """An authority, and a certificate of its own for localhost: Go's clients refuse one that is both. (authority, certificate, key)"""
    authority, key, leaf = (folder / name for name in ("ca.pem", "key.pem", "cert.pem"))
    new = {"ec": "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1", "rsa": "-newkey rsa:2048"}[kind]
    new = f"openssl req -x509 {new} -nodes -days 90".split()
    call = lambda *words: subprocess.run([*new, *map(str, words)], check=True, stderr=subprocess.DEVNULL)
    call("-subj", "/CN=judges", "-keyout", folder / "ca.key", "-out", authority)
    call("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE",
         "-addext", "extendedKeyUsage=serverAuth", "-CA", authority, "-CAkey", folder / "ca.key", "-keyout", key, "-out", leaf)
    return authority, leaf, key


class Proxy:
    """Ebbtide, with two listeners for each Service: one in the clear, one with TLS. `tell` first, then `start`."""

    def __init__(self, folder, binary, services, kind="ec"):
        """services: the appProtocol of each name."""
        self.folder, self.binary, self.services = folder, binary, services
        (folder / "manifests").mkdir()
        self.authority, self.certificate, self.key = certificate(folder, kind)
        self.admin = free_address()
        self.addresses = {(service, secure): free_address() for service in services for secure in (False, True)}

    def tell(self, service, port, ready, leaving=()):
        """Writes what Kubernetes would say of a Service whose endpoints have these addresses."""
        def endpoint(host):
            is_ready, leaves = (str(host in hosts).lower() for hosts in (ready, leaving))
            return (f"  - addresses: [{host}]\n    conditions: {{ready: {is_ready}, serving: true, terminating: {leaves}}}\n"
                    f"    targetRef: {{kind: Pod, namespace: judges, name: pod-{host}, uid: uid-{host}}}\n")
        text = (
            f"apiVersion: v1\nkind: Service\nmetadata: {{name: {service}, namespace: judges}}\n"
            f"spec: {{ports: [{{name: {service}, port: 80, appProtocol: {self.services[service]}}}]}}\n---\n"
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n"
            f"metadata: {{name: {service}-1, namespace: judges, labels: {{kubernetes.io/service-name: {service}}}}}\n"
            f"ports: [{{name: {service}, port: {port}}}]\nendpoints:\n" + "".join(map(endpoint, [*ready, *leaving]))
        )
        new = self.folder / "manifests/.new"
        new.write_text(text)
        new.rename(self.folder / f"manifests/{service}.yaml")

    def start(self):
        config = f"discovery: {{files: {{path: {self.folder}/manifests}}}}\nadmin: {{address: '{self.admin}'}}\naccessLog: json\nlisteners:\n"
        for (service, secure), address in self.addresses.items():
            config += f"  - name: {service}-{secure}\n    address: '{address}'\n    service: judges/{service}\n    port: {service}\n"
            if secure:
                config += f"    tls: {{certificates: [{{certificate: {self.certificate}, key: {self.key}}}]}}\n"
        (self.folder / "ebbtide.yaml").write_text(config)
        with open(self.folder / "proxy.log", "wb") as log:
            argv = [self.binary, "run", "--config", self.folder / "ebbtide.yaml"]
            start(argv, next(iter(self.addresses.values())), stdout=log, stderr=log)
        return self


class Servers:
    """Servers of one Service of a proxy at addresses of their own (`network`.1 and on), which come and leave."""

    def __init__(self, proxy, service, network, command):
        """command: the program for an address, see `start`."""
        self.proxy, self.service, self.network, self.command = proxy, service, network, command
        self.port = free_port(f"{network}.1")
        self.next, self.ready, self.leaving, self.servers = 1, [], [], {}
        for _ in range(3):
            self.arrive()
        self.tell()

    def arrive(self):
        host = f"{self.network}.{self.next}"
        self.next = self.next % 250 + 1
        listen = f"{host}:{self.port}"
        self.servers[host] = start(self.command(listen), listen, stderr=subprocess.DEVNULL)
        self.ready.append(host)

    def tell(self):
        self.proxy.tell(self.service, self.port, self.ready, self.leaving)

    def replace(self, how=signal.SIGTERM, lead=0.2, lag=0):
        """One comes, and one leaves by the signal `how`, `lead` seconds after it was taken out, or `lag` seconds before."""
        self.leaving = [host for host in self.leaving if self.servers[host].poll() is None]
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


class Page(http.server.BaseHTTPRequestHandler):
    """Reads what is sent, and answers with as much as h2spec wants to see."""
    protocol_version = "HTTP/1.1"
    wbufsize = -1

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
        """A client that leaves in the middle is a part of the suites."""


def page():
    """A page of HTTP/1.1 on loopback; its port."""
    server = Pages(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port
