# Every script here sources this file. The lab's state is under $LAB, and nothing is written beside the
# scripts.
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
die() { echo "cluster: $*" >&2; exit 1; }

[ "$(uname -s)" = Linux ] || die "needs Linux (network namespaces, cgroups), not $(uname -s): run it in a Linux virtual machine"
[ "$(id -u)" = 0 ] || die "needs root for network namespaces, containerd and the kubelet: run it with sudo -E"

export LAB=${EBBTIDE_LAB:-${XDG_CACHE_HOME:-$HOME/.cache}/ebbtide-lab}
export PATH=$LAB/bin:$PATH:/usr/local/go/bin:/usr/sbin:/sbin
export K8S_VERSION=v1.35.8 FORTIO_VERSION=v1.68.0
export NS=ebbtide-lab NODE=node1 NODEIP=10.10.0.1 NODECIDR=10.10.0.1/24
export PODCIDR=10.244.0.0/24 SVCCIDR=10.96.0.0/16 SVCAPI=10.96.0.1
export PKI=$LAB/pki CFG=$LAB/cfg DATA=$LAB/data RUN=$LAB/run LOGS=$LAB/logs REQUESTS=$LAB/requests

# Prints the pid, seen from here, of pid 1 in the lab's pid namespace. Fails if the cluster is down.
lab_init() { local p; p=$(cat "$RUN/init.pid" 2>/dev/null) && kill -0 "$p" 2>/dev/null && echo "$p"; }
in_net() { nsenter --net="/run/netns/$NS" -- "$@"; }
in_lab() { nsenter -t "$(lab_init)" -m -p -n -- "$@"; }
k() { in_net "$LAB/bin/kubectl" --kubeconfig "$CFG/admin.kubeconfig" "$@"; }
# until_ok SECONDS WHAT COMMAND...: repeats COMMAND until it succeeds. If it never does, names the log to
# read.
until_ok() {
  local end=$((SECONDS + $1)) what=$2
  until "${@:3}" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || die "$what was not ready within $1 s: see $LOGS"
    sleep 0.1
  done
}
