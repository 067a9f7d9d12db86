"""What is closed stays closed, and what was changed is refused, on the real server."""

from __future__ import annotations

import ast
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import fields, replace
from pathlib import Path

import pytest

from client import Recognizer, Retry
from export.config import CONTAINER, TENSORRT, RepositoryOptions
from export.repository import assemble
from hmer.engine import read_sidecar, sidecar_of, write_sidecar
from hmer.engine_images import DEFAULT
from hmer.errors import BadParameter
from hmer.limits import PREFIX, Limits
from model_repository import container, docker
from model_repository.endpoints import Endpoints
from model_repository.repository import open_repository
from model_repository.server import EmbeddedServer
from tests.deploy_tools import DEPLOY, ROOT
from tests.e2e_fixtures import Raw, picture
from tests.engine_fixtures import make_bundle, make_engines

# -- end points


def ask(server: EmbeddedServer, path: str, method: str = "POST") -> tuple[int, str]:
    body = b"{}" if method == "POST" else None
    request = urllib.request.Request(server.endpoints.http + path, body, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode("utf-8")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode("utf-8")


@pytest.mark.e2e
def test_models_are_not_loaded_or_unloaded_from_outside(server: EmbeddedServer) -> None:
    for what in ("load", "unload"):
        status, text = ask(server, f"/v2/repository/models/decode/{what}")
        assert status == 503
        assert "not allowed" in text
    assert server.ready()
    raw = Raw(server)
    for call in (raw.client.load_model, raw.client.unload_model):
        with pytest.raises(raw.grpc.InferenceServerException, match="not allowed"):
            call("decode")


@pytest.mark.e2e
def test_shared_memory_logs_and_traces_are_closed(server: EmbeddedServer) -> None:
    for path, method in (
        ("/v2/systemsharedmemory/region/x/register", "POST"),
        ("/v2/systemsharedmemory/status", "GET"),
        ("/v2/cudasharedmemory/status", "GET"),
        ("/v2/cudasharedmemory/region/x/register", "POST"),
        ("/v2/logging", "POST"),
        ("/v2/trace/setting", "POST"),
        ("/v2/models/decode/trace/setting", "POST"),
    ):
        status, text = ask(server, path, method)
        assert (status, "restricted" in text) == (403, True), path
    raw = Raw(server)
    client = raw.client
    for call in (
        lambda: client.register_system_shared_memory("x", "/psm_x", 16),
        client.get_system_shared_memory_status,
        client.get_cuda_shared_memory_status,
        lambda: client.update_log_settings({"log_verbose_level": 9}),
        lambda: client.update_trace_settings(settings={"trace_level": "TENSORS"}),
    ):
        with pytest.raises(raw.grpc.InferenceServerException, match="restricted"):
            call()


@pytest.mark.e2e
@pytest.mark.parametrize("way", ["grpc", "http"])
def test_a_client_is_told_how_to_open_shared_memory(server: EmbeddedServer, way: str) -> None:
    url = str(getattr(server.endpoints, way))
    with (
        Recognizer(url, shared_memory=True, retry=Retry(attempts=1)) as recognizer,
        pytest.raises(BadParameter, match="hmer-serve --shared-memory"),
    ):
        recognizer.recognize(picture(0))


def test_loopback_unless_asked() -> None:
    assert Endpoints().host == "127.0.0.1"


# -- files


@pytest.fixture
def plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A container's repository with engines of a fake TensorRT."""
    monkeypatch.setattr(docker, "find_gpu", lambda: None)
    bundle = make_bundle(tmp_path / "bundle")
    engines = make_engines(tmp_path / "engines", bundle)
    options = RepositoryOptions(CONTAINER, TENSORRT)
    return assemble(bundle.folder, tmp_path / "r", options, engines=engines).folder


def refused(folder: Path, *options: str) -> str:
    """What the start in a container says, which must fail."""
    done = subprocess.run(
        [sys.executable, "-m", "model_repository.container", str(folder), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    return done.stderr


def test_an_engine_is_served_only_as_it_was_built(plans: Path) -> None:
    container.check(str(plans), DEFAULT.name)
    plan = open_repository(plans).plan("encoder")
    good = plan.read_bytes()
    plan.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))  # one bit
    assert "truncated, changed or built another time" in refused(plans)
    # Nor with a sidecar that fits the changed plan but not the bundle.
    plan.write_bytes(good)
    write_sidecar(plan, replace(read_sidecar(plan), onnx_sha256="0" * 64))
    assert "was not built from" in refused(plans)
    sidecar_of(plan).unlink()
    assert "has no model.plan.json" in refused(plans)


def test_a_graph_is_served_only_as_it_was_exported(plans: Path) -> None:
    graph = plans / "bundle" / "encoder.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    assert "is not the file that bundle.json describes" in refused(plans)


def test_an_engine_of_another_tensorrt_is_refused(plans: Path) -> None:
    plan = open_repository(plans).plan("encoder")
    write_sidecar(plan, replace(read_sidecar(plan), version="8.6.1.6"))
    assert f"{DEFAULT.name} carries" in refused(plans)


def test_what_a_container_starts(
    plans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(container.os, "execvp", lambda name, line: started.append(line))
    container.main([str(plans), "--exit-timeout-secs=30"])
    ((name, *options),) = started
    assert name == "tritonserver"
    assert f"--model-repository={plans / 'models'}" in options
    assert "--model-control-mode=none" in options
    assert any(option.startswith("--grpc-restricted-protocol=") for option in options)
    assert options[-1] == "--exit-timeout-secs=30"
    with pytest.raises(SystemExit) as ended:
        container.main([str(plans), "--check"])
    assert ended.value.code == 0
    embedded = assemble(tmp_path / "bundle", tmp_path / "e", RepositoryOptions()).folder
    assert "assembled for the embedded server" in refused(embedded, "--check")


# -- code


def imported(path: Path) -> set[str]:
    """The top-level modules that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


@pytest.mark.parametrize("package", ["hmer", "model_repository", "client", "export"])
def test_nothing_that_serves_reads_pickles(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert not imported(path) & UNSAFE, path
        text = path.read_text("utf-8")
        assert "allow_pickle=True" not in text, path
        assert "weights_only=False" not in text, path
    assert {"pickle"} == imported(ROOT / "training" / "batches.py") & UNSAFE  # and it can be seen


def test_the_threat_model_is_a_page_that_names_what_exists() -> None:
    text = (DEPLOY / "SECURITY.md").read_text("utf-8")
    page, _, limits = text.partition("## Hostile input")
    assert len(page.split()) < 900
    for field in fields(Limits):
        assert f"`{PREFIX}{field.name.upper()}`" in limits
    for name in ("training/batches.py", "deploy/gateway/nginx.conf", "deploy/audit.sh"):
        assert name in text
        assert (ROOT / name).exists()
