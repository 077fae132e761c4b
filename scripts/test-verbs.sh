#!/usr/bin/env bash
# Tests on an RDMA device: the verbs layer, the suites over the engine verbs, and real processes.
#
# usage: scripts/test-verbs.sh [--here]
#
# Without --here they run in docker/rxe-vm, a virtual machine with soft-RoCE, which is made first. With
# it they run on this host, whose device has the address in DAFS_RDMA_ADDRESS (10.9.9.1 if unset).
# CARGO and CARGOFLAGS are honoured. Fails where there is no device, or no machine.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    printf 'test-verbs: %s\n' "$*" >&2
    exit 1
}

here=''
case ${1-} in
'') ;;
--here) here=yes ;;
*) fail "unknown option $1" ;;
esac

list=$(mktemp)
trap 'rm -f "$list"' EXIT

# Builds test programs and notes where they are: TARGET PROGRAM, a line each.
build() {
    local output
    # shellcheck disable=SC2086 # flags are words
    output=$("${CARGO:-cargo}" test --no-run ${CARGOFLAGS-} "$@" 2>&1) || fail "$output"
    sed -n 's|^ *Executable [^(]*tests/\([^/.]*\)[^(]*(\(.*\))$|\1 \2|p' <<<"$output" >>"$list"
}

# shellcheck disable=SC2086
"${CARGO:-cargo}" build ${CARGOFLAGS-} -p dafsd -p dafs-client --bins
build -p ordma --features device-tests --test rdma --test engines --test secure
build -p dafsd --features device-tests --test references --test end_of_file --test two_clients \
    --test rights --test process --test verbs
build -p dafs-client --features device-tests --test cli

program() {
    local found
    found=$(sed -n "s|^$1 ||p" "$list")
    [[ -n $found ]] || fail "no test program $1 was built"
    [[ $found == /* ]] || found=$PWD/$found
    printf '%s\n' "$found"
}

# What is run, and with which filter; each line is TOPOLOGY PROGRAM FILTER...
runs=(
    "one rdma"
    "one engines verbs placed"
    "one secure verbs"
    "one references verbs"
    "one end_of_file verbs"
    "one two_clients verbs"
    "one rights verbs"
    "one process second_pass a_crash_loses a_graceful_stop memory_stays idle_verbs"
    "one cli devices::"
    "one verbs --skip links"
    "two verbs links"
)

# Server and client on either end of the cable.
two_ports='DAFS_RDMA_ADDRESS=10.9.9.2 DAFS_RDMA_FROM=10.9.9.1 DAFS_RDMA_INTERFACE=rxa DAFS_RDMA_PEER=rxb'

# The commands for a topology. All run, and the first failure is what counts.
commands() {
    local run topology name
    echo 'status=0'
    for run in "${runs[@]}"; do
        read -r topology name filter <<<"$run"
        [[ $topology == "$1" ]] || continue
        printf 'printf "\\n== %s %s\\n"\n' "$name" "$filter"
        printf 'SECONDS=0\n'
        printf '%s %q --test-threads 1 %s || { status=1; echo "test-verbs: FAILED: %s %s"; }\n' \
            "$([[ $1 == two ]] && echo "$two_ports")" "$(program "$name")" "$filter" "$name" "$filter"
        printf 'echo "== %s took $SECONDS s"\n' "$name"
    done
    # shellcheck disable=SC2016
    echo 'exit $status'
}

if [[ -n $here ]]; then
    bash -c "$(commands one)"
    exit
fi
docker/rxe-vm-deps
# The machine has a /tmp, /run and /dev/shm of its own.
shares=()
for directory in "$PWD" "${CARGO_TARGET_DIR:-$PWD}"; do
    case $(realpath "$directory") in
    /tmp/* | /run/* | /dev/shm/*) shares+=(--share "$directory") ;;
    esac
done
status=0
docker/rxe-vm "${shares[@]}" -m 4G -t 3000 bash -c "$(commands one)" || status=$?
docker/rxe-vm "${shares[@]}" -m 3G -t 900 --two-ports bash -c "$(commands two)" || status=$?
exit "$status"
