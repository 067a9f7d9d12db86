"""``hmer-client pad`` through its real entry point."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from typing import Any

import pytest
from click.testing import CliRunner

pytest.importorskip("starlette", reason="the pad's extra is not installed")
pytest.importorskip("uvicorn", reason="the pad's extra is not installed")

from client.cli import main
from hmer.errors import BadParameter
from tests.pad_server import FakeBackend


def test_serves_until_interrupted() -> None:
    command = [sys.executable, "-u", "-c", "from client.cli import main; main()"]
    process = subprocess.Popen(
        [*command, "pad", "--url", "127.0.0.1:9", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert found, line
        with urllib.request.urlopen(found[0], timeout=20) as response:
            assert b"<title>hmer pad</title>" in response.read()
            assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0
    assert errors == ""


def test_a_taken_port_is_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        outcome = CliRunner().invoke(main, ["pad", "--port", port])
    assert outcome.exit_code == 1
    assert outcome.stderr.startswith(f"error: The pad cannot listen on 127.0.0.1 port {port}")


def test_refusals() -> None:
    outcome = CliRunner().invoke(main, ["pad", "--bundle", "x"])
    assert outcome.exit_code == 2
    assert "--bundle needs --local" in outcome.output
    outcome = CliRunner().invoke(main, ["pad", "--port", "0", "--local", "--bundle", "/none"])
    assert outcome.exit_code == 1
    assert outcome.stderr.startswith("error: ")
    assert CliRunner().invoke(main, ["pad", "--help"]).output.count("hmer-client pad") == 2


def test_it_is_let_in_as_every_command_is(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, dict[str, Any]]] = []

    def backend(url: str, **options: Any) -> FakeBackend:
        made.append((url, options))
        raise BadParameter("That is enough.")

    monkeypatch.setattr("client.pad.backend.ServerBackend", backend)
    command = ["pad", "--port", "0", "--url", "grpcs://here:443", "--header", "X-Team: a"]
    outcome = CliRunner().invoke(main, [*command, "--timeout", "7"], env={"HMER_TOKEN": "secret"})
    assert "That is enough." in outcome.stderr
    ((url, options),) = made
    assert url == "grpcs://here:443"
    assert (options["token"], options["headers"]) == ("secret", {"X-Team": "a"})
    assert (options["timeout"], options["model"]) == (7.0, "recognize")
