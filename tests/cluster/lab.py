"""The cluster as the experiments use it: objects, load, and the records of requests, connections and deletions."""
import atexit
import collections
import datetime
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
REPO = os.path.dirname(os.path.dirname(HERE))
LAB = os.environ.get("EBBTIDE_LAB") or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "ebbtide-lab")
NETNS = "/run/netns/ebbtide-lab-node1"
NODE, NODE_IP, NAMESPACE = "node1", "10.10.0.1", "e2e"
IMAGE = os.environ.get("EBBTIDE_IMAGE", os.path.join(REPO, "target/ebbtide-image.tar"))
ADMIN_PORT = 9901
LATE = 3  # seconds after a rollout's end: a later failure comes from a dead NAT entry, not from the rollout

os.environ["PATH"] = f"{LAB}/bin:{os.environ['PATH']}:/usr/sbin:/sbin"
os.environ["KUBECONFIG"] = LAB + "/cfg/admin.kubeconfig"


class LabError(Exception):
    """A wait timed out or a command failed. This ends the experiment, not the run."""


def enter_network():
    """Restarts this program in the network of node1, so that all of its traffic is there."""
    if os.geteuid() != 0:
        sys.exit("e2e: needs root: run it with sudo -E make e2e")
    if not os.path.exists(NETNS):
        sys.exit("e2e: the cluster is not up: make cluster")
    if os.stat("/proc/self/ns/net").st_ino != os.stat(NETNS).st_ino:
        os.execvp("nsenter", ["nsenter", "--net=" + NETNS, "--", sys.executable] + sys.argv)


def say(text):
    print(f"{datetime.datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


# Processes. Each one ends with the run.

_started = []


def start(command, **options):
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, text=True, **options)
    _started.append(process)
    return process


@atexit.register
def end_all():
    while _started:
        process = _started.pop()
        if process.poll() is None:
            process.kill()
            process.wait()


def run(*command, stdin=None, timeout=60):
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise LabError(f"`{' '.join(command)}` took longer than {timeout} s") from None
    if done.returncode:
        raise LabError(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout


def wait(what, seconds, condition):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not within {seconds} s")
        time.sleep(0.1)
    return value


# Objects

def kubectl(*args, stdin=None, timeout=60):
    return run("kubectl", "-n", NAMESPACE, *args, stdin=stdin, timeout=timeout)


def kubectl_ebbtide(*args, timeout=60):
    return run("kubectl", "-n", "ebbtide-system", *args, timeout=timeout)


def get(*args):
    return json.loads(kubectl("get", *args, "-o", "json"))


def listed(*objects):
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})


def apply(*objects):
    kubectl("apply", "-f", "-", stdin=listed(*objects))


def workload(name, replicas, image, kind="Deployment", labels=None, env=None, probe=False, pre_stop=0, strategy=None, memory=None, node=None):
    labels = {"app": name, **(labels or {})}
    container = {
        "name": "main", "image": "lab.local/" + image,
        "env": [{"name": k, "value": v} for k, v in {"LOG_DIR": "/requests", **(env or {})}.items()],
        "volumeMounts": [{"name": "requests", "mountPath": "/requests"}],
    }
    if probe:
        container["readinessProbe"] = {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1}
    if pre_stop:
        container["lifecycle"] = {"preStop": {"sleep": {"seconds": pre_stop}}}
    if memory:
        container["resources"] = {"limits": {"memory": memory}}
    spec = {
        "replicas": replicas, "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {
            "containers": [container], "volumes": [{"name": "requests", "hostPath": {"path": LAB + "/requests"}}]}},
    }
    if node:
        spec["template"]["spec"]["nodeName"] = node
    if kind == "StatefulSet":
        spec |= {"serviceName": name, "podManagementPolicy": "Parallel"}
    if strategy:
        spec["strategy"] = strategy
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}


def service(name, port, column, selector=None, external_ips=()):
    labels = {"service.kubernetes.io/service-proxy-name": "ebbtide"} if column == "ebbtide" else {}
    external = {"externalIPs": list(external_ips)} if external_ips else {}
    return {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
        "spec": {**external, "type": "NodePort", "selector": selector or {"app": name}, "ports": [{"port": 80, "targetPort": 8080, "nodePort": port}]},
    }


def pods(selector):
    return get("pods", "-l", selector)["items"]


def is_ready(pod):
    conditions = {c["type"]: c["status"] for c in pod["status"].get("conditions", [])}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


