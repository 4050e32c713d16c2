#!/usr/bin/env bash
# Scenarios of tests/proxy under a sanitizer: the proxy runs in the test's own process, so each of its threads is watched. Both
# `unsafe` are on the way: every listener is registered by hand, and the sockets of a deleted pod are tightened by number.
# Needs a nightly toolchain, for `thread` with rust-src; each builds in a folder of its own under target/sanitize.
#   tests/sanitize.sh [address|thread]…                         both, one after the other
#   SCENARIOS='tcp:: wire::' tests/sanitize.sh address          other scenarios
set -euo pipefail
cd "$(dirname "$0")/.."
toolchain=${TOOLCHAIN:-nightly}
host=$(rustc "+$toolchain" -vV | sed -n 's/^host: //p')

under() { # sanitizer scenarios [option…]
    local name=$1 log
    read -ra scenarios <<<"${SCENARIOS:-$2}"
    shift 2
    log=$(mktemp)
    CARGO_TARGET_DIR=target/sanitize/$name RUSTFLAGS=-Zsanitizer=$name \
        cargo "+$toolchain" test --locked --target "$host" "$@" --test proxy -- "${scenarios[@]}" 2>&1 | tee "$log"
    echo "FIGURE sanitize $name: $(sed -n 's/^test result: //p' "$log" | cut -d';' -f1-2): ${scenarios[*]}"
    rm -f "$log"
}

[ "$#" -gt 0 ] || set -- address thread
for what in "$@"; do
    case $what in
        # Leaks as well.
        address) under address "tcp:: vanish:: drain:: wire::" ;;
        # With a standard library of its own: the one that comes along is not instrumented.
        thread) under thread "tcp:: vanish:: drain::" -Zbuild-std ;;
        *) echo "unknown: $what" >&2 && exit 2 ;;
    esac
done
