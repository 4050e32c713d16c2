#!/bin/bash
# pid 1 of the lab's pid namespace: starts all components, and then reaps processes for ever.
set -uo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
trap 'exit 0' TERM
cd /
"$HERE/comp.sh" containerd &
"$HERE/comp.sh" etcd &
until_ok 60 etcd bash -c '</dev/tcp/127.0.0.1/2379'
"$HERE/comp.sh" kube-apiserver &
until_ok 60 containerd test -S "$RUN/containerd.sock"
"$HERE/import.sh" "$LAB"/images/*.tar
until_ok 60 kube-apiserver curl -sf --cacert "$PKI/ca.crt" --cert "$PKI/admin.crt" --key "$PKI/admin.key" https://$NODEIP:6443/readyz
for n in kube-controller-manager kube-scheduler kubelet kube-proxy; do "$HERE/comp.sh" $n & done
while :; do sleep 3600 & wait; done
