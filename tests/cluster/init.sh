#!/bin/bash
# init.sh NODE: pid 1 of the node's pid namespace. It starts all components, and then reaps processes for
# ever.
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
trap 'exit 0' TERM
cd /
node=$1
"$HERE/comp.sh" "$node" containerd &
if [ "$node" = node1 ]; then
  "$HERE/comp.sh" node1 etcd &
  until_ok 60 etcd bash -c '</dev/tcp/127.0.0.1/2379'
  for n in kube-apiserver kube-controller-manager kube-scheduler; do "$HERE/comp.sh" node1 $n & done
fi
until_ok 60 containerd test -S "$RUN/$node/containerd.sock"
"$HERE/import.sh" "$node" "$LAB"/images/*.tar
until_ok 120 kube-apiserver curl -sf --cacert "$PKI/ca.crt" --cert "$PKI/admin.crt" --key "$PKI/admin.key" $API/readyz
for n in kubelet kube-proxy; do "$HERE/comp.sh" "$node" $n & done
while :; do sleep 3600 & wait; done
