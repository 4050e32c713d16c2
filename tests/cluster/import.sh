#!/bin/bash
# import.sh NODE FILE.tar...: imports images in `docker load` format into the node's containerd.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
log=$LOGS/$1-import.log
for file in "${@:2}"; do
  ctr -a "$RUN/$1/containerd.sock" -n k8s.io images import "$file" >>"$log" 2>&1 || die "cannot import $file: see $log"
done
