"""A rival's process: started, asked line by line (``benchmarks.rival_worker``), and ended."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import selectors
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2

from hmer import ink
from hmer.errors import InferenceFailed, MissingDependency
from hmer.latex import canonical_or_same, tokenize

IMAGE, STROKES = "image", "strokes"
_START_S, _ANSWER_S = 120.0, 120.0
_WORKER = Path(__file__).with_name("rival_worker.py")

Tokens = tuple[str, ...]


@dataclass(frozen=True)
class Rival:
    """``name``: of the distribution. ``takes``: what it reads. ``install``: arguments of pip, a
    call each."""

    name: str
    takes: str
    install: tuple[str, ...]
    about: str

    def how(self, python: str | None) -> str:
        """The command that installs it for the interpreter ``python``."""
        pip = f"{python} -m pip" if python else "pip"
        return " && ".join(f"{pip} install {arguments}" for arguments in self.install)


RIVALS = (
    Rival(
        "pmsh-ocr",
        IMAGE,
        # Its dependency opencv-python and ours, the headless one, are the same modules.
        ("--no-deps pmsh-ocr",),
        "encoder with CTC, 18 symbols, 23 MB of ONNX in the wheel",
    ),
    Rival(
        "mathnote-ocr",
        STROKES,
        # Beside the PyTorch that is there; pip would replace it by a CUDA build.
        ("--no-deps mathnote-ocr 'torchvision==0.28.*'", "pyyaml ziamath"),
        "stroke grouping, classifier and tree parser, 1.2 M parameters, 8.5 MB in the wheel",
    ),
)


@dataclass(frozen=True)
class Ready:
    """What a rival said of itself when it was loaded."""

    version: str
    license: str
    load_s: float
    tokens: frozenset[str]
    python: str


class RivalProcess:
    """A loaded rival in its own process; a context manager that ends it."""

    def __init__(self, rival: Rival, python: str | None = None) -> None:
        """Start it with the interpreter ``python`` (default: this one).

        Raises ``MissingDependency`` if the rival is not installed there, and ``InferenceFailed``
        if it doesn't load.
        """
        self.rival = rival
        command = [python or sys.executable, "-I", str(_WORKER), rival.name]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # What the product is measured with; nothing of this is the rival's own choice.
                env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            )
        except OSError as error:
            raise MissingDependency(
                f"{command[0]} cannot be started: {error.strerror}. Give an interpreter with "
                "--python."
            ) from error
        try:
            self.ready = self._loaded(python)
        except BaseException:
            self.close()
            raise

    def _loaded(self, python: str | None) -> Ready:
        found = self._line(_START_S)
        if (said := found.get("error")) is None:
            own = frozenset(t for token in found["tokens"] for t in tokenize(token))
            return Ready(found["version"], found["license"], found["load_s"], own, found["python"])
        if found.get("missing"):
            raise MissingDependency(
                f"{self.rival.name} is not installed ({found['missing']} is missing). "
                f"To have it: {self.rival.how(python)}"
            )
        raise InferenceFailed(f"{self.rival.name} does not load: {said}")

    def read(self, data: bytes) -> tuple[Tokens | None, float | None]:
        """Tokens and seconds for the ink in ``data``; ``None`` where the rival failed.

        Raises ``InferenceFailed`` if its process is gone or says nothing.
        """
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(as_input(self.rival, data)).encode() + b"\n")
            stdin.flush()
        except OSError:
            raise InferenceFailed(f"{self.rival.name} ended by itself.") from None
        found = self._line(_ANSWER_S)
        if "error" in found:
            return None, None
        return tuple(canonical_or_same(tokenize(found["latex"]))), float(found["seconds"])

    def _line(self, timeout: float) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        with selectors.DefaultSelector() as waiting:
            waiting.register(stdout, selectors.EVENT_READ)
            if not waiting.select(timeout):
                raise InferenceFailed(f"{self.rival.name} said nothing for {timeout:.0f} s.")
        line = stdout.readline()
        if not line:
            raise InferenceFailed(f"{self.rival.name} ended by itself.")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # a line that nobody read
                    stream.close()

    def __enter__(self) -> RivalProcess:
        """The rival itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


def as_input(rival: Rival, data: bytes) -> dict[str, Any]:
    """Ink (JSON strokes) as the rival takes it: its points, or drawn black on white as PNG."""
    strokes = ink.parse_strokes(data).strokes
    if rival.takes == STROKES:
        return {STROKES: [stroke.tolist() for stroke in strokes]}
    return {IMAGE: base64.b64encode(drawn(data)).decode("ascii")}


def drawn(data: bytes) -> bytes:
    """Ink (JSON strokes) as a PNG, black on white."""
    picture: Any = cv2.imencode(".png", 255 - ink.render(ink.parse_strokes(data).strokes))[1]
    return bytes(picture.tobytes())
