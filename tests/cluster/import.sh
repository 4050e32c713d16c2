#!/bin/bash
# import.sh FILE.tar...: imports images in `docker load` format into the cluster's containerd.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
for file; do
  ctr -a "$RUN/containerd.sock" -n k8s.io images import "$file" >>"$LOGS/import.log" 2>&1 || die "cannot import $file: see $LOGS/import.log"
done
