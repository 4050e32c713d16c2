#!/usr/bin/env bash
# Fetches the corpora of corpora.rs, at the commits named there, into target/corpora (or $EBBTIDE_CORPORA).
# Also h11, the Python parser of differential.rs, into target/parsers.
# MIRROR: a folder of bare clones, OWNER+NAME/repo, instead of github.com.
set -euo pipefail
cd "$(dirname "$0")/../.."
into=${EBBTIDE_CORPORA:-target/corpora}

while read -r name repository commit; do
    [ -d "$into/$name" ] && continue
    if [ -n "${MIRROR:-}" ]; then
        from=$MIRROR/${repository/\//+}/repo
    else
        from=$(mktemp -d)
        git -C "$from" init -q --bare
        git -C "$from" fetch -q --depth 1 "https://github.com/$repository" "$commit"
    fi
    mkdir -p "$into/$name.part"
    git --git-dir="$from" archive "$commit" | tar -x -C "$into/$name.part"
    mv "$into/$name.part" "$into/$name"
done <<'END'
http-desync-guardian aws/http-desync-guardian 7dd6f37171f0a8428d259f2631aee5e7b01a1d64
llhttp nodejs/llhttp 01e105a30fd06e248bc8ac73c4adb34a63d4114a
gunicorn benoitc/gunicorn 65ac1a3a4c0aa00960968c720d6e6bd2ac32f1b9
http-garden narfindustries/http-garden ffb9164c6603f6201c1dc70afb08fd229e2778bc
END

python3 -c 'import sys; sys.path.append("target/parsers"); import h11' 2>/dev/null ||
    python3 -m pip install --quiet --target target/parsers h11==0.16.0 || echo "could not install h11: its part will be skipped"
