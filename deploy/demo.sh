#!/bin/sh
# Recognises the project's own samples on the embedded Triton server: sh deploy/demo.sh .venv/bin
set -eu
bin=$(cd "$1" && pwd)
work=$(mktemp -d)
server=
cleanup() {
    if [ -n "$server" ]; then
        kill -TERM "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Free ports, so that the demo disturbs no other server on this machine.
ports=$("$bin/python" - <<'PY'
import socket

sockets = [socket.socket() for _ in range(3)]
for s in sockets:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))
PY
)
set -- $ports

echo "Assembling the model repository from the shipped weights ..."
"$bin/hmer-export" repository hmer/pretrained --host embedded --target onnxruntime \
    --output "$work/repository" >"$work/export.log" 2>&1 || { cat "$work/export.log" >&2; exit 1; }

echo "Starting the embedded Triton Inference Server ..."
"$bin/hmer-serve" --repository "$work/repository" --http-port "$1" --grpc-port "$2" \
    --metrics-port "$3" --json >"$work/serve.json" 2>"$work/serve.log" &
server=$!
tries=0
until "$bin/hmer-client" health --url "127.0.0.1:$2" >/dev/null 2>&1; do
    tries=$((tries + 1))
    if [ $tries -gt 60 ] || ! kill -0 "$server" 2>/dev/null; then
        cat "$work/serve.log" >&2
        echo "error: The server did not become ready; its own words are above." >&2
        exit 1
    fi
    sleep 0.5
done

"$bin/hmer-client" recognize client/samples/*.png client/samples/*.jpg client/samples/*.inkml \
    --url "127.0.0.1:$2" --concurrency 1 --table --expect client/samples/samples.json
