"""The command hmer-serve, with a stand-in for tritonserver."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from export.config import CONTAINER, ONNXRUNTIME, RepositoryOptions
from model_repository import serve, server, tracing
from model_repository.docker import docker_line
from model_repository.endpoints import Endpoints
from model_repository.repository import Repository
from model_repository.server import EmbeddedServer
from tests.serve_fixtures import ANY_PORTS, ROOT, alive, make_repository


def run_main(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(serve.main, list(arguments))
    assert "Traceback" not in result.output
    return result.exit_code, result.stdout, result.stderr


def test_help_has_an_example() -> None:
    code, output, _ = run_main("--help")
    assert code == 0
    assert "hmer-serve --repository repository" in output


def test_errors_are_sentences(tmp_path: Path) -> None:
    for arguments, text in (
        ((), "hmer-export repository hmer/pretrained"),
        (("--repository", str(tmp_path / "nothing")), "is not a model repository"),
        (("--repository", str(tmp_path)), "is not a model repository"),
    ):
        code, output, errors = run_main(*arguments)
        assert (code, output) == (1, "")
        assert errors.startswith("error: ")
        assert text in errors
    assert run_main("--http-port", "99999")[0] == 2


def test_a_container_repository(tmp_path: Path) -> None:
    folder = make_repository(tmp_path, RepositoryOptions(CONTAINER, ONNXRUNTIME))
    code, _, errors = run_main("--repository", str(folder))
    assert code == 1
    assert "NVIDIA's container" in errors
    code, output, _ = run_main("--repository", str(folder), "--print-docker", "--http-port", "80")
    assert code == 0
    assert output.startswith("docker run ")
    assert "-p 127.0.0.1:80:8000" in output
    code, output, _ = run_main("--repository", str(folder), "--print-docker", "--json")
    assert json.loads(output)["docker"] == docker_line(folder, Endpoints(), gpu=True)


def test_an_embedded_repository_is_not_for_docker(repository: Repository) -> None:
    code, _, errors = run_main("--repository", str(repository.folder), "--print-docker")
    assert code == 1
    assert "--host container" in errors


def test_a_port_in_use(repository: Repository, fake_triton: None) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, _, errors = run_main(
            "--repository", str(repository.folder), "--http-port", port, "--grpc-port", "0",
            "--metrics-port", "0",
        )  # fmt: skip
    assert code == 1
    assert f"Port {port} on 127.0.0.1 is in use" in errors


ZERO = ("--http-port=0", "--grpc-port=0", "--metrics-port=0")


def test_a_server_that_ends_by_itself(
    repository: Repository, fake_triton: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FAKE", "dies")
    log = tmp_path / "log"
    code, output, errors = run_main(
        "--repository", str(repository.folder), *ZERO, "--log", str(log)
    )
    assert code == 1
    assert "Ready after" in output
    assert f"ended by itself (exit code 3). Its log: {log}" in errors


# The command with the stand-in for Triton, as a process of its own.
COMMAND = """
import sys
from pathlib import Path
from model_repository import embedded, serve

folder = Path(sys.argv.pop(1))
embedded.find = lambda: embedded.EmbeddedTriton(
    folder / "tritonserver", folder / "python", folder / "stub", (), Path(sys.executable).parent
)
serve.main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("options", [(), ("--json",), ("--verbose",)])
def test_signals_stop_it(
    repository: Repository,
    fake_triton: None,
    tmp_path: Path,
    number: signal.Signals,
    options: tuple[str, ...],
) -> None:
    arguments = [str(tmp_path / "triton"), "--repository", str(repository.folder), *ZERO, *options]
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        output = ""
        while process.poll() is None and not output.endswith(("}\n", "stops the server.\n")):
            output += process.stdout.readline()
        process.send_signal(number)
        rest, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0
    assert rest == ""
    assert "Traceback" not in errors
    if options == ("--json",):
        document = json.loads(output)
        assert document["models"] == sorted(document["models"])
        assert not alive(document["pid"])
        assert errors == ""
    else:
        assert output.startswith("Ready after")
        assert "gRPC" in output
        assert ("successfully loaded" in errors) == (options == ("--verbose",))


def test_the_module_is_a_command() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "model_repository.serve"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 1
    assert run.stderr.startswith("error: Give the folder")


# -- what it says


def test_events_are_json_lines(
    repository: Repository, fake_triton: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE", "dies")
    options = ("--repository", str(repository.folder), *ZERO, "--verbose", "--log-format", "json")
    code, output, errors = run_main(*options)
    assert (code, output) == (1, "")
    events = [json.loads(line) for line in errors.splitlines()]
    assert all({"time", "level", "event"} <= event.keys() for event in events)
    (ready,) = (event for event in events if event["event"] == "ready")
    assert "recognize_stream" in ready["models"]
    shown = [event for event in events if event["event"] == "triton"]
    assert any("successfully loaded" in event["message"] for event in shown)
    assert events[-1]["level"] == "error"
    assert "ended by itself" in events[-1]["message"]


def test_settings_reach_the_server(
    repository: Repository, fake_triton: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    monkeypatch.setenv("FAKE", "dies")
    log = tmp_path / "log"
    settings = (
        *("--shared-memory", "--model-control", "--log-requests", "--log", str(log)),
        *("--trace-url", "http://localhost:4318/v1/traces", "--trace-rate", "0.5"),
    )
    run_main("--repository", str(repository.folder), *ZERO, *settings)
    text = log.read_text("utf-8")
    assert "--model-control-mode=explicit" in text
    assert "--grpc-restricted-protocol=trace,logging:" in text
    assert "--http-header-forward-pattern=traceparent" in text
    assert "'HMER_LOG_REQUESTS': 'text'" in text
    assert "'OTEL_TRACES_SAMPLER_ARG': '0.5'" in text


def test_traces_without_their_library(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing.importlib.util, "find_spec", lambda name: None)
    code, _, errors = run_main(
        "--repository", str(repository.folder), "--trace-url", "http://localhost:4318/v1/traces"
    )
    assert code == 1
    assert errors == "error: Traces need OpenTelemetry: pip install 'hmer[tracing]'.\n"


def test_a_temporary_log_is_cut_off_and_ones_own_is_not(
    repository: Repository, fake_triton: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(server, "MAX_LOG_BYTES", 10)
    with EmbeddedServer(repository, ANY_PORTS) as running:
        running.trim_log()
        assert running.log.stat().st_size == 0
        assert running.ready()
    with EmbeddedServer(repository, ANY_PORTS, log=tmp_path / "mine") as running:
        running.trim_log()
    assert (tmp_path / "mine").stat().st_size > 10
