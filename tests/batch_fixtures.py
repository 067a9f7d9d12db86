"""Fixtures: a fake server, pictures named by their letters, and ``hmer-client recognize``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image, ImageDraw

from client.cli import main
from tests.fake_server import SERVERS, Script


@dataclass
class Fake:
    url: str
    script: Script


@pytest.fixture
def fake() -> Iterator[Fake]:
    script = Script(confidence=0.9)
    with SERVERS["http"](script) as url:
        yield Fake(url, script)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder with a.png ... e.png, their letters as content."""
    for letter in "abcde":
        (tmp_path / f"{letter}.png").write_bytes(letter.encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, data: bytes = b"") -> Result:
    return CliRunner().invoke(main, ["recognize", *arguments], input=data)


def picture(path: Path) -> bytes:
    """A picture with a cross, written to ``path``."""
    image = Image.new("L", (96, 64), 255)
    pen = ImageDraw.Draw(image)
    pen.line((20, 10, 76, 54), 0, 4)
    pen.line((76, 10, 20, 54), 0, 4)
    image.save(path)
    return path.read_bytes()
