#!/bin/bash
# Starts the cluster, in network namespaces without a route to the outside. Does nothing if it already runs.
# NODES=1 starts one node. PROXY_MODE=iptables|nftables sets kube-proxy's mode.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
for b in hyperkube etcd fortio; do [ -x "$LAB/bin/$b" ] || die "$LAB/bin/$b is missing: run $HERE/build.sh"; done
ready() {
  local node
  for node in $NODE_NAMES; do [ "$(k get node "$node" -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}')" = True ] || return; done
  k get serviceaccount default
}
if node_init node1 >/dev/null; then
  up=("$RUN"/node*/)
  [ "${#up[@]}" = "$NODES" ] || die "a cluster of ${#up[@]} nodes is up: make cluster-down, or NODES=${#up[@]}"
  until_ok 60 "a node" ready
  echo "already up"
  exit 0
fi

"$HERE/down.sh" >/dev/null # removes what a crash or a reboot left
mkdir -p "$RUN" "$LOGS" "$DATA" "$RESULTS"
rm -f "$LOGS"/*.log
"$HERE/pki.sh"
"$HERE/config.sh"
for m in overlay br_netfilter nf_conntrack; do modprobe $m 2>/dev/null || true; done # they may be built in

# The network that the nodes are in. Its switch is their default gateway, the way of the load balancers'
# addresses, and a host outside of the cluster.
ip netns add $NS-lan
lan="ip -n $NS-lan"
$lan link set lo up
$lan link add lan0 type bridge
$lan addr add $GATEWAY/24 dev lan0
$lan addr add $CLIENT/32 dev lan0
$lan link set lan0 up
# Without forwarding, what has no route would wait instead of being refused. By the hash policy, each
# connection to a load balancer gets a node of its own.
in_lan sysctl -qw net.ipv4.ip_forward=1 net.ipv4.fib_multipath_hash_policy=1

# The kubelet overwrites these for the whole machine. down.sh restores them.
sysctl -e vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops kernel.keys.root_maxkeys kernel.keys.root_maxbytes >"$LAB/sysctl.saved"

for node in $NODE_NAMES; do
  mkdir -p "$RUN/$node"
  ip netns add "$NS-$node"
  n="ip -n $NS-$node"
  $n link set lo up
  $lan link add "$node" type veth peer name eth0 netns "$NS-$node"
  $lan link set "$node" master lan0 up
  $n addr add "$(node_ip "$node")/24" dev eth0
  $n link set eth0 up
  $n route add default via $GATEWAY # leads nowhere, but without it the node itself could not reach Service addresses
  $lan route add "$(pod_cidr "$node")" via "$(node_ip "$node")"
  for other in $NODE_NAMES; do [ "$node" = "$other" ] || $n route add "$(pod_cidr "$other")" via "$(node_ip "$other")"; done
  ip netns exec "$NS-$node" sysctl -qw net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=1 net.ipv4.tcp_tw_reuse=1 \
    net.ipv4.ip_local_port_range="10240 65000" net.ipv4.ip_local_reserved_ports="30000-32767,9901,10248-10259"

  if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mkdir -p "/sys/fs/cgroup/$NS/$node"
    for d in "" "/$NS" "/$NS/$node"; do echo "+cpu +cpuset +io +memory +pids" >"/sys/fs/cgroup$d/cgroup.subtree_control"; done
  else
    for c in /sys/fs/cgroup/*/; do [ "$c" = /sys/fs/cgroup/unified/ ] || mkdir -p "$c$NS/$node"; done
    for d in "$NS" "$NS/$node"; do
      for f in cpus mems; do cat /sys/fs/cgroup/cpuset/cpuset.$f >"/sys/fs/cgroup/cpuset/$d/cpuset.$f"; done
    done
  fi

  # Killing pid 1 of the pid namespace ends every shim and pod. The tmpfs hide the pods' namespaces from the
  # host, and the state of runc and the shims from the other nodes. The uts namespace gives the node its
  # name, with which pods on the node's network answer.
  setsid nsenter --net="/run/netns/$NS-$node" -- unshare --mount --propagation private --uts --pid --fork --kill-child=SIGKILL --mount-proc -- \
    bash -c "mount -t tmpfs tmpfs /run/netns; mkdir -p /run/containerd; mount -t tmpfs tmpfs /run/containerd; mount --make-rshared /
      hostname $node; exec '$HERE/init.sh' $node" >>"$LOGS/$node-init.log" 2>&1 </dev/null &
  echo $! >"$RUN/$node/unshare.pid"
  until_ok 10 "the namespace" pgrep -P $!
  pgrep -P $! >"$RUN/$node/init.pid"
done

until_ok 120 kube-apiserver k get --raw /readyz
until_ok 180 "a node" ready
for node in $NODE_NAMES; do
  until_ok 60 kube-proxy in_lan curl -sf -m 1 -o /dev/null "http://$(node_ip "$node"):10256/healthz"
  k label node "$node" "topology.kubernetes.io/zone=$(zone "$node")" >/dev/null
  k patch node "$node" -p "{\"spec\":{\"podCIDR\":\"$(pod_cidr "$node")\",\"podCIDRs\":[\"$(pod_cidr "$node")\"]}}" >/dev/null
done
sed "s/SVCDNS/$SVCDNS/" "$HERE/dns.yaml" | k apply -f - >/dev/null
k -n kube-system rollout status deployment/coredns --timeout=60s >/dev/null
setsid nsenter --net="/run/netns/$NS-lan" -- python3 "$HERE/lb.py" >"$LOGS/lb.log" 2>&1 </dev/null &
echo $! >"$RUN/lb.pid"
echo "cluster is up: . $HERE/env.sh; k get nodes"
