"""The pictures that are sent while something is timed: real ones, with their real lengths."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from benchmarks.crohme import STROKES, WAP_IMAGES, Expression, read_pack, select
from hmer import ink
from hmer.errors import BadParameter, MissingInput

PNG = "png"
FORMS = (PNG, STROKES, WAP_IMAGES)
ORDER_SEED = 20  # the order of the pictures; one, so that every contender gets the same


def gather(data: Path | None, form: str = PNG, limit: int | None = None) -> list[Expression]:
    """``limit`` expressions of the pack ``data``, evenly over it, or the project's samples.

    ``form``: what is sent of a pack's expression, its strokes drawn as a PNG or one of
    ``benchmarks.crohme``'s. Raises ``MissingInput`` or ``DatasetError``.
    """
    sent = STROKES if form == PNG else form
    found = _samples() if data is None else read_pack(data, form=sent)
    if limit is not None and limit < len(found):
        found = [found[index * len(found) // limit] for index in range(limit)]
    if data is not None and form == PNG:
        found = [replace(item, data=_png(item.data)) for item in found]
    return found


def shuffled(count: int) -> list[int]:
    """0 to ``count`` - 1 in the fixed random order: long and short formulas mixed."""
    return [int(i) for i in np.random.default_rng(ORDER_SEED).permutation(count)]


def shortest(expressions: Sequence[Expression], tokens: int) -> list[int]:
    """Indices of the expressions of up to ``tokens`` tokens, or else of the shortest ones."""
    lengths = [len(e.truth) for e in expressions]
    bound = max(tokens, min(lengths))
    return [index for index, length in enumerate(lengths) if length <= bound]


def numbers(text: str, option: str, kind: type[int] | type[float] = int) -> list[float]:
    """``1,2,4`` as positive numbers of ``kind``. Raises ``BadParameter``."""
    try:
        found = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found or min(found) <= 0:
        raise BadParameter(
            f"{option} is {text!r}; give positive numbers, separated by commas, such as 1,4,16."
        )
    return [float(value) for value in found]


def _samples() -> list[Expression]:
    folder = Path(__file__).resolve().parent.parent / "client" / "samples"
    path = folder / "samples.json"
    if not path.is_file():
        raise MissingInput(f"There is no {path}. Give pictures with --data PACK.")
    found = []
    for entry in json.loads(path.read_text(encoding="utf-8")):
        picture = folder / next(n for n in entry["files"] if not n.endswith(".inkml"))
        found.append(Expression(entry["name"], tuple(entry["tokens"]), picture.read_bytes()))
    return select(found, None, None)


def _png(strokes: bytes) -> bytes:
    drawn = ink.render(ink.parse_strokes(strokes).strokes)
    done, encoded = cv2.imencode(".png", drawn)
    if not done:
        raise BadParameter("A drawing could not be written as PNG.")
    return encoded.tobytes()
