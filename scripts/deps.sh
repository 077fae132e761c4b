#!/usr/bin/env bash
# Makes sure that what the build and the tests need is there; installs it where this is Debian and
# we are root, and otherwise says which command would.
set -euo pipefail

# CMake refuses to go on where the directory that it built in has moved, as with a target directory that
# was moved or copied: what it made of the bindings to rdma-core is made anew then.
for cache in "${CARGO_TARGET_DIR:-target}"/*/build/rdma-mummy-sys-*/out/build/CMakeCache.txt; do
    [ -e "$cache" ] || continue
    built=$(cd "$(dirname "$cache")" && pwd -P)
    made=$(sed -n 's/^CMAKE_CACHEFILE_DIR:INTERNAL=//p' "$cache")
    made=$(realpath -m "${made:-$built}")
    if [ "$made" != "$built" ]; then
        echo "deps: $built was made in $made, and is made anew"
        # With what cargo knows of it, so that it does not take the rest for good.
        profile=${cache%/build/rdma-mummy-sys-*}
        rm -rf "$profile"/build/rdma-mummy-sys-* "$profile"/.fingerprint/rdma-mummy-sys-*
    fi
done

missing=()
need() { command -v "$1" >/dev/null 2>&1 || missing+=("$2"); }

if ! command -v "${CARGO:-cargo}" >/dev/null 2>&1; then
    echo "deps: there is no cargo: install Rust 1.88 or newer, then run this again" >&2
    exit 1
fi
need cc gcc
# The fuzzer is C++.
need c++ g++
need git git
# What the bindings to rdma-core are made with. libclang is a library, and no command tells of it;
# libclang-cpp is another one.
need cmake cmake
need make make
[ -n "${LIBCLANG_PATH:-}" ] || compgen -G '/usr/lib/llvm-*/lib/libclang[.-][s0-9]*' >/dev/null ||
    compgen -G '/usr/lib*/libclang[.-][s0-9]*' >/dev/null || missing+=(libclang-dev)
# The C library's headers and start files, without which nothing links.
[ -e /usr/include/stdio.h ] || missing+=(libc6-dev)

[ ${#missing[@]} -eq 0 ] && exit 0
install=(apt-get install -y --no-install-recommends "${missing[@]}")
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "deps: installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive "${install[@]}"
else
    echo "deps: missing: ${missing[*]}; as root, run: ${install[*]}" >&2
    exit 1
fi
