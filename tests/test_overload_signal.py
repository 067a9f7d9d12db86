"""Whoever ends ``hmer-bench`` ends the server that it started, and leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hmer.bundle import Bundle
from tests.e2e_fixtures import need_embedded

ROOT = Path(__file__).resolve().parents[1]


def _deaf() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.mark.parametrize("in_background", [False, True])
def test_a_signal_ends_its_server_too(
    tiny_graphs: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_background: bool
) -> None:
    """``in_background``: as a shell's ``&`` starts it, deaf to Ctrl-C."""
    psutil: Any = pytest.importorskip("psutil")
    need_embedded()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    command = [sys.executable, "-m", "benchmarks.cli", "overload", "--minutes", "5"]
    command += ["--bundle", str(tiny_graphs.folder), "--capacity", "10"]
    command += ["--repository-options", "--target onnxruntime", "--limit", "2"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_deaf if in_background else None,
    )
    try:
        assert process.stderr is not None
        said = ""
        while "usual" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        below = psutil.Process(process.pid).children(recursive=True)
        assert any(child.name() == "tritonserver" for child in below)
        process.terminate()
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1
    assert output == ""
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(below, timeout=20)
    assert not alive
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("hmer-")]
