"""The images that parity is checked on: samples, pictures of the user, held-out handwriting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hmer import ink
from hmer.errors import ExportError, HmerError
from hmer.preprocess import PreprocessSettings, load, preprocess
from training.data import Example, pack_of, read_pack, split_by_writer_and_label

Images = dict[str, NDArray[np.uint8]]

SAMPLES = Path(__file__).resolve().parent.parent / "client" / "samples"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".inkml")


def gather(
    settings: PreprocessSettings, folder: Path | None, data: Path | None, limit: int
) -> Images:
    """Preprocessed images by name: the pictures in ``folder`` (default: the project's samples)
    and at most ``limit`` held-out writings of the stroke packs in ``data``.

    Raises ``ExportError`` or ``DatasetError`` for a folder or file that cannot be used.
    """
    if folder is not None and not folder.is_dir():
        raise ExportError(f"There is no folder {folder}. Give a folder of pictures with --images.")
    found = _pictures(SAMPLES if folder is None else folder, settings)
    if folder is not None and not found:
        raise ExportError(f"There are no pictures or ink files in {folder}.")
    if data is not None:
        held_out = split_by_writer_and_label(read_pack(pack_of(data))).held_out
        for example in _spread(held_out, limit):
            found[example.name] = preprocess(ink.render(example.strokes), settings)
    return found


def _pictures(folder: Path, settings: PreprocessSettings) -> Images:
    found = {}
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in (path for path in paths if path.suffix.lower() in SUFFIXES):
        try:
            found[path.name] = load(path.read_bytes(), settings)
        except (HmerError, OSError) as error:
            raise ExportError(f"{path} cannot be compared on: {error}") from error
    return found


def _spread(examples: Sequence[Example], limit: int) -> Sequence[Example]:
    """At most ``limit`` of ``examples``, evenly over their order."""
    step = max(1, -(-len(examples) // limit))
    return examples[::step]