def rolled(target, seconds=90):
    """Waits until the rollout is over and the last old pod is gone. `rollout status` does not wait for the latter."""
    kubectl("rollout", "status", target, f"--timeout={seconds}s", timeout=seconds + 5)
    name = target.split("/")[1]
    wait(f"the old pods of {target} gone", seconds,
         lambda: len(pods(f"app={name}")) == get(target)["spec"]["replicas"])


def set_image(target, image):
    kubectl("set", "image", target, "main=lab.local/" + image)


def drain_node(app):
    """The budget lets one pod go at a time. The node is uncordoned immediately, because it may be the only one."""
    apply({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": app, "namespace": NAMESPACE},
           "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": app}}}})
    wait("the disruption budget", 20, lambda: get("pdb", app).get("status", {}).get("disruptionsAllowed"))
    drain = start(["kubectl", "drain", NODE, f"--pod-selector=app={app}", "--timeout=90s"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait("the node cordoned", 20, lambda: get("node", NODE)["spec"].get("unschedulable"))
    kubectl("uncordon", NODE)
    output, _ = drain.communicate(timeout=100)
    if drain.returncode:
        raise LabError(f"kubectl drain failed: {output[-500:]}")
    rolled("deployment/" + app, 180)
    kubectl("delete", "pdb", app)


def clean():
    kubectl("delete", "deployments,statefulsets,services,poddisruptionbudgets", "--all", "--timeout=60s", timeout=70)
    wait("all pods gone", 60, lambda: not get("pods")["items"])
    open(LAB + "/requests/requests.log", "w").close()


def restore():
    """Removes what a broken experiment may have left: a stopped component, a cordoned node, objects."""
    component("ensure", NODE, "kube-apiserver")
    for node in nodes():
        component("ensure", node, "kubelet")
    wait("the API server", 60, lambda: subprocess.run(["kubectl", "get", "--raw", "/readyz"], capture_output=True).returncode == 0)
    kubectl("uncordon", *nodes())
    clean()


# The three paths

def component(*args, timeout=60):
    run(HERE + "/component.sh", *args, timeout=timeout)


def enter_column(column):
    component("mode", "iptables" if column == "ebbtide" else column)
    if not kubectl("get", "namespace", NAMESPACE, "--ignore-not-found"):
        kubectl("create", "namespace", NAMESPACE)
    clean()
    if column == "ebbtide":
        uninstall_ebbtide()
        install_ebbtide()


def install_ebbtide(kustomization="deploy/kustomize"):
    for node in nodes():
        run(HERE + "/import.sh", node, IMAGE)
    # claim-all wants the address of the API server.
    manifests = run("kubectl", "kustomize", f"{REPO}/{kustomization}").replace("192.0.2.10", NODE_IP)
    run("kubectl", "apply", "-f", "-", stdin=manifests)
    try:
        kubectl_ebbtide("rollout", "status", "daemonset/ebbtide", "--timeout=60s", timeout=70)
    except LabError as error:
        raise LabError(f"{error}; {why_not_ready()}") from None


def restart_proxy(column):
    """Replaces Ebbtide on every node, or restarts the kube-proxy of the first one."""
    if column == "ebbtide":
        kubectl_ebbtide("rollout", "restart", "daemonset/ebbtide")
        kubectl_ebbtide("rollout", "status", "daemonset/ebbtide", "--timeout=180s", timeout=190)
    else:
        component("restart", NODE, "kube-proxy")


def why_not_ready():
    states = kubectl_ebbtide("get", "pods", "-o", "jsonpath={.items[*].status.containerStatuses[*].state}")
    try:
        return states + " " + kubectl_ebbtide("logs", "daemonset/ebbtide", "--tail=5")
    except LabError as error:
        return f"{states} {error}"


def leave_column(column):
    if column == "ebbtide":
        uninstall_ebbtide()
    kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", timeout=90)


def uninstall_ebbtide(kustomization="deploy/kustomize"):
    run("kubectl", "delete", "-k", f"{REPO}/{kustomization}", "--ignore-not-found", "--timeout=80s", timeout=90)


def ebbtide_quantile(metric, q):
    """The upper bound, in seconds, of the bucket that holds the quantile over all services. None without observations."""
    buckets = collections.Counter()
    for bound, count in re.findall(rf'^{metric}_bucket{{.*?le="([^"]+)".*?}} (\S+)', fetch(ADMIN_PORT, "/metrics", "127.0.0.1"), re.M):
        buckets[float(bound)] += float(count)
    total = buckets.get(float("inf"), 0)
    return next((b for b in sorted(buckets) if total and buckets[b] >= q * total), None)


# Requests and load

def fetch(port, path="/", host=NODE_IP):
    """Sends one request on a connection of its own and returns the body."""
    connection = http.client.HTTPConnection(host, port, timeout=15)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read().decode()
        if response.status != 200:
            raise http.client.HTTPException(f"status {response.status}")
        return body
    finally:
        connection.close()


def answers(port, path="/", host=NODE_IP):
    try:
        fetch(port, path, host)
        return True
    except (OSError, http.client.HTTPException):
        return False


def inside(pod_ip):
    """The command that runs another one in the network of the pod with this address."""
    def found():
        seen = {os.stat("/proc/self/ns/net").st_ino}
        for process in filter(str.isdigit, os.listdir("/proc")):
            path = f"/proc/{process}/ns/net"
            try:
                if os.stat(path).st_ino in seen:
                    continue
                seen.add(os.stat(path).st_ino)
                if f" {pod_ip}/" in run("nsenter", "--net=" + path, "ip", "-o", "-4", "addr"):
                    return ["nsenter", "--net=" + path, "--"]
            except (OSError, LabError):
                continue  # it has ended
        return None
    return wait(f"the network of the pod {pod_ip}", 20, found)


def settled(name, port, path="/"):
    """Waits until the Service lists all ready pods and has answered for 1.5 s without a failure.

    `rollout status` returns before both."""
    selector = ",".join(f"{k}={v}" for k, v in get("service", name)["spec"]["selector"].items())

    def complete():
        slices = get("endpointslices", "-l", "kubernetes.io/service-name=" + name)["items"]
        listed = {e["addresses"][0] for s in slices for e in s["endpoints"] or [] if e["conditions"].get("ready")}
        return listed and listed == {p["status"]["podIP"] for p in pods(selector) if is_ready(p)}
    wait(f"the EndpointSlices of {name} up to date", 60, complete)
    since = [time.monotonic()]

    def steady():
        if not answers(port, path):
            since[0] = time.monotonic()
        return time.monotonic() - since[0] > 1.5
    wait(f"answers on {NODE_IP}:{port}", 40, steady)


def sample(port, count):
    """Counts the response bodies and the failures of `count` requests."""
    bodies, failed = collections.Counter(), 0
    for _ in range(count):
        try:
            bodies[fetch(port).strip()] += 1
        except (OSError, http.client.HTTPException):
            failed += 1
    return bodies, failed


def curl(url, *options):
    return start(["curl", "-sS", "-m", "60", "-o", "/dev/null", "-w", "%{http_code}", *options, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def verdict(process):
    """The status, or curl's message if there is none."""
    code, error = process.communicate(timeout=70)
    return code if process.returncode == 0 else error.strip().removeprefix("curl: ")


def counted(values):
    return ", ".join(f"{n} × {value}" for value, n in collections.Counter(values).most_common())


class Fortio:
    """A run of `fortio load`, which has begun and goes on. `within` is the start of the command, see `inside`."""

    def __init__(self, name, *arguments, within=()):
        stem = f"{LAB}/results/{name}-{time.time_ns()}"
        self.result, self.log = stem + ".json", stem + ".log"
        with open(self.log, "w") as log:
            self.process = start([*within, "fortio", "load", "-allow-initial-errors", "-json", self.result, *arguments], stdout=log, stderr=log)
        time.sleep(1)
        if self.process.poll() is not None:
            raise LabError(f"fortio did not start: see {self.log}")

    def end(self, seconds=0):
        """What it has measured: when it ends after `seconds`, or now."""
        if not seconds:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(seconds + 40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise LabError(f"fortio did not end: see {self.log}") from None
        if self.process.returncode or not os.path.exists(self.result):
            raise LabError(f"fortio failed: see {self.log}")
        with open(self.result) as file:
            return json.load(file)


class Load(Fortio):
    """fortio on one port of the node, or of another host, for `seconds` or until `stop`."""

    def __init__(self, port, seconds=0, connections=8, qps=500, keepalive=True, host=NODE_IP, within=(), scheme="http", path="/", options=()):
        if not keepalive:
            # Removes the entries of an earlier run's dead pods, for this port only. A full flush would also cut the pods'
            # connections to the API server, with their watches. The command fails if there are no entries.
            subprocess.run(["conntrack", "-D", "-p", "tcp", "--orig-port-dst", str(port)], capture_output=True)
        self.seconds = seconds
        # With fortio's default timeout of 3 s, a held request would count as failed.
        super().__init__(f"fortio-{host}-{port}", "-p", "50,99", "-c", str(connections), "-qps", str(qps), "-t", f"{seconds}s",
                         "-timeout", "15s", f"-keepalive={'true' if keepalive else 'false'}", *options, f"{scheme}://{host}:{port}{path}", within=within)

    def stop(self, rollout_end=None):
        result = self.end(self.seconds)
        codes = result["RetCodes"]
        failed = sum(codes.values()) - codes.get("200", 0)
        late = self._late(rollout_end) if rollout_end else 0
        return {"requests": sum(codes.values()), "failed": failed - late, "late": late, "codes": codes,
                "sockets": result["SocketCount"], "worst_ms": round(result["DurationHistogram"]["Max"] * 1000, 1)}

    def _late(self, rollout_end):
        late = 0
        with open(self.log) as log:
            for line in log:
                if line.startswith("{") and '"level":"err"' in line:
                    entry = json.loads(line)
                    began = entry["ts"] - (15 if "timeout" in entry.get("err", "") else 0)
                    late += began > rollout_end + LATE
        return late


# Records

Request = collections.namedtuple("Request", "at pod version method id")


def requests():
    """The sample application's log: every request that a pod received, also of removed pods."""
    with open(LAB + "/requests/requests.log") as file:
        return [Request(int(at) / 1e9, *rest) for at, *rest in map(str.split, file)]


def deletions():
    """Pod → when the API server was first asked to delete or evict it."""
    first = {}
    with open(LAB + "/logs/audit.log") as file:
        for line in file:
            event = json.loads(line)
            ref = event.get("objectRef", {})
            if ref.get("namespace") == NAMESPACE and "name" in ref and event.get("responseStatus", {}).get("code", 500) < 300:
                at = datetime.datetime.fromisoformat(event["requestReceivedTimestamp"].replace("Z", "+00:00")).timestamp()
                first[ref["name"]] = min(at, first.get(ref["name"], at))
    return first


class Connections:
    """Every new connection that the kernel tracks, or those to one port, as (time, final destination address)."""

    def __init__(self, port=None):
        self.path = f"{LAB}/results/conntrack-{time.time_ns()}.log"
        with open(self.path, "w") as out:
            only = ["--orig-port-dst", str(port)] if port else []
            self.process = start(["conntrack", "-E", "-e", "NEW", "-o", "timestamp", "-p", "tcp", *only, "--buffer-size", "8388608"], stdout=out, stderr=out)

    def stop(self):
        time.sleep(0.5)
        self.process.send_signal(signal.SIGINT)
        self.process.wait(10)
        with open(self.path) as file:
            # The second src is the source of the reply: the pod, whichever address the client used.
            found = [re.match(r"\[(\S+)\].*\[NEW\] tcp .*?src=\S+ .*?src=(\S+)", line) for line in file]
        return [(float(m[1]), m[2]) for m in found if m]


def nodes():
    return sorted(name for name in os.listdir(LAB + "/run") if name.startswith("node"))


def container(pod):
    return pod["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")


def signal_container(pod, name):
    run("ctr", "-a", f"{LAB}/run/{pod['spec']['nodeName']}/containerd.sock", "-n", "k8s.io", "task", "kill", "-s", name, container(pod))


def image_version(path=IMAGE):
    with tarfile.open(path) as image:
        read = lambda name: json.load(image.extractfile(name))
        return read(read("manifest.json")[0]["Config"])["config"].get("Labels", {}).get("org.opencontainers.image.version", "unknown")


def versions():
    def line(*command):
        return run(*command).strip().splitlines()[0]
    return {
        "Ebbtide": image_version(),
        "Kubernetes": json.loads(run("kubectl", "version", "-o", "json"))["serverVersion"]["gitVersion"],
        "etcd": line("etcd", "--version").removeprefix("etcd Version: "),
        "containerd": line("containerd", "--version").split()[2],
        "kernel": os.uname().release,
        "fortio": line("fortio", "version"),
        "nginx": re.search(r"nginx/\S+", subprocess.run([LAB + "/nginx/usr/sbin/nginx", "-v"], capture_output=True, text=True).stderr)[0],
        "machine": f"{os.cpu_count()} cores, {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
    }
