#!/bin/sh
# Engines, parity and latency on a machine with an NVIDIA GPU, in one report:
# sh deploy/gpu.sh .venv/bin [options of hmer-export gpu]
#
# Uses the virtual environment if it is there, else the system's python3. If there is neither
# TensorRT nor docker, TensorRT is installed into the virtual environment; where that fails
# (no network), the report says what is missing and holds what could be measured without it.
set -eu
bin=$1
shift
cd "$(dirname "$0")/.."
python=$bin/python
[ -x "$python" ] || python=python3

case " $* " in
*" --dry-run "*) ;;
*)
    if command -v nvidia-smi >/dev/null 2>&1 && ! command -v docker >/dev/null 2>&1 &&
        [ "$python" != python3 ] && ! "$python" -c 'import tensorrt' 2>/dev/null; then
        echo "Installing TensorRT ..." >&2
        "$python" -m pip install --quiet --disable-pip-version-check --editable '.[export,gpu]' ||
            echo "warning: TensorRT could not be installed; going on without it." >&2
    fi
    ;;
esac
PYTHONPATH=. exec "$python" -m export.cli gpu "$@"
