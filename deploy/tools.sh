#!/bin/sh
# Puts promtool and nginx, which check the files in here, into DIR/usr without installing them:
#   sh deploy/tools.sh .venv/tools
# They come from Debian's or Ubuntu's packages; tests that need them skip where they are missing.
set -eu
mkdir -p "$1"
cd "$1"
command -v apt-get >/dev/null 2>&1 || { echo "error: There is no apt-get here. Install promtool (of Prometheus) and nginx by other means." >&2; exit 1; }
for package in prometheus nginx; do
    apt-get --quiet=2 download "$package" 2>download.log || { cat download.log >&2; echo "error: $package cannot be downloaded; apt-get update may help." >&2; exit 1; }
    dpkg -x "$package"_*.deb .
    rm "$package"_*.deb
done
ls usr/bin/promtool usr/sbin/nginx
