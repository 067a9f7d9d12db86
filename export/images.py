"""The images that parity is checked on: samples, pictures of the user, handwriting of a pack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from hmer import ink
from hmer.errors import ExportError, HmerError
from hmer.preprocess import PreprocessSettings, load, preprocess
from training.data import Example, pack_of, read_pack, split_by_writer_and_label

T = TypeVar("T")
Images = dict[str, NDArray[np.uint8]]
Progress = Callable[[int, int], None]  # done, in all

SAMPLES = Path(__file__).resolve().parent.parent / "client" / "samples"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".inkml")
HELD_OUT = 64  # writings of a training pack's held-out part, unless told otherwise


def gather(
    settings: PreprocessSettings,
    folder: Path | None,
    data: Sequence[Path] | None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Images:
    """Preprocessed images by name, uint8 (H, W).

    The pictures in ``folder``; writings of the stroke packs in ``data``: all of a file, the
    held-out part of a folder's training pack (at most ``HELD_OUT``), or at most ``limit`` of
    either, evenly over their order. The project's samples, unless a ``folder`` or a file is
    given. Raises ``ExportError`` or ``DatasetError`` for what cannot be used.
    """
    found: Images = {}
    if folder is not None:
        if not folder.is_dir():
            raise ExportError(
                f"There is no folder {folder}. Give a folder of pictures with --images."
            )
        found = _pictures(folder, settings)
        if not found:
            raise ExportError(f"There are no pictures or ink files in {folder}.")
    elif not any(path.is_file() for path in data or ()):
        found = _pictures(SAMPLES, settings)
    for path in data or ():
        for done, example in enumerate(examples := _writings(path, limit), 1):
            name = example.name if example.name not in found else f"{path.name}:{example.name}"
            found[name] = preprocess(ink.render(example.strokes), settings)
            if progress is not None:
                progress(done, len(examples))
    return found


def _writings(path: Path, limit: int | None) -> Sequence[Example]:
    examples: Sequence[Example] = read_pack(pack_of(path))
    if path.is_dir():
        examples, limit = split_by_writer_and_label(examples).held_out, limit or HELD_OUT
    return spread(examples, limit or len(examples))


def spread(items: Sequence[T], count: int) -> list[T]:
    """``count`` of ``items`` (or all, if there are fewer), evenly over their order."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def _pictures(folder: Path, settings: PreprocessSettings) -> Images:
    found = {}
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in (path for path in paths if path.suffix.lower() in SUFFIXES):
        try:
            found[path.name] = load(path.read_bytes(), settings)
        except (HmerError, OSError) as error:
            raise ExportError(f"{path} cannot be compared on: {error}") from error
    return found
