"""What was answered, kept in a file, so that a batch that was broken off goes on where it stopped.

The file has a JSON line for each answered input, as ``--json`` prints it, and with it the options
that it was asked with and a stamp of the file's content. Inputs without an answer aren't in it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from client.items import Item
from client.output import as_object
from hmer.errors import BadParameter, HmerError
from hmer.recognition import Alternative, Recognition


class Journal:
    """A context manager around the file; the answers of an earlier run are read on entering."""

    def __init__(self, path: Path, asked: Mapping[str, object]) -> None:
        """``asked``: what an answer depends on, beside the input; an answer to anything else is
        not taken."""
        self._path, self._asked = path, dict(asked)
        self._known: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Journal:
        """Read what is there. Raises ``BadParameter`` for a file of something else."""
        try:
            self._read()
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise BadParameter(
                f"{self._path} cannot be used to go on from ({error.strerror or error})."
            ) from None
        return self

    def _read(self) -> None:
        if not self._path.exists():
            return
        data = self._path.read_bytes()
        *lines, rest = data.decode("utf-8", errors="replace").split("\n")
        for number, line in enumerate(lines, 1):
            if line.strip():
                self._take(line, number)
        if rest:  # the program was killed while it wrote: the line is not whole
            with self._path.open("r+b") as stream:
                stream.truncate(data.rfind(b"\n") + 1)

    def _take(self, line: str, number: int) -> None:
        try:
            document = json.loads(line)
            name = document["input"]
            if "error" in document:
                return
            _answer(document)
        except (ValueError, KeyError, TypeError):
            raise BadParameter(
                f"Line {number} of {self._path} is not an answer, so the file is none to go on "
                "from. Give one that an earlier run wrote with --resume, or a new name."
            ) from None
        self._known[str(name)] = document

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # every answer was written out, or its failure told
            self._file.close()

    def answer(self, item: Item) -> Recognition | None:
        """The answer of an earlier run to the same input and question."""
        document = self._known.get(item.name)
        if document is None or item.name == "-":  # nobody knows what came from there
            return None
        if document.get("asked", self._asked) != self._asked:
            return None
        return _answer(document) if document.get("stamp", item.stamp) == item.stamp else None

    def keep(self, item: Item, outcome: Recognition | HmerError) -> None:
        """Write an answer down, at once. Raises ``BadParameter`` where that is not possible."""
        if isinstance(outcome, HmerError):
            return
        document = as_object(item.name, outcome) | {"stamp": item.stamp, "asked": self._asked}
        try:
            self._file.write(json.dumps(document) + "\n")
            self._file.flush()
        except OSError as error:
            raise BadParameter(
                f"{self._path} cannot be written ({error.strerror or error}). What is in it is "
                "whole: make room, and the same command goes on from it."
            ) from None


def _answer(document: dict[str, Any]) -> Recognition:
    best = _alternative(document)
    confidence = document.get("confidence")
    return Recognition(
        best.latex,
        best.tokens,
        best.score,
        tuple(map(_alternative, document["alternatives"])),
        None if confidence is None else float(confidence),
        {"request": float(document["ms"])},
    )


def _alternative(document: dict[str, Any]) -> Alternative:
    tokens = tuple(map(str, document["tokens"]))
    return Alternative(str(document["latex"]), tokens, float(document["score"]))
