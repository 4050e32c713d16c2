#!/bin/bash
# component.sh stop|start|restart|ensure NAME: acts on one component of the running cluster. `ensure`
# starts the component if it does not run.
# component.sh mode iptables|nftables: sets kube-proxy's mode and removes the rules of the other mode.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
lab_init >/dev/null || die "the cluster is not up: make cluster"
# shellcheck disable=SC2016  # expanded inside
stop() {
  in_lab bash -c 'p=$(cat "$RUN/$0.pid") && kill "$p" 2>/dev/null || exit 0
    for i in {1..50}; do [ -d "/proc/$p" ] || exit 0; sleep 0.1; done; kill -9 "$p"' "$1"
}
start() { setsid nsenter -t "$(lab_init)" -m -p -n -- bash -c "cd /; '$HERE/comp.sh' $1 & exit 0" </dev/null; }
case ${1:-} in
stop | start) "$1" "$2" ;;
restart) stop "$2"; start "$2" ;;
# shellcheck disable=SC2016
ensure) in_lab bash -c 'kill -0 "$(cat "$RUN/$0.pid")"' "$2" 2>/dev/null || start "$2" ;;
mode)
  stop kube-proxy
  in_lab kube-proxy --cleanup >>"$LOGS/kube-proxy.log" 2>&1 || die "kube-proxy --cleanup failed: see $LOGS/kube-proxy.log"
  PROXY_MODE=$2 "$HERE/config.sh"
  start kube-proxy
  until_ok 30 kube-proxy in_net curl -sf -m 1 -o /dev/null http://127.0.0.1:10256/healthz
  ;;
*) die "usage: component.sh stop|start|restart|ensure NAME, component.sh mode iptables|nftables" ;;
esac
