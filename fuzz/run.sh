#!/usr/bin/env bash
# Runs the fuzz targets, one after the other. fuzz/README.md says what each proves.
#   fuzz/run.sh --seeds [TARGET…]    each seed once: stable toolchain, and a C++ compiler for libFuzzer
#   fuzz/run.sh [TARGET…]            new inputs, RUNS (20000) a target: nightly toolchain, cargo-fuzz
#   TIME=600 fuzz/run.sh             new inputs for 600 seconds a target
#   TOOLCHAIN=nightly-2026-01-01 fuzz/run.sh    another toolchain than the newest nightly
# The first input that fails ends the script. Its file is in fuzz/artifacts/TARGET.
# A target that ran nothing, or fewer seeds than there are, fails too.
set -euo pipefail
cd "$(dirname "$0")/.."
toolchain=${TOOLCHAIN:-nightly}
build=${CARGO_TARGET_DIR:-target}
only_seeds=
[ "${1:-}" != --seeds ] || { only_seeds=yes && shift; }
targets=("$@")
[ "$#" -gt 0 ] || targets=(request response http2 chunks detection manifest config)

# A test of the tables in tests/wire/framing writes the seeds.
[ -n "${SEEDED:-}" ] || cargo test --locked --quiet --test wire seeds >/dev/null
log=$(mktemp)
trap 'rm -f "$log"' EXIT
options=(-timeout=10 -rss_limit_mb=2048)

if [ -n "$only_seeds" ]; then
    # In the crate's own target folder: most dependencies are there already, built for the tests.
    cargo build --locked --quiet --manifest-path fuzz/Cargo.toml --target-dir "$build"
    for target in "${targets[@]}"; do
        mkdir -p "fuzz/artifacts/$target"
        seeds=("$build/fuzz-seeds/$target"/*)
        [ -e "${seeds[0]}" ] || { echo "seeds of $target: $build/fuzz-seeds/$target has none" && exit 1; }
        # libFuzzer runs files one after the other, so the log's last seed is the one that failed.
        if ! "$build/debug/$target" "${options[@]}" -artifact_prefix="fuzz/artifacts/$target/" \
            "${seeds[@]}" >"$log" 2>&1; then
            tail -60 "$log"
            echo "seeds of $target: this one fails: $(sed -n 's/^Running: //p' "$log" | tail -1)"
            exit 1
        fi
        ran=$(grep -c '^Executed ' "$log" || true)
        if [ "$ran" = 0 ] || [ "$ran" != "${#seeds[@]}" ]; then
            tail -60 "$log"
            echo "seeds of $target: $ran of ${#seeds[@]} ran"
            exit 1
        fi
        echo "seeds of $target: $ran run, none fails"
    done
    exit
fi

cargo "+$toolchain" fuzz build
for target in "${targets[@]}"; do
    mkdir -p "fuzz/corpus/$target"
    cp -n "$build/fuzz-seeds/$target"/* "fuzz/corpus/$target/" 2>/dev/null || true
    case $target in manifest | config) words=yaml ;; *) words=http ;; esac
    bound=(-runs="${RUNS:-20000}")
    [ -z "${TIME:-}" ] || bound=(-max_total_time="$TIME")
    if ! cargo "+$toolchain" fuzz run "$target" -- "${options[@]}" "${bound[@]}" -dict=fuzz/$words.dict \
        -max_len=4096 -print_final_stats=1 >"$log" 2>&1; then
        tail -60 "$log"
        echo "fuzz $target: an input to look at, see above"
        exit 1
    fi
    seconds=$(sed -nE 's/^Done [0-9]+ runs in ([0-9]+) second.*/\1/p' "$log")
    execs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    if [ "${execs:-0}" = 0 ]; then
        tail -60 "$log"
        echo "fuzz $target: no input ran"
        exit 1
    fi
    last() { sed -n "s/.* $1: \([0-9]*\) .*/\1/p" "$log" | tail -1; }
    corpus=$(find "fuzz/corpus/$target" -type f | wc -l)
    echo "FIGURE fuzz $target: $execs executions in ${seconds} s, $(last cov) edges, $(last ft) features, corpus $corpus, 0 crashes"
done
