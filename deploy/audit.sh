#!/bin/sh
# Looks the locked packages up in a vulnerability database: sh deploy/audit.sh .venv/bin
# Needs pip-audit there (pip install pip-audit) and the network: pip-audit asks the package index's
# JSON API, or with AUDIT_ARGS='--vulnerability-service osv' the OSV database. Without an answer for
# every package this fails (--strict): that nothing is known must not look like nothing found.
set -eu
bin=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
[ -x "$bin/pip-audit" ] || {
    echo "error: pip-audit is not in $bin. Install it: $bin/python -m pip install pip-audit" >&2
    exit 1
}
code=0
for file in deploy/requirements/*.txt; do
    echo "$file" >&2
    # Word splitting of AUDIT_ARGS is wanted.
    # shellcheck disable=SC2086
    "$bin/pip-audit" --strict --disable-pip --require-hashes --requirement "$file" \
        --progress-spinner off ${AUDIT_ARGS:-} || code=1
done
[ $code = 0 ] || echo "error: Vulnerabilities were found, or the database could not be asked; see above." >&2
exit $code
