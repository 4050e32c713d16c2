#!/bin/bash
# Makes the CA, the certificates, the service-account key and a kubeconfig for each component, once.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
[ "$(cat "$PKI/done" 2>/dev/null)" = "$NODES" ] && exit 0
mkdir -p "$PKI" "$CFG"
cd "$PKI"
log=$LOGS/pki.log
key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key" 2>>"$log"; }
cert() { # NAME SUBJECT EXTENSION...
  key "$1"
  openssl req -new -key "$1.key" -subj "$2" -out "$1.csr" 2>>"$log"
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 -out "$1.crt" \
    -extfile <(printf '%s\n' basicConstraints=CA:FALSE keyUsage=digitalSignature "${@:3}") 2>>"$log"
  rm "$1.csr"
}
kubeconfig() { # CERTIFICATE FILE
  mkdir -p "$(dirname "$2")"
  cat >"$2" <<K
apiVersion: v1
kind: Config
clusters: [{name: lab, cluster: {server: "$API", certificate-authority: $PKI/ca.crt}}]
users: [{name: $1, user: {client-certificate: $PKI/$1.crt, client-key: $PKI/$1.key}}]
contexts: [{name: lab, context: {cluster: lab, user: $1}}]
current-context: lab
K
}

key ca
openssl req -x509 -new -key ca.key -days 3650 -subj /CN=lab-ca -out ca.crt \
  -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign,digitalSignature 2>>"$log"
openssl genrsa -out sa.key 2048 2>>"$log"
openssl rsa -in sa.key -pubout -out sa.pub 2>>"$log"
cert apiserver /CN=kube-apiserver extendedKeyUsage=serverAuth \
  "subjectAltName=IP:127.0.0.1,IP:$(node_ip node1),IP:$SVCAPI,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc"
client=extendedKeyUsage=clientAuth
cert admin /O=system:masters/CN=admin $client
cert apiserver-kubelet /O=system:masters/CN=kube-apiserver-kubelet-client $client
# In system:masters, because its controllers run without credentials of their own. That way the cluster
# starts 4 s sooner.
cert kcm /O=system:masters/CN=system:kube-controller-manager $client
cert scheduler /CN=system:kube-scheduler $client
cert proxy /CN=system:kube-proxy $client
for n in admin kcm scheduler proxy; do kubeconfig $n "$CFG/$n.kubeconfig"; done
for node in $NODE_NAMES; do
  cert "$node-serving" "/CN=$node" extendedKeyUsage=serverAuth "subjectAltName=IP:$(node_ip "$node"),DNS:$node"
  cert "$node" "/O=system:nodes/CN=system:node:$node" $client
  kubeconfig "$node" "$CFG/$node/kubelet.kubeconfig"
done
echo "$NODES" >done
