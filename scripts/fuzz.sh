#!/usr/bin/env bash
# Fuzzes the places where bytes of a peer are taken apart, each for some seconds.
#
# usage: scripts/fuzz.sh SECONDS [TARGET...]
#
# Targets are those of fuzz/fuzz_targets; all of them by default, two at a time. What they find is
# left in fuzz/artifacts, and the status is not 0 then. Inputs that reach new code are kept in
# fuzz/corpus from run to run; both are ignored by git.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:?usage: scripts/fuzz.sh SECONDS [TARGET...]}
shift
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(handshake frames footers handles verbs)

# Coverage counters in all code of ours and below, by the stable compiler. `--target` keeps them out
# of build scripts.
host=$(rustc -vV | sed -n 's/^host: //p')
export RUSTFLAGS="${RUSTFLAGS:-} -Cpasses=sancov-module -Ccodegen-units=1
    -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares"
RUSTFLAGS=$(echo $RUSTFLAGS)
target_dir=${CARGO_TARGET_DIR:-$PWD/target}/fuzz
[[ $target_dir == /* ]] || target_dir=$PWD/$target_dir
# shellcheck disable=SC2086 # flags are words
"${CARGO:-cargo}" build --release --manifest-path fuzz/Cargo.toml --target "$host" \
    --target-dir "$target_dir" ${CARGOFLAGS:-}

run() {
    local target=$1 log status=0
    mkdir -p "fuzz/corpus/$target" "fuzz/artifacts/$target"
    log=$(mktemp)
    "$target_dir/$host/release/$target" "fuzz/corpus/$target" -max_total_time="$seconds" \
        -artifact_prefix="fuzz/artifacts/$target/" -timeout=10 -rss_limit_mb=2048 \
        -max_len=8192 -print_final_stats=1 >"$log" 2>&1 || status=$?
    if ((status != 0)); then
        tail -n 60 "$log" >&2
        echo "fuzz: $target: found something; the input is below fuzz/artifacts/$target" >&2
    else
        echo "fuzz: $target: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs in $seconds s, no finding"
    fi
    rm -f "$log"
    return "$status"
}

failed=0
for ((i = 0; i < ${#targets[@]}; i += 2)); do
    pids=()
    for target in "${targets[@]:i:2}"; do
        run "$target" &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do
        wait "$pid" || failed=1
    done
done
exit "$failed"
