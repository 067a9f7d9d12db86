"""The gateway: a real nginx with TLS and tokens in front of a real server."""

from __future__ import annotations

import gzip
import re
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from client import Recognizer, Retry
from hmer.errors import HmerError, ServerError
from model_repository.server import EmbeddedServer
from tests.deploy_tools import DEPLOY, run, tool
from tests.e2e_fixtures import Raw, picture

pytestmark = pytest.mark.e2e
CONFIG = DEPLOY / "gateway" / "nginx.conf"
SECRET = "0123456789abcdef"
ONCE = Retry(attempts=1)


@dataclass(frozen=True)
class Gateway:
    """A running one: its port, and the certificate to trust."""

    port: int
    ca: Path
    log: Path

    @property
    def grpc(self) -> str:
        return f"grpcs://localhost:{self.port}"

    @property
    def http(self) -> str:
        return f"https://localhost:{self.port}"


def laid_out(folder: Path, port: int, grpc: int, http: int) -> Path:
    """The folder that nginx runs in; the file as it is, but for the ports."""
    text = CONFIG.read_text("utf-8")
    for old, new in (("8443", port), ("8001", grpc), ("8000", http)):
        assert text.count(f"127.0.0.1:{old}") == 1
        text = text.replace(f"127.0.0.1:{old}", f"127.0.0.1:{new}")
    (folder / "nginx.conf").write_text(text, "utf-8")
    (folder / "tokens.conf").write_text(f'"Bearer {SECRET}" alice;\n', "utf-8")
    (folder / "temp").mkdir()
    made = run(
        *(tool("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt"),
        *("ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
        *("-addext", "subjectAltName=DNS:localhost", "-keyout", folder / "tls.key"),
        *("-out", folder / "tls.crt"),
    )
    assert made.returncode == 0, made.stderr
    return folder


@pytest.fixture(scope="module")
def gateway(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    nginx = tool("nginx")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    e = server.endpoints
    folder = laid_out(tmp_path_factory.mktemp("gateway"), port, e.grpc_port, e.http_port)
    options = ("-p", f"{folder}/", "-c", "nginx.conf", "-e", "stderr")
    checked = run(nginx, "-t", *options)
    assert checked.returncode == 0, checked.stderr
    process = subprocess.Popen([nginx, *options, "-g", "daemon off;"], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, "nginx ended"
                time.sleep(0.05)
        yield Gateway(port, folder / "tls.crt", folder / "access.log")
    finally:
        process.terminate()
        process.wait(10)


def fetch(
    gateway: Gateway,
    path: str,
    token: str = SECRET,
    body: bytes | None = None,
    packed: str = "",
) -> int:
    """The status of an HTTP request; ``packed``: its ``Content-Encoding``."""
    context = ssl.create_default_context(cafile=str(gateway.ca))
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if packed:
        headers["Content-Encoding"] = packed
    request = urllib.request.Request(gateway.http + path, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("way", ["grpc", "http"])
def test_with_the_token_it_answers(server: EmbeddedServer, gateway: Gateway, way: str) -> None:
    (expected,) = Raw(server).recognize([picture(2)], parameters={"max_tokens": 5})
    url = str(getattr(gateway, way))
    with Recognizer(url, token=SECRET, ca=gateway.ca) as recognizer:
        assert recognizer.recognize(picture(2), max_tokens=5).tokens == expected
        parts = list(recognizer.stream(picture(2), max_tokens=5))
        assert parts[-1].tokens == expected


@pytest.mark.parametrize("way", ["grpc", "http"])
@pytest.mark.parametrize("token", [None, "wrong", SECRET[:-1], SECRET + "0"])
def test_without_it_nobody_gets_through(gateway: Gateway, way: str, token: str | None) -> None:
    url = str(getattr(gateway, way))
    with Recognizer(url, token=token, ca=gateway.ca, retry=ONCE) as recognizer:
        with pytest.raises(ServerError) as caught:
            recognizer.recognize(picture(2), max_tokens=5)
        assert "token" in str(caught.value)


def test_a_certificate_that_is_not_trusted_is_refused(gateway: Gateway) -> None:
    with Recognizer(gateway.grpc, token=SECRET, retry=ONCE) as recognizer, pytest.raises(HmerError):
        recognizer.recognize(picture(2), timeout=5)


def test_only_inference_goes_through(gateway: Gateway) -> None:
    assert fetch(gateway, "/v2/health/ready") == 200
    assert fetch(gateway, "/v2/models/recognize") == 200
    assert fetch(gateway, "/v2/health/ready", token="") == 401
    for path in (
        *("/v2/repository/index", "/v2/repository/models/decode/unload", "/v2/logging"),
        *("/v2/systemsharedmemory/status", "/v2/trace/setting", "/metrics", "/", "/v2/models/a/b"),
    ):
        assert fetch(gateway, path, body=b"{}") == 403, path
    grpc = pytest.importorskip("tritonclient.grpc")
    client = grpc.InferenceServerClient(
        f"localhost:{gateway.port}", ssl=True, root_certificates=str(gateway.ca)
    )
    headers = {"authorization": f"Bearer {SECRET}"}
    assert client.is_server_ready(headers=headers)
    for call in (
        client.get_model_repository_index,
        client.get_system_shared_memory_status,
        client.get_log_settings,
    ):
        with pytest.raises(grpc.InferenceServerException, match=r"PERMISSION_DENIED"):
            call(headers=headers)


@pytest.mark.parametrize("packed", ["gzip", "deflate"])
def test_no_packed_body_reaches_triton_which_unpacks_without_a_limit(
    gateway: Gateway, packed: str
) -> None:
    path = "/v2/models/recognize/infer"
    assert fetch(gateway, path, body=gzip.compress(b" " * 10_000), packed=packed) == 415
    assert fetch(gateway, path, body=b"{}") not in (401, 403, 415)  # an error of Triton's own


def test_who_asked_is_in_the_log_and_the_token_is_not(gateway: Gateway) -> None:
    fetch(gateway, "/v2/health/live")
    line = re.compile(r'"client":"alice".*"path":"/v2/health/live","status":200')
    # nginx answers first and writes the line then.
    deadline = time.monotonic() + 10
    while not line.search(text := gateway.log.read_text("utf-8")):
        assert time.monotonic() < deadline, text
        time.sleep(0.02)
    assert SECRET not in text
