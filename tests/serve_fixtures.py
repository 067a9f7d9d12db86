"""A repository without weights, and a stand-in for tritonserver to serve it."""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path

import pytest

from export.config import RepositoryOptions
from export.repository import assemble
from hmer.bundle import Bundle, save_bundle
from hmer.preprocess import PreprocessSettings
from hmer.vocab import Vocabulary
from model_repository import embedded, server
from model_repository.embedded import EmbeddedTriton
from model_repository.endpoints import Endpoints
from model_repository.repository import Repository, open_repository

ROOT = Path(__file__).resolve().parents[1]
ANY_PORTS = Endpoints(http_port=0, grpc_port=0, metrics_port=0)

# Stands in for tritonserver: ready after a moment, ends on SIGTERM (unless told otherwise).
FAKE_SERVER = """
    #!{python}
    import http.server, os, signal, sys, time
    options = dict(a[2:].split("=", 1) for a in sys.argv[1:] if "=" in a)
    behaviour = os.environ.get("FAKE", "")
    seen = {{n: v for n, v in os.environ.items() if n.startswith(("HMER_", "OTEL_"))}}
    print("cwd", os.getcwd(), sys.argv[1:], seen, flush=True)
    if behaviour == "broken":
        print("error: creating server: Internal - failed to load all models", flush=True)
        sys.exit(1)
    if behaviour == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("I0 model_lifecycle.cc:839] \\"successfully loaded 'decode'\\"", flush=True)
    if behaviour == "slow":
        time.sleep(60)
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
            if behaviour == "dies":
                os._exit(3)
    address = options["http-address"], int(options["http-port"])
    http.server.HTTPServer(address, Handler).serve_forever()
"""


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return open_repository(make_repository(tmp_path, RepositoryOptions()))


def make_repository(tmp_path: Path, options: RepositoryOptions) -> Path:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "encoder.onnx").touch()
    (bundle / "decoder_step.onnx").touch()
    network = {"strides": [2, 2, 2, 1, 1], "widths": [2, 3, 4, 6], "attention": 5, "hidden": 7}
    save_bundle(
        Bundle(bundle, "graphs", Vocabulary("xy"), PreprocessSettings(), network),
        ["encoder.onnx", "decoder_step.onnx"],
    )
    return assemble(bundle, tmp_path / "r", options).folder


@pytest.fixture
def fake_triton(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "triton"
    (folder / "python").mkdir(parents=True)
    for path in (folder / "python" / "libtriton_python.so", folder / "stub"):
        path.touch()
    binary = folder / "tritonserver"
    binary.write_text(textwrap.dedent(FAKE_SERVER).lstrip().format(python=sys.executable))
    binary.chmod(0o755)
    found = EmbeddedTriton(
        binary, folder / "python", folder / "stub", (folder,), Path(sys.executable).parent
    )
    monkeypatch.setattr(embedded, "find", lambda: found)
    monkeypatch.setattr(server, "STOP_TIMEOUT_S", 0.2)


def alive(pid: int | None) -> bool:
    assert pid is not None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
