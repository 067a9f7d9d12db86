#!/bin/sh
# Installs the PyTorch build that fits this machine into a virtual environment:
# sh deploy/install_torch.sh .venv/bin
#
# A plain "torch" from the package index is, on Linux, a CUDA build of several gigabytes.
# Without an NVIDIA GPU the CPU build (local version "+cpu") is asked for by name; where
# pip is not set up to find one, uv knows PyTorch's own index.
set -eu
bin=$1
version=2.13.0

if "$bin/python" -c 'import torch' 2>/dev/null; then
    exit 0
fi
if [ "$(uname -s)" != Linux ] || command -v nvidia-smi >/dev/null 2>&1; then
    exec "$bin/python" -m pip install --quiet --disable-pip-version-check "torch==$version"
fi
"$bin/python" -m pip install --quiet --disable-pip-version-check "torch==$version+cpu" \
    2>/dev/null && exit 0
"$bin/python" -m pip install --quiet --disable-pip-version-check 'uv>=0.5'
if ! "$bin/uv" pip install --quiet --python "$bin/python" --torch-backend cpu "torch==$version"; then
    echo "error: No CPU build of torch $version could be installed. Install one by hand into" \
        "this environment, then run make again." >&2
    exit 1
fi
