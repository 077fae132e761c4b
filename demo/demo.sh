#!/usr/bin/env bash
# Shows DAFS at work on this machine, with the release binaries that `cargo build --release` makes:
# copies a tree of real files out of a server and back in, verifies every file, and reads one file
# twice over each engine to show which path serves it.
#
# usage: demo/demo.sh [TREE]
#
# Without TREE, a tree of at least 2000 files and 500 MB is gathered from this machine's /usr and
# Rust toolchain. All is done in a directory below ${TMPDIR:-/tmp}, which is removed at the end; it
# takes three times the tree's size.
# The export is sealed: keys are made on the way.
set -euo pipefail
export LC_ALL=C

readonly MIN_FILES=2000 MIN_BYTES=500000000
readonly MEMORY_MIB=512
# The file that is read twice has to fit into the server's memory with room to spare.
readonly MAX_READ_TWICE=$((32 << 20))

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bin=${CARGO_TARGET_DIR:-$repo/target}/release
[[ $bin == /* ]] || bin=$repo/$bin
work='' server=''

fail() {
    printf 'demo: %s\n' "$*" >&2
    exit 1
}

step() {
    printf '\n== %s\n' "$*"
}

alive() {
    [[ -n $server ]] && kill -0 "$server" 2>/dev/null
}

# Waits for the server's end, for at most $1 seconds.
ended_within() {
    local tenth
    for ((tenth = 0; tenth < $1 * 10; tenth++)); do
        alive || return 0
        sleep 0.1
    done
    ! alive
}

clean_up() {
    local status=$?
    trap '' INT TERM HUP
    if alive; then
        kill -TERM "$server" 2>/dev/null || true
        ended_within 10 || kill -KILL "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    if [[ -n $work ]]; then
        if ((status != 0)) && [[ -s $work/dafsd.log ]]; then
            printf '\nthe last lines of the server'\''s log:\n' >&2
            tail -n 15 "$work/dafsd.log" >&2 || true
        fi
        # Directories that were copied may be read-only.
        chmod -R u+rwX "$work" 2>/dev/null || true
        rm -rf "$work"
    fi
    if ((status != 0)); then
        printf '\ndemo: FAILED\n' >&2
    fi
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

count_files() {
    find "$1" -type f -printf . | wc -c
}

count_bytes() {
    find "$1" -type f -printf '%s\n' | awk '{ sum += $1 } END { printf "%.0f\n", sum }'
}

# Gathers real files of this machine: programs, libraries, documents.
gather() {
    local tree=$1 sources=() source list=$work/list
    for source in /usr/share /usr/lib "$(rustc --print sysroot 2>/dev/null || true)"; do
        if [[ -d $source ]]; then
            sources+=("$source")
        fi
    done
    # After 4000 files only larger ones are taken, so that it does not get too long.
    if ((${#sources[@]} > 0)); then
        { find "${sources[@]}" -xdev ! -name $'*\n*' \
            \( -type f -readable -size -65536k -o -type l \) -printf '%s %p\n' 2>/dev/null || true; } |
            awk -v files="$MIN_FILES" -v bytes="$MIN_BYTES" '
                n >= files && sum >= bytes { next }
                n >= 4000 && $1 < 100000 { next }
                { n++; sum += $1; sub(/^[0-9]+ \//, ""); print }' >"$list"
        tar -C / -cf - --ignore-failed-read --verbatim-files-from -T "$list" |
            tar -C "$tree" -xf - --no-same-owner
        rm "$list"
    fi
    # A machine that has not enough: the rest is generated.
    local number=0
    mkdir "$tree/generated"
    while (($(count_files "$tree") < MIN_FILES || $(count_bytes "$tree") < MIN_BYTES)); do
        mkdir "$tree/generated/$number"
        head -c 64000000 /dev/urandom | split -a 3 -b 300000 - "$tree/generated/$number/file-"
        number=$((number + 1))
    done
}

# The checksums of all files below $1, in order.
checksums() {
    (cd "$1" && find . -type f -print0 | sort -z | xargs -0 -r sha256sum)
}

# What else is to be equal: types, modes, and where symbolic links lead.
shape() {
    (cd "$1" && find . -type l -printf '%y %p %l\n' -o ! -path . -printf '%y %p %m\n' |
        sed -E 's/^([fd] .*) [2467]([0-7]{3})$/\1 \2/' | sort)
}

same() {
    cmp -s "$1" "$2" || {
        diff "$1" "$2" | head -n 5 >&2 || true
        fail "$3"
    }
}

# A field of a pass, from one line of JSON.
field() {
    sed -n "s/.*\"$1\":\([0-9.]*\).*/\1/p" <<<"$2"
}

# Reads a file twice over an engine and shows what served it.
read_twice() {
    local engine=$1 url=$2 json pass number=0 pages inline direct ordma calls path
    json=$("$bin/dafs" --engine "$engine" --server-key "$server_key" \
        stat --path --passes 2 --pages all --json "$url")
    [[ $json == *"\"engine\":\"$engine\""* ]] || fail "not read over $engine: $json"
    while read -r pass; do
        number=$((number + 1))
        pages=$(field pages "$pass") inline=$(field inline "$pass") direct=$(field direct "$pass")
        ordma=$(field ordma "$pass") calls=$(field handler_calls "$pass")
        path=mixed
        if ((inline + direct == pages)); then path=rpc; elif ((ordma == pages)); then path=ordma; fi
        printf '%-6s %4d %7d %-6s %9s us %9s us %14d\n' "$engine" "$number" "$pages" "$path" \
            "$(field p50_us "$pass")" "$(field p99_us "$pass")" "$calls"
        case $number in
            1) [[ $path == rpc ]] || fail "the first pass over $engine was not by rpc: $pass" ;;
            2) [[ $path == ordma && $calls == 0 ]] ||
                fail "the second pass over $engine was not all by ordma without handler calls: $pass" ;;
        esac
    done < <(sed 's/.*"passes":\[//; s/},{"pages"/}\n{"pages"/g' <<<"$json")
    ((number == 2)) || fail "no two passes over $engine: $json"
}

