#!/bin/bash
# comp.sh NODE NAME: becomes the component NAME of a node. It must run inside the node's namespaces. Its pid
# is in $RUN/NODE/NAME.pid, its log in $LOGS/NODE-NAME.log.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
node=$1 ip=$(node_ip "$1")
exec >>"$LOGS/$node-$2.log" 2>&1 </dev/null
echo $$ >"$RUN/$node/$2.pid"
etcd=http://127.0.0.1:2379
case $2 in
etcd)
  exec etcd --name lab --data-dir "$DATA/etcd" --listen-client-urls $etcd --advertise-client-urls $etcd --unsafe-no-fsync \
    --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 --initial-cluster lab=http://127.0.0.1:2380
  ;;
kube-apiserver)
  # MutatingAdmissionPolicy (policy.yaml) is off by default before 1.36.
  exec kube-apiserver --etcd-servers=$etcd --bind-address="$ip" --advertise-address="$ip" --secure-port=6443 \
    --service-cluster-ip-range=$SVCCIDR --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
    --feature-gates=MutatingAdmissionPolicy=true --runtime-config=admissionregistration.k8s.io/v1beta1=true \
    --client-ca-file="$PKI/ca.crt" --tls-cert-file="$PKI/apiserver.crt" --tls-private-key-file="$PKI/apiserver.key" \
    --service-account-issuer=https://kubernetes.default.svc --service-account-key-file="$PKI/sa.pub" \
    --service-account-signing-key-file="$PKI/sa.key" --kubelet-certificate-authority="$PKI/ca.crt" \
    --kubelet-client-certificate="$PKI/apiserver-kubelet.crt" --kubelet-client-key="$PKI/apiserver-kubelet.key" \
    --kubelet-preferred-address-types=InternalIP --endpoint-reconciler-type=lease \
    --audit-policy-file="$CFG/audit.yaml" --audit-log-path="$LOGS/audit.log"
  ;;
kube-controller-manager)
  exec kube-controller-manager --kubeconfig="$CFG/kcm.kubeconfig" --bind-address=127.0.0.1 --leader-elect=false \
    --service-account-private-key-file="$PKI/sa.key" --root-ca-file="$PKI/ca.crt" --use-service-account-credentials=false \
    --allocate-node-cidrs=false --service-cluster-ip-range=$SVCCIDR --controllers='*,-nodeipam'
  ;;
kube-scheduler) exec kube-scheduler --kubeconfig="$CFG/scheduler.kubeconfig" --bind-address=127.0.0.1 --leader-elect=false ;;
containerd) exec containerd --config "$CFG/$node/containerd.toml" ;;
kubelet)
  exec kubelet --config="$CFG/$node/kubelet.yaml" --kubeconfig="$CFG/$node/kubelet.kubeconfig" --hostname-override="$node" --node-ip="$ip" \
    --root-dir="$DATA/$node/kubelet" --cert-dir="$DATA/$node/kubelet-pki"
  ;;
kube-proxy) exec kube-proxy --config="$CFG/$node/proxy.yaml" ;;
*) die "$2 is no component: see comp.sh" ;;
esac
