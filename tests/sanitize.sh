#!/usr/bin/env bash
# Runs scenarios of tests/proxy under a sanitizer. The proxy runs in the test's own process, so the
# sanitizer sees all of its threads. The scenarios reach both `unsafe` blocks: every listener is
# registered by hand, and the timeouts of a deleted pod's sockets are shortened by descriptor
# number.
# It needs a nightly toolchain, and rust-src for `thread`. Each sanitizer builds in its own folder
# under target/sanitize.
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
        # Finds leaks, too.
        address) under address "tcp:: vanish:: drain:: wire::" ;;
        # Builds its own standard library, because the shipped one is not instrumented.
        thread) under thread "tcp:: vanish:: drain::" -Zbuild-std ;;
        *) echo "unknown sanitizer: $what, expected address or thread" >&2 && exit 2 ;;
    esac
done
