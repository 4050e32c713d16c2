#!/usr/bin/env bash
# Fuzzes each target in turn, from the seeds that the tables of tests/wire/framing write.
#   fuzz/run.sh [TARGET…]        each target for RUNS executions (20000)
#   TIME=600 fuzz/run.sh         each target for TIME seconds
# Needs cargo-fuzz and a nightly toolchain (for the address sanitizer). A crash ends the script. The
# input is in fuzz/artifacts/TARGET, and `cargo +nightly fuzz run TARGET FILE` runs it again. First
# add a test for the input, then fix the fault.
set -euo pipefail
cd "$(dirname "$0")/.."
toolchain=${TOOLCHAIN:-nightly}
targets=("$@")
[ "$#" -gt 0 ] || targets=(request response chunks detection manifest config)

seeds=${CARGO_TARGET_DIR:-target}/fuzz-seeds
[ -n "${SEEDED:-}" ] || cargo test --locked --quiet --test wire seeds >/dev/null
cargo "+$toolchain" fuzz build

for target in "${targets[@]}"; do
    mkdir -p "fuzz/corpus/$target"
    cp -n "$seeds/$target"/* "fuzz/corpus/$target/" 2>/dev/null || true
    case $target in manifest | config) words=yaml ;; *) words=http ;; esac
    bound=(-runs="${RUNS:-20000}")
    [ -z "${TIME:-}" ] || bound=(-max_total_time="$TIME")
    log=$(mktemp)
    if ! cargo "+$toolchain" fuzz run "$target" -- "${bound[@]}" -dict=fuzz/$words.dict -max_len=4096 -timeout=10 \
        -rss_limit_mb=2048 -print_final_stats=1 >"$log" 2>&1; then
        tail -60 "$log"
        echo "fuzz $target: a crash, see the input above"
        exit 1
    fi
    seconds=$(sed -nE 's/^Done [0-9]+ runs in ([0-9]+) second.*/\1/p' "$log")
    execs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    last() { sed -n "s/.* $1: \([0-9]*\) .*/\1/p" "$log" | tail -1; }
    corpus=$(find "fuzz/corpus/$target" -type f | wc -l)
    echo "FIGURE fuzz $target: $execs executions in ${seconds} s, $(last cov) edges, $(last ft) features, corpus $corpus, 0 crashes"
    rm -f "$log"
done
