#!/usr/bin/env bash
# The program under what sees more than a test does. Needs a nightly toolchain with rust-src (thread) or miri (miri); each
# builds in a folder of its own under target/sanitize.
#   tests/sanitize.sh [address|thread|descriptors|miri]…        all of them, one after the other
#   SCENARIOS='tcp:: wire::' tests/sanitize.sh address          other scenarios of tests/proxy
set -euo pipefail
cd "$(dirname "$0")/.."
toolchain=${TOOLCHAIN:-nightly}
host=$(rustc "+$toolchain" -vV | sed -n 's/^host: //p')
read -ra scenarios <<<"${SCENARIOS:-tcp:: vanish:: drain:: wire::}"

# The proxy in the test's own process, so that its every thread is watched. Both `unsafe` are on the way: each listener is
# registered by hand, and the sockets of a deleted pod are tightened by number.
under() {
    local name=$1 flags=$2
    shift 2
    CARGO_TARGET_DIR=target/sanitize/$name RUSTFLAGS=$flags \
        cargo "+$toolchain" test --locked --target "$host" "$@" --test proxy -- "${scenarios[@]}"
}

[ "$#" -gt 0 ] || set -- address thread descriptors miri
for what in "$@"; do
    case $what in
        address) under address -Zsanitizer=address ;;
        # With a standard library of its own: the one that comes along is not instrumented, and does not check either that
        # a descriptor is open when its owner closes it.
        thread) under thread -Zsanitizer=thread -Zbuild-std ;;
        # What no sanitizer sees: an option set on a number that is closed, or somebody else's by now.
        descriptors)
            log=$(mktemp)
            cargo test --locked --test proxy --no-run
            strace -f -qq -e trace=setsockopt -o "$log" \
                cargo test --locked --test proxy -- a_deleted_pod vanish::
            tightened=$(grep -c 'TCP_USER_TIMEOUT, \[2000\]' "$log" || true)
            astray=$(grep -cE 'setsockopt.*(EBADF|ENOTSOCK)' "$log" || true)
            echo "FIGURE sanitize descriptors: $tightened sockets tightened by number, $astray of them not open"
            rm -f "$log"
            [ "$tightened" -gt 0 ] && [ "$astray" = 0 ]
            ;;
        # What opens nothing: the lease and the parsers, with httparse's vector code among it.
        miri)
            CARGO_TARGET_DIR=target/sanitize/miri MIRIFLAGS=-Zmiri-disable-isolation PROPTEST_CASES=4 \
                cargo "+$toolchain" miri test --locked --lib -- lease:: http:: endpoint:: hold::
            ;;
        *) echo "unknown: $what" >&2 && exit 2 ;;
    esac
done
