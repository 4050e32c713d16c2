#!/usr/bin/env bash
# Fetches the corpora of corpora.rs, at the commits below, into target/corpora (or
# $EBBTIDE_CORPORA), and h11, the Python parser of the differential tests, into target/parsers.
# Prints what it cannot fetch. The test of a missing part then prints SKIPPED.
#   MIRROR=FOLDER tests/wire/framing/fetch.sh    bare clones FOLDER/OWNER+NAME/repo, not github.com
# Bound: four minutes without an answer. Each fetch has two minutes. After a fetch that took them
# all, the script asks github.com no more.
set -euo pipefail
cd "$(dirname "$0")/../../.."
into=${EBBTIDE_CORPORA:-target/corpora}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
silent=

fetch() { # name owner/repository commit
    local from=${MIRROR:-}/${2/\//+}/repo status=0
    if [ -z "${MIRROR:-}" ]; then
        [ -z "$silent" ] || return 124
        from=$scratch/$1
        git init -q --bare "$from" || return
        timeout 120 git -C "$from" fetch -q --depth 1 "https://github.com/$2" "$3" || status=$?
        [ "$status" != 124 ] || silent=yes
        [ "$status" = 0 ] || return "$status"
    fi
    mkdir "$scratch/$1.tree" &&
        git --git-dir="$from" archive "$3" | tar -x -C "$scratch/$1.tree" &&
        mkdir -p "$into" && mv "$scratch/$1.tree" "$into/$1"
}

while read -r name repository commit; do
    [ -d "$into/$name" ] || fetch "$name" "$repository" "$commit" </dev/null ||
        echo "could not fetch $repository: its cases will be skipped"
done <<'END'
http-desync-guardian aws/http-desync-guardian 7dd6f37171f0a8428d259f2631aee5e7b01a1d64
llhttp nodejs/llhttp 01e105a30fd06e248bc8ac73c4adb34a63d4114a
gunicorn benoitc/gunicorn 65ac1a3a4c0aa00960968c720d6e6bd2ac32f1b9
http-garden narfindustries/http-garden ffb9164c6603f6201c1dc70afb08fd229e2778bc
END

PYTHONPATH=target/parsers python3 -c 'import h11' 2>/dev/null ||
    timeout 120 python3 -m pip install --quiet --target target/parsers h11==0.16.0 ||
    echo "could not install h11: the tests with it will be skipped"
