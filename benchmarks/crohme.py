"""Reads a CROHME pack: one JSON object a line, gzip or plain, and the images beside it."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmer.errors import BadParameter, DatasetError, MissingDependency, MissingInput
from hmer.latex import canonical_or_same

LABELS = ("norm", "norm_wap")
STROKES, WAP_IMAGES = "strokes", "wap-images"
_PACK_ENDS = (".jsonl.gz", ".jsonl")
HELD_OUT_SHARE, HELD_OUT_SEED = 0.05, 0  # hmer-train's own


@dataclass(frozen=True)
class Expression:
    """One handwritten expression: ``truth`` in tokens, ``data`` as it is sent."""

    id: str
    truth: tuple[str, ...]
    data: bytes
    writer: str = ""  # empty where the pack does not tell


def read_pack(pack: Path, label: str = "norm", form: str = STROKES) -> list[Expression]:
    """All expressions of ``pack``, in its order.

    ``label``: the field that holds the truth, one of ``LABELS``. ``form``: ``strokes`` are sent
    as JSON ink, ``wap-images`` come as PNG from ``<pack>_wap_images.zip`` beside the pack.
    Raises ``MissingInput`` or ``DatasetError``.
    """
    images = _wap_images(pack) if form == WAP_IMAGES else None
    expressions = []
    for number, record in _records(pack):
        try:
            id_, truth = str(record["id"]), tuple(record[label].split())
            if images is None:
                data = json.dumps({"strokes": record["strokes"]}).encode("utf-8")
            else:
                data = images[id_]
        except (KeyError, TypeError, AttributeError) as error:
            raise DatasetError(
                f"Line {number} of {pack} lacks {error}. Is it a CROHME pack with the label "
                f"{label!r} and, for --input {WAP_IMAGES}, does the zip belong to it?"
            ) from None
        expressions.append(Expression(id_, truth, data, str(record.get("writer") or "")))
    if not expressions:
        raise DatasetError(f"{pack} holds no expressions.")
    return expressions


def select(
    expressions: list[Expression], ids: list[str] | None, limit: int | None
) -> list[Expression]:
    """Those with these ``ids`` (all for ``None``), at most ``limit``. Raises ``BadParameter``."""
    if ids:
        unknown = set(ids) - {expression.id for expression in expressions}
        if unknown:
            raise BadParameter(f"The pack has no expression {', '.join(sorted(unknown))}.")
        expressions = [expression for expression in expressions if expression.id in set(ids)]
    return expressions[:limit]


def held_out(expressions: list[Expression]) -> list[Expression]:
    """The part of a training pack that ``hmer-train`` holds out, for choosing settings.

    Writers and labels of it were not trained on. Give the whole pack: which expressions are
    held out depends on all. Raises ``DatasetError`` where no writer is held out, and
    ``MissingDependency`` without torch.
    """
    try:
        from training.data import Example, split_by_writer_and_label
    except ImportError as error:
        raise MissingDependency(
            "The held-out part is what training held out, and that needs torch. Install it with: "
            "pip install 'hmer[train]'"
        ) from error
    examples = [
        Example(str(index), e.writer, tuple(canonical_or_same(e.truth)), [])
        for index, e in enumerate(expressions)
    ]
    split = split_by_writer_and_label(examples, HELD_OUT_SHARE, HELD_OUT_SEED)
    if not split.held_out:
        raise DatasetError(
            "No writer of this pack is held out from training. Give a training pack, such as "
            "train.jsonl.gz, or leave out --held-out."
        )
    return [expressions[int(example.name)] for example in split.held_out]


def _records(pack: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if not pack.is_file():
        raise MissingInput(f"There is no file {pack}. Give a pack such as test_2014.jsonl.gz.")
    opened = gzip.open if pack.name.endswith(".gz") else open
    number = 0
    try:
        with opened(pack, "rt", encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, json.loads(line)
    except (OSError, EOFError, ValueError) as error:
        raise DatasetError(f"{pack} cannot be read after line {number}: {error}.") from None


def _wap_images(pack: Path) -> dict[str, bytes]:
    stem = next((pack.name.removesuffix(e) for e in _PACK_ENDS if pack.name.endswith(e)), pack.stem)
    path = pack.with_name(f"{stem}_wap_images.zip")
    if not path.is_file():
        raise MissingInput(f"The images of {pack} should be in {path}, and it is not there.")
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                Path(name).stem: archive.read(name)
                for name in archive.namelist()
                if name.endswith(".png")
            }
    except (OSError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path} cannot be read: {error}.") from None
