#!/bin/sh
# sh deploy/build_engines.sh BUNDLE SERVED: a repository with TensorRT engines in SERVED/repository,
# built on this GPU, unless the one there is intact, of this bundle, this TensorRT and this GPU.
# Runs in the builder image before the server: an init container, or a service of compose.
set -eu
bundle=$1
served=$2
python=${PYTHON:-python3}

wanted=$(sha256sum "$bundle/bundle.json" | cut -d ' ' -f 1)
there=$(cat "$served/bundle.sha256" 2>/dev/null || true)
if [ "$wanted" = "$there" ] &&
    "$python" -m model_repository.container "$served/repository" --check; then
    echo "The engines in $served fit." >&2
    exit 0
fi
echo "Building engines for $bundle on this GPU: minutes ..." >&2
rm -rf "$served/engines" "$served/bundle.sha256"
"$python" -m export.cli engine "$bundle" --output "$served/engines"
"$python" -m export.cli repository "$bundle" --host container --target tensorrt \
    --engines "$served/engines" --output "$served/repository" --force
"$python" -m model_repository.container "$served/repository" --check
echo "$wanted" >"$served/bundle.sha256"
