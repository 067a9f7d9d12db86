"""hmer-serve without the real server: finding its parts, starting and stopping a child, errors."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from click.testing import CliRunner

from export.config import CONTAINER, ONNXRUNTIME, RepositoryOptions
from export.repository import assemble
from hmer.bundle import Bundle, save_bundle
from hmer.errors import MissingDependency, ServerSetupError, VocabularyMismatch
from hmer.preprocess import PreprocessSettings
from hmer.vocab import Vocabulary
from model_repository import embedded, serve, server
from model_repository.docker import docker_line
from model_repository.embedded import EmbeddedTriton
from model_repository.endpoints import Endpoints
from model_repository.repository import Repository, open_repository
from model_repository.server import EmbeddedServer, load_failure

ROOT = Path(__file__).resolve().parents[1]
ANY_PORTS = Endpoints(http_port=0, grpc_port=0, metrics_port=0)

# Stands in for tritonserver: ready after a moment, ends on SIGTERM (unless told otherwise).
FAKE_SERVER = """
    #!{python}
    import http.server, os, signal, sys, time
    options = dict(a[2:].split("=", 1) for a in sys.argv[1:] if "=" in a)
    behaviour = os.environ.get("FAKE", "")
    print("cwd", os.getcwd(), sys.argv[1:], flush=True)
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

    with pytest.raises(ServerSetupError, match="not ready after 1 s"):
        running.wait_ready(0.6, note)
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


# -- the command


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
