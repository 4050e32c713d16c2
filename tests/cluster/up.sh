#!/bin/bash
# Starts the one-node cluster in a network namespace without a route to the outside. Does nothing if it
# already runs. PROXY_MODE=iptables|nftables sets kube-proxy's mode.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
for b in hyperkube etcd fortio; do [ -x "$LAB/bin/$b" ] || die "$LAB/bin/$b is missing: run $HERE/build.sh"; done
ready() { [ "$(k get node $NODE -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}')" = True ] && k get serviceaccount default; }
if lab_init >/dev/null; then
  until_ok 60 "the node" ready
  echo "already up"
  exit 0
fi

"$HERE/down.sh" >/dev/null # removes what a crash or a reboot left
mkdir -p "$RUN" "$LOGS" "$DATA"
rm -f "$LOGS"/*.log
"$HERE/pki.sh"
"$HERE/config.sh"
for m in overlay br_netfilter nf_conntrack; do modprobe $m 2>/dev/null || true; done # they may be built in

ip netns add $NS
n="ip -n $NS"
$n link set lo up
$n link add node0 type bridge
$n addr add $NODECIDR dev node0
$n link set node0 up
$n route add $SVCCIDR dev node0 # without a default route, the node itself could not reach Service addresses
in_net sysctl -qw net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=1 net.ipv4.tcp_tw_reuse=1 \
  net.ipv4.ip_local_port_range="10240 65000" net.ipv4.ip_local_reserved_ports="30000-32767,9901,10248-10259"

# The kubelet overwrites these for the whole machine. down.sh restores them.
sysctl -e vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops kernel.keys.root_maxkeys kernel.keys.root_maxbytes >"$LAB/sysctl.saved"

if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  mkdir -p /sys/fs/cgroup/$NS
  for d in /sys/fs/cgroup /sys/fs/cgroup/$NS; do echo "+cpu +cpuset +io +memory +pids" >$d/cgroup.subtree_control; done
else
  for c in /sys/fs/cgroup/*/; do [ "$c" = /sys/fs/cgroup/unified/ ] || mkdir -p "$c$NS"; done
  for f in cpus mems; do cat /sys/fs/cgroup/cpuset/cpuset.$f >/sys/fs/cgroup/cpuset/$NS/cpuset.$f; done
fi

# Killing pid 1 of the pid namespace ends every shim and pod. The tmpfs hides the pods' namespaces from
# the host.
setsid nsenter --net=/run/netns/$NS -- unshare --mount --propagation private --pid --fork --kill-child=SIGKILL --mount-proc -- \
  bash -c "mount -t tmpfs tmpfs /run/netns; mount --make-rshared /; exec '$HERE/init.sh'" >>"$LOGS/init.log" 2>&1 </dev/null &
echo $! >"$RUN/unshare.pid"
until_ok 10 "the namespace" pgrep -P $!
pgrep -P $! >"$RUN/init.pid"

until_ok 120 kube-apiserver k get --raw /readyz
until_ok 120 "the node" ready
until_ok 60 kube-proxy in_net curl -sf -m 1 -o /dev/null http://127.0.0.1:10256/healthz
echo "cluster is up: . $HERE/env.sh; k get nodes"
