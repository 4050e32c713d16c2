#!/bin/bash
# component.sh stop|start|restart|ensure NODE NAME: acts on one component of a node of the running cluster.
# `ensure` starts the component if it does not run.
# component.sh mode iptables|nftables|none: sets kube-proxy's mode on all nodes and removes the rules of the
# other mode. `none`: kube-proxy runs nowhere.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
node_init node1 >/dev/null || die "the cluster is not up: make cluster"
# shellcheck disable=SC2016  # expanded inside
stop() {
  in_node "$1" bash -c 'p=$(cat "$RUN/$0/$1.pid") && kill "$p" 2>/dev/null || exit 0
    for i in {1..50}; do [ -d "/proc/$p" ] || exit 0; sleep 0.1; done; kill -9 "$p"' "$1" "$2"
}
start() { setsid nsenter -t "$(node_init "$1")" -m -u -p -n -- bash -c "cd /; '$HERE/comp.sh' $1 $2 & exit 0" </dev/null; }
case ${1:-} in
stop | start) "$1" "$2" "$3" ;;
restart) stop "$2" "$3"; start "$2" "$3" ;;
# shellcheck disable=SC2016
ensure) in_node "$2" bash -c 'kill -0 "$(cat "$RUN/$0/$1.pid")"' "$2" "$3" 2>/dev/null || start "$2" "$3" ;;
mode)
  [ "$2" = none ] || PROXY_MODE=$2 "$HERE/config.sh"
  for node in $NODE_NAMES; do
    log=$LOGS/$node-kube-proxy.log
    stop "$node" kube-proxy
    in_node "$node" kube-proxy --cleanup >>"$log" 2>&1 || die "kube-proxy --cleanup failed: see $log"
    [ "$2" != none ] || continue
    start "$node" kube-proxy
    until_ok 30 kube-proxy in_lan curl -sf -m 1 -o /dev/null "http://$(node_ip "$node"):10256/healthz"
  done
  ;;
*) die "usage: component.sh stop|start|restart|ensure NODE NAME, component.sh mode iptables|nftables|none" ;;
esac
