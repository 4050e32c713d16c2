#!/bin/bash
# Writes the components' configuration files, for each node. PROXY_MODE=iptables|nftables.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
mkdir -p "$REQUESTS"
for node in $NODE_NAMES; do
cfg=$CFG/$node data=$DATA/$node run=$RUN/$node
mkdir -p "$cfg/cni" "$data" "$run"
# restrict_oom_score_adj: without it, no pod starts where CAP_SYS_RESOURCE is missing (in a container
# or a sandbox).
cat >"$cfg/containerd.toml" <<K
version = 2
root = "$data/containerd"
state = "$run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs","io.containerd.snapshotter.v1.zfs","io.containerd.snapshotter.v1.aufs","io.containerd.snapshotter.v1.devmapper","io.containerd.internal.v1.tracing"]
[grpc]
  address = "$run/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "$data/containerd-opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "lab.local/pause:1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  disable_tcp_service = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$cfg/cni"
K
cat >"$cfg/cni/10-lab.conflist" <<K
{"cniVersion":"0.4.0","name":"lab","plugins":[
 {"type":"bridge","bridge":"cni0","isGateway":true,"isDefaultGateway":true,"ipMasq":false,"hairpinMode":true,
  "ipam":{"type":"host-local","dataDir":"$run/cni-ipam","ranges":[[{"subnet":"$(pod_cidr "$node")"}]]}}]}
K
# failCgroupV1: hybrid machines still have cgroup v1. The eviction limits keep a full disk on the user's
# machine from evicting pods.
cat >"$cfg/kubelet.yaml" <<K
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $(node_ip "$node")
healthzBindAddress: 127.0.0.1
tlsCertFile: $PKI/$node-serving.crt
tlsPrivateKeyFile: $PKI/$node-serving.key
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $PKI/ca.crt}}
authorization: {mode: Webhook}
containerRuntimeEndpoint: unix://$run/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /$NS/$node
failCgroupV1: false
failSwapOn: false
resolvConf: ""
clusterDomain: cluster.local
clusterDNS: ["$SVCDNS"]
podLogsDir: $data/pod-logs
maxPods: 200
kubeAPIQPS: 100
kubeAPIBurst: 200
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {memory.available: 50Mi, nodefs.available: "0%", imagefs.available: "0%", nodefs.inodesFree: "0%"}
K
# conntrack: nf_conntrack_max is read-only in a network namespace.
cat >"$cfg/proxy.yaml" <<K
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: ${PROXY_MODE:-iptables}
hostnameOverride: $node
clusterCIDR: $PODNET.0.0/16
detectLocalMode: ClusterCIDR
clientConnection: {kubeconfig: $CFG/proxy.kubeconfig}
conntrack: {maxPerCore: 0, min: 0}
healthzBindAddress: 0.0.0.0:10256
metricsBindAddress: 127.0.0.1:10249
K
done
# The audit log records when the API server was asked to delete a pod, to the microsecond.
cat >"$CFG/audit.yaml" <<K
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, verbs: [delete, deletecollection], resources: [{group: "", resources: [pods]}]}
- {level: Metadata, verbs: [create], resources: [{group: "", resources: [pods/eviction]}]}
- {level: None}
K
