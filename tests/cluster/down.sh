#!/bin/bash
# Removes the cluster: processes, namespaces, cgroups and data. Restores the sysctls. Keeps what was built,
# for the next time.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
gone() { ! kill -0 "$1"; }
if p=$(cat "$RUN/lb.pid" 2>/dev/null) && grep -qs lb.py "/proc/$p/cmdline"; then kill "$p"; fi
for run in "$RUN"/node*/; do # those that are up, whatever NODES says now
  node=$(basename "$run")
  if p=$(node_init "$node"); then
    kill -KILL "$p"
    until_ok 20 "the end of pid $p" gone "$p"
  fi
  if p=$(cat "$run/unshare.pid" 2>/dev/null); then until_ok 10 "the end of pid $p" gone "$p"; fi
done
for n in /run/netns/"$NS"-*; do if [ -e "$n" ]; then ip netns del "$(basename "$n")"; fi; done
for c in /sys/fs/cgroup/ /sys/fs/cgroup/*/; do
  if [ -d "$c$NS" ]; then until_ok 10 "the removal of $c$NS" find "$c$NS" -depth -type d -exec rmdir {} +; fi
done
if [ -s "$LAB/sysctl.saved" ]; then
  sysctl -qp "$LAB/sysctl.saved"
  rm "$LAB/sysctl.saved"
fi
rm -rf "$RUN" "$DATA" "$REQUESTS"
echo "cluster is down"
