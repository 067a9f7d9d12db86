#!/bin/sh
# Locks what the images install, with hashes, into deploy/requirements/*.txt:
#   sh deploy/lock.sh .venv/bin [--upgrade]
# Needs uv in that environment (pip install uv) and a package index. One file fits Python 3.10 to
# 3.12. Without --upgrade what is locked stays as long as it fits.
set -eu
bin=$(cd "$1" && pwd)
shift
cd "$(dirname "$0")/.."

lock() { # NAME, then what is locked
    name=$1
    shift
    "$bin/uv" pip compile --quiet --universal --python-version 3.10 --generate-hashes \
        --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
        --output-file "deploy/requirements/$name.txt" "$@" >/dev/null
    echo "deploy/requirements/$name.txt" >&2
}
lock cpu setup.cfg --extra serve --extra tracing "$@"
for name in gpu builder build; do
    lock "$name" "deploy/requirements/$name.in" "$@"
done
