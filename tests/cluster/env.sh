# Every script here sources this file. The lab's state is under $LAB, and nothing is written beside the
# scripts.
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
die() { echo "cluster: $*" >&2; exit 1; }

[ "$(uname -s)" = Linux ] || die "needs Linux (network namespaces, cgroups), not $(uname -s): run it in a Linux virtual machine"
[ "$(id -u)" = 0 ] || die "needs root for network namespaces, containerd and the kubelet: run it with sudo -E"

export LAB=${EBBTIDE_LAB:-${XDG_CACHE_HOME:-$HOME/.cache}/ebbtide-lab}
export PATH=$LAB/bin:$PATH:/usr/local/go/bin:/usr/sbin:/sbin
export K8S_VERSION=v1.35.8 FORTIO_VERSION=v1.68.0 AGNHOST=2.59 BUSYBOX=1.37.0-1
# NODES says how many nodes the cluster has. The API server runs on node1.
export NODES=${NODES:-3}
NODE_NAMES=$(seq -s ' ' -f 'node%.0f' "$NODES") || die "NODES=$NODES: not a number of nodes"
export NODE_NAMES
export NS=ebbtide-lab NODENET=10.10.0 PODNET=10.244 SVCCIDR=10.96.0.0/16 SVCAPI=10.96.0.1 SVCDNS=10.96.0.10
export API=https://$NODENET.1:6443 GATEWAY=$NODENET.254
# The addresses of load balancers, and the address that calls them from outside of the cluster. It is not
# in the nodes' /16: a Kubernetes test would take it for a source that was lost.
export LBNET=10.30.1 CLIENT=10.30.0.1
export PKI=$LAB/pki CFG=$LAB/cfg DATA=$LAB/data RUN=$LAB/run LOGS=$LAB/logs REQUESTS=$LAB/requests RESULTS=$LAB/results

node_ip() { echo "$NODENET.${1#node}"; }
pod_cidr() { echo "$PODNET.${1#node}.0/24"; }
zone() { echo "zone-$(((${1#node} - 1) % 3 + 1))"; }
# node_init NODE: prints the pid, seen from here, of pid 1 in the node's pid namespace. Fails if the node is
# down.
node_init() { local p; p=$(cat "$RUN/$1/init.pid" 2>/dev/null) && kill -0 "$p" 2>/dev/null && echo "$p"; }
# in_lan COMMAND...: runs it outside of the cluster, on the network that the nodes are in.
in_lan() { nsenter --net="/run/netns/$NS-lan" -- "$@"; }
# in_node NODE COMMAND...: runs it on that node.
in_node() { nsenter -t "$(node_init "$1")" -m -u -p -n -- "${@:2}"; }
k() { in_lan "$LAB/bin/kubectl" --kubeconfig "$CFG/admin.kubeconfig" "$@"; }
# until_ok SECONDS WHAT COMMAND...: repeats COMMAND until it succeeds. If it never does, names the log to
# read.
until_ok() {
  local end=$((SECONDS + $1)) what=$2
  until "${@:3}" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || die "$what was not ready within $1 s: see $LOGS"
    sleep 0.1
  done
}
