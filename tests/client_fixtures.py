"""Fixtures of the client's tests: fake servers, certificates, documents."""

from __future__ import annotations

import io
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from tests.fake_server import SERVERS, Script


@dataclass
class Fake:
    """A running fake server."""

    url: str
    script: Script
    wire: str


@pytest.fixture(params=["grpc", "http"])
def fake(request: pytest.FixtureRequest) -> Iterator[Fake]:
    """A fake server on each of the wires."""
    script = Script()
    with SERVERS[request.param](script) as url:
        yield Fake(url, script, request.param)


def free_port() -> int:
    """A port of this host that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Certificates:
    """PEM files: an authority that is also the server's certificate, and its key."""

    certificate: Path
    key: Path


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A certificate of 127.0.0.1 that nobody trusts unless told."""
    folder = tmp_path_factory.mktemp("tls")
    made = Certificates(folder / "cert.pem", folder / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(made.key), "-out", str(made.certificate)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"openssl makes no certificate here: {error}")
    return made


def pages(format: str, count: int = 3) -> bytes:
    """A PDF or TIFF of ``count`` pages, with a darker square on each."""
    pictures = []
    for number in range(count):
        picture = Image.new("L", (120, 80), 255)
        picture.paste(200 - 60 * number, (20, 20, 60, 60))
        pictures.append(picture)
    stream = io.BytesIO()
    pictures[0].save(stream, format, save_all=True, append_images=pictures[1:])
    return stream.getvalue()


def locked_pdf() -> bytes:
    """A PDF that no empty password opens."""
    lines = [
        b"1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj",
        b"2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj",
        b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 99 99]>>endobj",
        b"4 0 obj<</Filter/Standard/V 1/R 2/Length 40/P -4/O<" + b"11" * 32 + b">/U<"
        b"" + b"22" * 32 + b">>>endobj",
    ]
    body, places = b"%PDF-1.4\n", []
    for line in lines:
        places.append(len(body))
        body += line + b"\n"
    table = b"xref\n0 5\n0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % p for p in places)
    trailer = b"trailer<</Size 5/Root 1 0 R/Encrypt 4 0 R/ID[<00><00>]>>\n"
    return body + table + trailer + b"startxref\n%d\n%%%%EOF\n" % len(body)
