#!/usr/bin/env bash
# Builds and installs the peers and tools of `cargo bench --bench compare`: HAProxy, nginx and wrk
# as Debian packages (root), Pingap from crates.io, Caddy and fortio as Go modules into
# ~/.cache/ebbtide-bench. It starts nothing, and leaves alone what is installed already. Each step
# has a time limit. A step that fails is named, and the comparison goes without its peer.
set -uo pipefail
tools="${XDG_CACHE_HOME:-$HOME/.cache}/ebbtide-bench"
mkdir -p "$tools/bin"
policy=
trap '[ -z "$policy" ] || rm -f "$policy"' EXIT

packages=()
command -v haproxy >/dev/null || [ -x /usr/sbin/haproxy ] || packages+=(haproxy)
[ -e /usr/lib/nginx/modules/ngx_stream_module.so ] || packages+=(nginx libnginx-mod-stream)
command -v wrk >/dev/null || packages+=(wrk)
# Pingap's build needs protoc and cmake.
[ -x "$tools/bin/pingap" ] || command -v protoc >/dev/null || packages+=(protobuf-compiler)
[ -x "$tools/bin/pingap" ] || command -v cmake >/dev/null || packages+=(cmake)
if [ "${#packages[@]}" -gt 0 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    # The packages bring services along; none is to be started.
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        policy=/usr/sbin/policy-rc.d
        printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy"
    fi
    echo "installing ${packages[*]}"
    timeout 300 apt-get update -qq && DEBIAN_FRONTEND=noninteractive timeout 600 apt-get install -qq -y \
        --no-install-recommends "${packages[@]}" >/dev/null || echo "could not install ${packages[*]}"
elif [ "${#packages[@]}" -gt 0 ]; then
    echo "not root, or no apt-get: install ${packages[*]} by hand"
fi

go_install() { # program, module@version
    [ ! -x "$tools/bin/$1" ] || return 0
    command -v go >/dev/null || { echo "no Go: $1 is left out"; return 0; }
    echo "building $2"
    GOBIN="$tools/bin" CGO_ENABLED=0 timeout 1200 go install -trimpath -ldflags "-s -w" "$2" || echo "could not build $1"
}
go_install caddy github.com/caddyserver/caddy/v2/cmd/caddy@v2.11.9
go_install fortio fortio.org/fortio@v1.68.0

if [ ! -x "$tools/bin/pingap" ]; then
    echo "building pingap 0.13.1 (about fifteen minutes on two cores)"
    # The same link-time optimisation as Ebbtide has here (`profile.bench`).
    CARGO_PROFILE_RELEASE_LTO=thin CARGO_PROFILE_RELEASE_CODEGEN_UNITS=4 CARGO_TARGET_DIR="$tools/build" \
        timeout 2400 cargo install --quiet --locked --root "$tools" pingap@0.13.1 || echo "could not build pingap"
    rm -rf "$tools/build"
fi
ls "$tools/bin"