(($# <= 1)) || fail "usage: demo/demo.sh [TREE]"
for program in dafs dafsd; do
    [[ -x $bin/$program ]] || fail "$bin/$program is not there; build it with: cargo build --release"
done
work=$(mktemp -d "${TMPDIR:-/tmp}/dafs-demo.XXXXXX")
chmod 700 "$work"
mkdir "$work/export" "$work/state"
tree=$work/export/tree

step "A tree of files"
if (($# == 1)); then
    [[ -d $1 ]] || fail "$1 is no directory"
    needed=$(count_bytes "$1")
else
    needed=$((MIN_BYTES + 100000000))
fi
free=$(($(df -Pk "$work" | awk 'NR == 2 { print $4 }') * 1024))
((free > needed * 3 + (100 << 20))) ||
    fail "$work has $((free >> 20)) MiB free and the demo needs $(((needed * 3 >> 20) + 100)); set TMPDIR"
if (($# == 1)); then
    cp -a --no-preserve=ownership -T "$1" "$tree"
else
    mkdir "$tree"
    gather "$tree"
fi
# Sockets, pipes and devices have no content to copy.
find "$tree" ! -type f ! -type d ! -type l -delete
files=$(count_files "$tree") bytes=$(count_bytes "$tree")
echo "$files files, $((bytes / 1000000)) MB"
if (($# == 0)); then
    ((files >= MIN_FILES && bytes >= MIN_BYTES)) || fail "the tree is too small"
fi

step "A key for the client, which the server is told of"
export DAFS_IDENTITY=$work/identity XDG_CONFIG_HOME=$work/config
"$bin/dafs" keygen
printf '%s demo exports=data:rw uid=%d gid=%d\n' "$(cat "$work/identity.pub")" "$(id -u)" "$(id -g)" \
    >"$work/state/authorized_clients"

step "A server on this machine, its pages sealed"
: >"$work/dafsd.out"
"$bin/dafsd" --export "data=$work/export" --memory "${MEMORY_MIB}MiB" \
    --listen tcp:127.0.0.1:0 --listen "shm:$work/socket" --state-dir "$work/state" \
    >"$work/dafsd.out" 2>"$work/dafsd.log" &
server=$!
port=''
for ((tenth = 0; tenth < 100; tenth++)); do
    if grep -q '^dafsd: ready' "$work/dafsd.out"; then
        port=$(sed -n 's/^dafsd: listening on tcp:127\.0\.0\.1:\([0-9]*\)$/\1/p' "$work/dafsd.out")
        break
    fi
    alive || fail "the server ended at once"
    sleep 0.1
done
[[ -n $port ]] || fail "the server was not ready within 10 s"
url=dafs://127.0.0.1:$port/data
server_key=$("$bin/dafsd" key --state-dir "$work/state")
export DAFS_URL="$url?server_key=$server_key"
"$bin/dafs" doctor

step "The tree out of the server, and back into another directory of it"
printf 'get: '
"$bin/dafs" get -r -v /tree "$work/out" 2>&1
printf 'put: '
"$bin/dafs" put -r -v "$work/out" /back 2>&1

step "Every file compared by its SHA-256"
for copy in export/tree out export/back; do
    checksums "$work/$copy" >"$work/sums-${copy//\//-}"
    shape "$work/$copy" >"$work/shape-${copy//\//-}"
done
for list in sums shape; do
    same "$work/$list-export-tree" "$work/$list-out" "what was copied out differs"
    same "$work/$list-export-tree" "$work/$list-export-back" "what was copied back in differs"
done
echo "$(wc -l <"$work/sums-out") files are equal both ways"

step "One file read twice over each engine, page by page"
picked=$(find "$work/export/back" -type f -size +0 -size "-$((MAX_READ_TWICE / 1024))k" \
    -printf '%s %P\n' | grep -v '[^ -~]\|[%?]' | sort -n | tail -n 1)
[[ -n $picked ]] || fail "no file of a fitting size"
echo "file   /back/${picked#* } (${picked%% *} bytes)"
picked=${picked#* }
printf '%-6s %4s %7s %-6s %12s %12s %14s\n' engine pass pages path p50 p99 'handler calls'
for engine in tcp shm; do
    read_twice "$engine" "$url/back/$picked"
done
echo "rpc: asked of the server; ordma: read from its memory, without its taking part"

step "The server stopped"
kill -TERM "$server"
ended_within 20 || fail "the server did not stop within 20 s"
status=0
wait "$server" || status=$?
((status == 0)) || fail "the server ended with exit code $status"
server=''
[[ ! -e $work/socket ]] || fail "the server left its socket behind"
echo "it ended in order and left nothing behind"

printf '\ndemo: all well\n'
