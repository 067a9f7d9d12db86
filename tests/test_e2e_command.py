"""The command `hmer-serve` and the server that it started end together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from client import Recognizer
from export.config import RepositoryOptions
from export.repository import assemble
from hmer.bundle import Bundle
from model_repository.endpoints import Endpoints
from tests.e2e_fixtures import need_embedded

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "client" / "samples" / "average.png"


def command(repository: Path) -> subprocess.Popen[str]:
    """``hmer-serve`` as a process of its own."""
    zero = [f"--{name}-port=0" for name in ("http", "grpc", "metrics")]
    arguments = ["-m", "model_repository.serve", "--repository", str(repository), *zero, "--json"]
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def gone(pid: int, timeout: float = 20.0) -> bool:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if (state := Path(f"/proc/{pid}/stat")).exists() and ") Z " in state.read_text():
            return True  # waits for whoever adopted it
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_command_takes_its_server_along(
    tiny_graphs: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: signal.Signals,
) -> None:
    need_embedded()
    assemble(tiny_graphs.folder, tmp_path / "r", RepositoryOptions(preprocessors=1))
    moved = (tmp_path / "r").rename(tmp_path / "moved elsewhere")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    process = command(moved)
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        with Recognizer(ready["grpc"]) as recognizer:
            assert recognizer.recognize(SAMPLE).tokens
        process.send_signal(how)
        output, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert output == ""  # the document was the last thing
    assert "Traceback" not in errors
    assert process.returncode == (-how if how is signal.SIGKILL else 0)
    assert gone(ready["pid"])
    Endpoints(grpc_port=int(ready["grpc"].rsplit(":")[1]), http_port=0, metrics_port=0).reserve()
    left = {path.name for path in tmp_path.glob("hmer-serve-*")}
    assert bool(left) == (how is signal.SIGKILL)  # whoever was killed cannot tidy up
    assert not [path for path in Path("/dev/shm").iterdir() if path.name[:19] in left]
