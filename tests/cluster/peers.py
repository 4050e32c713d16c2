"""The ingress controllers beside Ebbtide in experiment K, as processes in the network of node1.

Traefik has its own controller. HAProxy and nginx are told by a small one here, which does what theirs do: HAProxy gets the ready
endpoints through its runtime API, nginx by a reload. Each is left out where its program is missing.
"""
import json
import os
import shutil
import signal
import socket
import subprocess
import threading

import lab

PORTS = {"Traefik": 8543, "HAProxy": 8643, "nginx": 8743}
SLOTS = 30  # more than there are pods at any time

HAPROXY = """
global
  nbthread 2
  stats socket {folder}/haproxy.sock mode 600 level admin
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  timeout http-keep-alive 60s
  option redispatch 1
frontend f
  bind :{port} ssl crt {folder}/tls.pem alpn h2,http/1.1
  default_backend b
backend b
  server-template s 1-{slots} 127.0.0.1:1 disabled
"""

NGINX = """
user root;
daemon off;
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c; uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  keepalive_requests 10000000;
  upstream b {{ {servers} keepalive 64; }}
  server {{
    listen {port} ssl http2;
    ssl_certificate {folder}/tls.crt; ssl_certificate_key {folder}/tls.key;
    location / {{ proxy_pass http://b; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""


class Haproxy:
    def __init__(self, program, folder, addresses):
        path = folder + "/haproxy.cfg"
        with open(path, "w") as file:
            file.write(HAPROXY.format(folder=folder, port=PORTS["HAProxy"], slots=SLOTS))
        with open(folder + "/haproxy.log", "w") as log:
            lab.start([program, "-db", "-f", path], stdout=log, stderr=log)
        self.api, self.slots = folder + "/haproxy.sock", {}
        lab.wait("HAProxy", 10, self.listens)
        self.update(addresses)

    def listens(self):
        try:
            self.say("show info")
            return True
        except OSError:
            return False

    def say(self, command):
        with socket.socket(socket.AF_UNIX) as it:
            it.connect(self.api)
            it.sendall(command.encode() + b"\n")
            while it.recv(4096):
                pass

    def update(self, addresses):
        for address in set(self.slots) - addresses:
            self.say(f"set server b/s{self.slots.pop(address)} state maint")
        for address in addresses - set(self.slots):
            slot = self.slots[address] = min(set(range(1, SLOTS + 1)) - set(self.slots.values()))
            self.say(f"set server b/s{slot} addr {address} port 8080")
            self.say(f"set server b/s{slot} state ready")


class Nginx:
    def __init__(self, program, folder, addresses):
        self.folder, self.path = folder, folder + "/nginx.conf"
        self.write(addresses)
        with open(folder + "/nginx.out", "w") as log:
            self.process = lab.start([program, "-c", self.path, "-e", folder + "/nginx.log"], stdout=log, stderr=log)

    def write(self, addresses):
        servers = " ".join(f"server {address}:8080;" for address in sorted(addresses)) or "server 127.0.0.1:1;"
        with open(self.path, "w") as file:
            file.write(NGINX.format(folder=self.folder, port=PORTS["nginx"], servers=servers))

    def update(self, addresses):
        self.write(addresses)
        self.process.send_signal(signal.SIGHUP)

    def stop(self):
        """Its workers outlive a master that is killed."""
        self.process.terminate()
        self.process.wait(10)


def traefik(program, folder):
    """By its defaults, apart from the classes that it serves."""
    with open(folder + "/traefik.log", "w") as log:
        lab.start([program, f"--entrypoints.websecure.address=:{PORTS['Traefik']}", "--entrypoints.websecure.http.tls=true",
                   "--providers.kubernetesingress=true", "--providers.kubernetesingress.ingressclass=traefik", "--providers.kubernetesgateway=true",
                   "--global.checknewversion=false", "--global.sendanonymoususage=false"], stdout=log, stderr=log)


def ready_addresses(slices):
    return {address for it in slices for end in it["endpoints"] or [] if end["conditions"].get("ready") for address in end["addresses"]}


def follow(service, told):
    """Tells each of `told` the ready endpoints of the Service whenever they change, until the process ends that watches them."""
    path = f"/apis/discovery.k8s.io/v1/namespaces/{lab.NAMESPACE}/endpointslices?watch=true&labelSelector=kubernetes.io/service-name%3D{service}"
    watch = lab.start(["kubectl", "get", "--raw", path], stdout=subprocess.PIPE)

    def run():
        slices, before = {}, None
        for line in watch.stdout:
            event = json.loads(line)
            slices[event["object"]["metadata"]["name"]] = event["object"] if event["type"] != "DELETED" else {"endpoints": []}
            addresses = ready_addresses(slices.values())
            if addresses != before:
                before = addresses
                for peer in told:
                    peer.update(addresses)
    threading.Thread(target=run, daemon=True).start()


def start(service, folder):
    """Starts what is there, and returns the names and what ends it."""
    slices = lab.get("endpointslices", "-l", "kubernetes.io/service-name=" + service)["items"]
    names, told = [], []
    programs = {"Traefik": lab.LAB + "/build/traefik", "HAProxy": shutil.which("haproxy"), "nginx": lab.LAB + "/nginx/usr/sbin/nginx"}
    for name, program in programs.items():
        if not program or not os.path.exists(program):
            lab.say(f"  {name} is left out: tests/cluster/build.sh peers")
            continue
        names.append(name)
        if name == "Traefik":
            traefik(program, folder)
        else:
            told.append({"HAProxy": Haproxy, "nginx": Nginx}[name](program, folder, ready_addresses(slices)))
    follow(service, told)
    return names, lambda: [peer.stop() for peer in told if isinstance(peer, Nginx)]
