"""``hmer-client`` as a process of its own against the real embedded Triton."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client import Recognition, Recognizer
from hmer.errors import HmerError
from hmer.ink import parse_inkml
from model_repository.server import EmbeddedServer

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "client" / "samples"
BAD = {
    "missing.png": "missing_input",
    "empty.png": "empty_input",
    "text.png": "unreadable_image",
    "truncated.png": "unreadable_image",
    "one_pixel.png": "image_too_small",
    "blank.png": "blank_image",
    "huge.png": "image_too_large",
    "broken.inkml": "bad_ink",
    "no_strokes.inkml": "bad_ink",
    "nowhere": "missing_input",  # an empty folder
}
GOOD = ["good.png", "good.jpg", "good.webp", "good.tiff", "good.bmp", "good.inkml", "good.json"]


def huge_png(side: int = 30_000) -> bytes:
    """A white picture of ``side`` x ``side`` pixels, 1 bit each, in about 100 kB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer = zlib.compressobj(1)
    row = b"\x00" + b"\xff" * ((side + 7) // 8)
    pixels = b"".join(packer.compress(row * 100) for _ in range(side // 100)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all of GOOD and BAD in it."""
    root = tmp_path_factory.mktemp("inputs")
    png, inkml = (SAMPLES / f"pythagoras.{kind}" for kind in ("png", "inkml"))
    picture = Image.open(png).convert("L")
    for name in GOOD[:5]:
        picture.save(root / name)
    (root / "good.inkml").write_bytes(inkml.read_bytes())
    strokes = [stroke.tolist() for stroke in parse_inkml(inkml.read_bytes()).strokes]
    (root / "good.json").write_text(json.dumps({"strokes": strokes}), encoding="utf-8")

    (root / "empty.png").touch()
    (root / "text.png").write_text("Dear server, this is no picture.\n", encoding="utf-8")
    (root / "truncated.png").write_bytes(png.read_bytes()[: png.stat().st_size // 2])
    Image.new("L", (1, 1), 0).save(root / "one_pixel.png")
    Image.new("L", (400, 200), 255).save(root / "blank.png")
    (root / "huge.png").write_bytes(huge_png())
    (root / "broken.inkml").write_bytes(inkml.read_bytes()[:300])
    (root / "no_strokes.inkml").write_text(
        '<ink xmlns="http://www.w3.org/2003/InkML"></ink>', encoding="utf-8"
    )
    (root / "nowhere").mkdir()
    return root


@pytest.fixture(params=["grpc", "http"])
def url(request: pytest.FixtureRequest, server: EmbeddedServer) -> str:
    return str(getattr(server.endpoints, request.param))


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """``hmer-client`` with these arguments."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from client.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


def objects(result: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_bad_inputs_among_good_ones(url: str, folder: Path) -> None:
    names = [name for pair in zip(GOOD, BAD, strict=False) for name in pair]
    names += list(BAD)[len(GOOD) :]
    result = run("recognize", *names, "--json", "--url", url, cwd=folder)
    assert result.returncode == 1
    answers = objects(result)
    assert [answer["input"] for answer in answers] == names
    for name, answer in zip(names, answers, strict=True):
        if name in BAD:
            assert answer["error"]["code"] == BAD[name], answer
            assert answer["error"]["message"].endswith(".")
        else:
            assert 0.0 <= answer["score"] <= 1.0
            assert answer["ms"] > 0
    assert result.stderr == f"error: {len(BAD)} of {len(names)} inputs failed.\n"


def test_good_inputs_alone_give_the_same(url: str, folder: Path) -> None:
    together = objects(run("recognize", *GOOD, "--json", "--url", url, cwd=folder))
    with Recognizer(url) as recognizer:
        for name, answer in zip(GOOD, together, strict=True):
            alone = recognizer.recognize(folder / name)
            assert answer["tokens"] == list(alone.tokens)
            assert answer["latex"] == alone.latex
            assert answer["score"] == pytest.approx(alone.score, rel=1e-4)
    # lossless pictures of the same pixels, and ink as InkML or JSON
    by_name = {answer["input"]: answer["tokens"] for answer in together}
    assert by_name["good.png"] == by_name["good.bmp"] == by_name["good.tiff"]
    assert by_name["good.inkml"] == by_name["good.json"]


def test_both_wires_give_the_same(server: EmbeddedServer, folder: Path) -> None:
    answers: list[list[Recognition | HmerError]] = []
    for url in (server.endpoints.grpc, server.endpoints.http):
        with Recognizer(url) as recognizer:
            answers.append(list(recognizer.recognize_many(folder / name for name in GOOD)))
    for a, b in zip(*answers, strict=True):
        assert isinstance(a, Recognition)
        assert isinstance(b, Recognition)
        assert (a.latex, a.tokens, a.alternatives) == (b.latex, b.tokens, b.alternatives)
        assert a.score == pytest.approx(b.score, rel=1e-4)


def test_arrays_and_strokes(url: str, folder: Path) -> None:
    pixels = np.array(Image.open(folder / "good.png"))
    strokes = json.loads((folder / "good.json").read_text(encoding="utf-8"))["strokes"]
    with Recognizer(url) as recognizer:
        assert (
            recognizer.recognize(pixels).tokens == recognizer.recognize(folder / "good.png").tokens
        )
        assert (
            recognizer.recognize(strokes).tokens
            == recognizer.recognize(folder / "good.json").tokens
        )


def test_plain_output(url: str, folder: Path) -> None:
    (expected,) = objects(run("recognize", "good.png", "--json", "--url", url, cwd=folder))
    result = run("recognize", "good.png", "--url", url, cwd=folder)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == expected["latex"] + "\n"


def test_a_whole_folder(url: str) -> None:
    result = run("recognize", str(SAMPLES), "--json", "--url", url, cwd=ROOT)
    assert (result.returncode, result.stderr) == (0, "")
    files = {str(path) for path in SAMPLES.iterdir() if path.suffix in (".png", ".jpg", ".inkml")}
    assert {answer["input"] for answer in objects(result)} == files
    assert len(files) >= 12


def test_unknown_model_and_version(url: str, folder: Path) -> None:
    for options, words in (
        (["--model", "nosuch"], "no model 'nosuch'"),
        (["--model-version", "99"], "no version 99 of the model 'recognize'"),
    ):
        result = run("recognize", "good.png", *options, "--json", "--url", url, cwd=folder)
        assert result.returncode == 1
        (answer,) = objects(result)
        assert answer["error"]["code"] == "unknown_model"
        assert words in answer["error"]["message"]


def test_a_model_with_other_tensors(url: str, folder: Path) -> None:
    for model in ("encoder", "preprocess"):
        result = run("recognize", "good.png", "--model", model, "--url", url, cwd=folder)
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr.startswith("error: ")
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize("scheme", ["", "http://"])
def test_a_server_that_is_down(scheme: str, folder: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: refused
        url = f"{scheme}127.0.0.1:{unused.getsockname()[1]}"
        result = run("recognize", "good.png", "missing.png", "--json", "--url", url, cwd=folder)
        health = run("health", "--url", url, cwd=folder)
    assert result.returncode == 1
    down, missing = objects(result)
    assert down["error"]["code"] == "server_unavailable"
    assert url in down["error"]["message"]
    assert "hmer-serve" in down["error"]["message"]
    assert missing["error"]["code"] == "missing_input"
    assert health.returncode == 1
    assert health.stdout == ""
    assert health.stderr.startswith(f"error: No server answers at {url}")


def test_the_wrong_port_is_explained(server: EmbeddedServer, folder: Path) -> None:
    crossed = {
        f"127.0.0.1:{server.endpoints.http_port}": "write http://",
        f"http://127.0.0.1:{server.endpoints.grpc_port}": "without http://",
    }
    for url, hint in crossed.items():
        result = run("recognize", "good.png", "--url", url, cwd=folder)
        assert result.returncode == 1
        assert hint in result.stderr


def test_health(url: str, folder: Path) -> None:
    result = run("health", "--json", "--url", url, cwd=folder)
    assert (result.returncode, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert document["live"]
    assert document["ready"]
    states = {model["name"]: model["state"] for model in document["models"]}
    assert {"recognize", "preprocess", "encoder", "decode"} <= set(states)
    assert set(states.values()) == {"READY"}
