"""The server as a child process, without the real one: start, stop, failures, missing parts."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from hmer.errors import MissingDependency, ServerSetupError, VocabularyMismatch
from model_repository import embedded, server
from model_repository.embedded import EmbeddedTriton
from model_repository.endpoints import Endpoints
from model_repository.repository import Repository
from model_repository.server import EmbeddedServer, load_failure
from tests.serve_fixtures import ANY_PORTS, alive

# -- the child


def test_start_and_stop(repository: Repository, fake_triton: None) -> None:
    with EmbeddedServer(repository, ANY_PORTS) as running:
        assert running.ready()
        pid = running.pid
        assert alive(pid)
        assert running.log.is_file()
        arguments = running.log.read_text(encoding="utf-8").splitlines()[0]
        assert "--model-control-mode=none" in arguments
        assert f"--http-port={running.endpoints.http_port}" in arguments
    assert not alive(pid)
    assert not running.log.parent.exists()
    running.stop()  # again


def test_a_log_of_ones_own_is_kept(
    repository: Repository, fake_triton: None, tmp_path: Path
) -> None:
    with EmbeddedServer(repository, ANY_PORTS, log=tmp_path / "my.log"):
        pass
    assert "successfully loaded" in (tmp_path / "my.log").read_text(encoding="utf-8")


def test_a_server_that_does_not_listen_to_sigterm(
    repository: Repository, fake_triton: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE", "deaf")
    monkeypatch.setattr(server, "STOP_GRACE_S", 0.2)
    with EmbeddedServer(repository, ANY_PORTS) as running:
        pid = running.pid
    assert not alive(pid)


def test_a_server_that_cannot_load(
    repository: Repository, fake_triton: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE", "broken")
    running = EmbeddedServer(repository, ANY_PORTS)
    with pytest.raises(ServerSetupError, match=r"exit code 1.*failed to load all models"), running:
        pass
    assert running.log.is_file()  # the sentence names it
    assert not (running.log.parent / "backends").exists()
    running.log.unlink()
    running.log.parent.rmdir()


def test_a_server_that_is_too_slow(
    repository: Repository, fake_triton: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE", "slow")
    running = EmbeddedServer(repository, ANY_PORTS)
    running.start()
    pid = running.pid
    seen: set[str] = set()

    def note(loaded: set[str]) -> bool:
        seen.update(loaded)
        return True

    with pytest.raises(ServerSetupError, match="not ready after 3 s"):
        running.wait_ready(3.0, note)
    running.stop()
    assert not alive(pid)
    assert seen == {"decode"}


def test_reason_of_a_failed_load() -> None:
    log = (
        'I1 model_lifecycle.cc:472] "loading: decode:1"\n'
        "E1 model_lifecycle.cc:642] \"failed to load 'decode' version 1: Internal: "
        "TritonModelException: [vocabulary_mismatch] The vocabulary differs.\\n\\nAt:\\n  x.py(3)"
        '"\n'
    )
    error = load_failure(log, 1, Path("x.log"))
    assert isinstance(error, VocabularyMismatch)
    assert str(error) == "The vocabulary differs."


# -- ports


def test_ports() -> None:
    free = ANY_PORTS.reserve()
    assert len({free.http_port, free.grpc_port, free.metrics_port}) == 3
    assert free.http == f"http://127.0.0.1:{free.http_port}"
    assert Endpoints("localhost", 0, 0, 0).reserve().host == "127.0.0.1"
    assert Endpoints("0.0.0.0").client_host == "127.0.0.1"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerSetupError, match=rf"Port {port} .* in use.*--grpc-port"):
            Endpoints(http_port=0, grpc_port=port, metrics_port=0).reserve()
    with pytest.raises(ServerSetupError, match=r"in use.*--grpc-port"):
        Endpoints(http_port=port, grpc_port=port, metrics_port=0).reserve()
    with pytest.raises(ServerSetupError, match="no address of this machine"):
        Endpoints("192.0.2.1", 0, 0, 0).reserve()
    with pytest.raises(ServerSetupError, match="not an IPv4 address"):
        Endpoints("::1", 0, 0, 0).reserve()


# -- what is missing


def test_platforms() -> None:
    embedded.check_platform("Linux", "x86_64")
    for system, machine in (("Darwin", "arm64"), ("Windows", "AMD64"), ("Linux", "riscv64")):
        with pytest.raises(ServerSetupError, match=f"{system} on {machine}.*print-docker"):
            embedded.check_platform(system, machine)


def test_no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    with pytest.raises(ServerSetupError, match=r"NumPy 1.*Python 3\.10 to 3\.12"):
        embedded.find()
    monkeypatch.setattr(sys, "version_info", (3, 12, 0))
    with pytest.raises(MissingDependency, match=r"pip install 'hmer\[serve\]'"):
        embedded.find()


def test_numpy_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.1.0")
    with pytest.raises(ServerSetupError, match=r"NumPy 2\.1\.0 .* 'numpy<2'"):
        embedded.check_numpy()


def test_python_without_stub(tmp_path: Path) -> None:
    for version in ("3.9", "3.10", "3.13"):
        (tmp_path / version).mkdir()
    error = embedded.unsupported_python("3.14", tmp_path)
    assert "no support for Python 3.14" in str(error)
    assert "3.9, 3.10, 3.13" in str(error)


def test_no_libpython() -> None:
    with pytest.raises(ServerSetupError, match=r"libpython9\.9\.so\.1\.0 was not found.*apt-get"):
        embedded.find_libpython("9.9")


def test_an_interpreter_that_the_stub_would_not_find(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "python3.11").touch()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3.11"))
    with pytest.raises(ServerSetupError, match="virtual environment"):
        embedded._python_folder()


def test_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "/somewhere")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/else")
    triton = EmbeddedTriton(
        tmp_path, tmp_path, tmp_path, (Path("/a"), Path("/b")), Path("/venv/bin")
    )
    values = embedded.environment(triton)
    assert values["PATH"] == "/venv/bin:/somewhere"
    assert values["LD_LIBRARY_PATH"] == "/a:/b:/else"
