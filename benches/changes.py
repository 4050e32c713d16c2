#!/usr/bin/env python3
"""What changes of routes cost the clients of the other routes: requests beside 1,000 changes a minute of a table of
5,000 rules, on loopback, without a cluster.

changes.py EBBTIDE FORTIO [--rules N] [--seconds S]   prints the quiet load and the one with changes
"""
import argparse
import json
import os
import socket
import subprocess
import tempfile
import time

GROUP, EACH, A_MINUTE = "gateway.networking.k8s.io/v1", 16, 1000


def free_port(host="127.0.0.1"):
    with socket.create_server((host, 0)) as it:
        return it.getsockname()[1]


def route(number, version):
    filters = [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "X-Version", "value": str(version)}]}}]
    rules = [{"matches": [{"path": {"type": "PathPrefix", "value": f"/a{n}"}}], "filters": filters, "backendRefs": [{"name": "app", "port": 80}]} for n in range(EACH)]
    return {"apiVersion": GROUP, "kind": "HTTPRoute", "metadata": {"name": f"r{number}", "namespace": "web"},
            "spec": {"parentRefs": [{"name": "edge"}], "hostnames": [f"r{number}.example"], "rules": rules}}


def scene(gateway_port, app_port):
    return [
        {"apiVersion": GROUP, "kind": "GatewayClass", "metadata": {"name": "ebbtide"}, "spec": {"controllerName": "ebbtide.dev/gateway"}},
        {"apiVersion": GROUP, "kind": "Gateway", "metadata": {"name": "edge", "namespace": "web"},
         "spec": {"gatewayClassName": "ebbtide", "listeners": [{"name": "http", "port": gateway_port, "protocol": "HTTP"}]}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "app", "namespace": "web"}, "spec": {"ports": [{"port": 80, "targetPort": app_port}]}},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
         "metadata": {"name": "app-1", "namespace": "web", "labels": {"kubernetes.io/service-name": "app"}}, "ports": [{"port": app_port}],
         "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": True}}]},
    ]


def processor_seconds(pid):
    """Of each thread so far, by its name."""
    used = {}
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/stat") as file:
            name, fields = file.read().split("(", 1)[1].rsplit(")", 1)
        used[name] = used.get(name, 0) + sum(map(int, fields.split()[11:13])) / os.sysconf("SC_CLK_TCK")
    return used


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ebbtide")
    parser.add_argument("fortio")
    parser.add_argument("--rules", type=int, default=5000)
    parser.add_argument("--seconds", type=int, default=20)
    args = parser.parse_args()
    routes, started = -(-args.rules // EACH), []
    with tempfile.TemporaryDirectory(prefix="ebbtide-changes-") as folder:
        manifests = folder + "/manifests"
        os.mkdir(manifests)

        def start(*command):
            with open(f"{folder}/log{len(started)}", "w") as log:
                started.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
            return started[-1]

        def write(name, *items):
            with open(folder + "/new", "w") as file:
                json.dump({"apiVersion": "v1", "kind": "List", "items": items}, file)
            os.rename(folder + "/new", f"{manifests}/{name}.json")

        def load(name):
            # The route in the middle, which is changed as often as the others.
            return start(args.fortio, "load", "-c", "8", "-qps", "200", "-t", f"{args.seconds}s", "-p", "99", "-r", "0.0001", "-H", f"Host: r{routes // 2}.example",
                         "-json", f"{folder}/{name}", f"http://127.0.0.1:{gateway_port}/a7/")

        def finish(name, process):
            process.wait(args.seconds + 30)
            with open(f"{folder}/{name}") as file:
                result = json.load(file)
            codes, times = result["RetCodes"], result["DurationHistogram"]
            failed, p99 = sum(codes.values()) - codes.get("200", 0), times["Percentiles"][0]["Value"] * 1000
            print(f"{name}: {failed} of {sum(codes.values())} failed, {result['SocketCount']} sockets, p99 {p99:.1f} ms, worst {times['Max'] * 1000:.1f} ms", flush=True)
            return p99
        try:
            app_port, gateway_port = free_port(), free_port()
            off = [f"-{it}-port=disabled" for it in ("grpc", "tcp", "udp", "redirect")]
            start(args.fortio, "server", f"-http-port=127.0.0.1:{app_port}", *off)
            write("scene", *scene(gateway_port, app_port))
            for number in range(routes):
                write(f"r{number}", route(number, 0))
            with open(folder + "/ebbtide.yaml", "w") as file:
                json.dump({"discovery": {"files": {"path": manifests}}, "gateway": {}, "admin": {"address": f"127.0.0.1:{free_port()}"}}, file)
            proxy = start(args.ebbtide, "run", "--config", folder + "/ebbtide.yaml")
            time.sleep(5)
            quiet = finish("quiet", load("quiet"))
            process, before, began, changes = load("with changes"), processor_seconds(proxy.pid), time.monotonic(), 0
            while (now := time.monotonic() - began) < args.seconds:
                if changes < now * A_MINUTE / 60:
                    write(f"r{changes % routes}", route(changes % routes, changes // routes + 1))
                    changes += 1
                else:
                    time.sleep(0.002)
            used = processor_seconds(proxy.pid)
            p99 = finish("with changes", process)
            shares = {name: (seconds - before.get(name, 0)) / args.seconds for name, seconds in used.items()}
            print(f"{changes} changes; p99 to quiet: {p99 / quiet:.2f}; of a core: " + ", ".join(f"{name} {share:.1%}" for name, share in sorted(shares.items()) if share > 0.002))
        finally:
            for process in reversed(started):
                process.kill()
                process.wait()


main()
