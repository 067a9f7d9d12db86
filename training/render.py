"""From an example to what the network sees of it, through the project's one preprocessing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hmer import ink
from hmer.errors import DatasetError, HmerError, InputError
from hmer.preprocess import (
    Gray,
    Prepared,
    PreprocessSettings,
    decode_image,
    prepare,
    preprocess,
)
from hmer.vocab import UnknownToken, Vocabulary
from training.augment import AugmentSettings, Drawn, augment
from training.augment_image import augment_picture
from training.degrade import Degraded, degrade
from training.examples import Example, Picture


class Sample(NamedTuple):
    """A rendered example: ``image`` uint8 (H, W), ``ids`` without specials, ink per cell.

    ``cells`` int32 (n, 3): symbol class id, row, column of every feature cell with ink of
    a symbol; empty where the segmentation is unknown.
    """

    image: NDArray[np.uint8]
    ids: list[int]
    cells: NDArray[np.int32]


class Renderer:
    """Examples to samples through the project's one preprocessing."""

    def __init__(
        self, vocabulary: Vocabulary, settings: PreprocessSettings, augmentation: AugmentSettings
    ) -> None:
        self.vocabulary = vocabulary
        self.settings = settings
        self.augmentation = augmentation

    def plain(self, example: Example) -> NDArray[np.uint8]:
        """The image that serving makes of the same ink or picture: no change, no label needed."""
        gray = _read(example.picture) if example.picture else ink.render(example.strokes)
        return preprocess(gray, self.settings)

    def render(self, example: Example, rng: np.random.Generator, zoom: float = 1.0) -> Sample:
        """Render ``example`` with random changes; ``zoom`` is the scale augmentation.

        Raises ``DatasetError`` for a token that the vocabulary lacks, or a picture that can no
        longer be read.
        """
        return self.views(example, rng, zoom, 1)[0]

    def views(
        self, example: Example, rng: np.random.Generator, zoom: float = 1.0, count: int = 2
    ) -> list[Sample]:
        """``count`` pictures of one random variation of the writing: the same hand and pen.

        They differ in quality, size and place as ``AugmentSettings`` says. Raises as ``render``.
        """
        strokes: list[ink.Stroke] = []
        if example.picture:
            gray = augment_picture(_read(example.picture), self.augmentation, rng)
        else:
            placed = ink.place(example.strokes)
            drawn = augment(placed, self.augmentation, rng, ink.STROKE_HEIGHT)
            low = np.concatenate(drawn.strokes).min(axis=0)
            drawn = Drawn([s - low + np.float32(ink.MARGIN) for s in drawn.strokes], drawn.pen)
            strokes, gray = drawn.strokes, ink.draw(drawn.strokes, drawn.pen)
        return [self._seen(example, gray, strokes, rng, zoom) for _ in range(count)]

    def _seen(
        self,
        example: Example,
        gray: Gray,
        strokes: Sequence[ink.Stroke],
        rng: np.random.Generator,
        zoom: float,
    ) -> Sample:
        """One view of the drawn ``gray``, whose ink are ``strokes`` (none: not known)."""
        wanted = self.augmentation
        if wanted.jitter:
            zoom *= math.exp(rng.uniform(-wanted.jitter, wanted.jitter))
        seen = Degraded(gray, 1.0, 0.0)
        if wanted.degraded and rng.random() < wanted.degraded:
            seen = degrade(gray, rng)
        try:
            prepared = prepare(seen.gray, self.settings, zoom)
        except InputError:  # nothing is left of a faint or tiny writing: it stays as it was
            seen = Degraded(gray, 1.0, 0.0)
            prepared = prepare(gray, self.settings, zoom)
        down = right = 0
        if wanted.jitter:
            down, right = (int(n) for n in rng.integers(0, self.settings.multiple, 2))
        image = _moved(prepared.image, down, right, self.settings.multiple)
        if not strokes:
            return Sample(image, self._ids(example), np.zeros((0, 3), np.int32))
        placed = [s * np.float32(seen.scale) + np.float32(seen.shift) for s in strokes]
        origin = (
            prepared.origin[0] - right / prepared.scale,
            prepared.origin[1] - down / prepared.scale,
        )
        cells = self._cells(example, placed, prepared._replace(image=image, origin=origin))
        return Sample(image, self._ids(example), cells)

    def _ids(self, example: Example) -> list[int]:
        try:
            return self.vocabulary.encode(example.tokens)
        except UnknownToken as error:
            where = f" ({example.where})" if example.where else ""
            raise DatasetError(f"{example.name}{where}: {error}") from error

    def _cells(
        self, example: Example, strokes: Sequence[ink.Stroke], prepared: Prepared
    ) -> NDArray[np.int32]:
        stride = self.settings.multiple
        rows, columns = (length // stride for length in prepared.image.shape)
        owner = np.zeros(len(strokes), np.int64)  # the symbol of each stroke; 0: none
        for symbol, indices in example.segments:
            if symbol in self.vocabulary:
                owner[list(indices)] = self.vocabulary.encode([symbol])[0]
        points, stroke = _dense(strokes)
        points = (points - prepared.origin) * prepared.scale + prepared.margin
        x, y = (points / stride).astype(np.int64).T
        x, y = x.clip(0, columns - 1), y.clip(0, rows - 1)
        keys = np.unique((owner[stroke] * rows + y) * columns + x)
        symbols, places = np.divmod(keys, rows * columns)
        cells = np.column_stack([symbols, places // columns, places % columns])
        found: NDArray[np.int32] = cells[symbols > 0].astype(np.int32)
        return found


def _read(picture: Picture) -> Gray:
    try:
        return decode_image(picture.path.read_bytes())
    except (HmerError, OSError) as error:
        raise DatasetError(
            f"{picture.path} could be read before and now cannot: {error} Restore it and start "
            "again; the run goes on where it was saved."
        ) from error


def _dense(strokes: Sequence[ink.Stroke]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Points every few pixels along all strokes, so that no cell is missed, and whose they are."""
    points = np.concatenate(strokes).astype(np.float64)
    stroke = np.repeat(np.arange(len(strokes)), [len(s) for s in strokes])
    ahead = np.diff(points, axis=0, append=points[-1:])
    ahead[np.flatnonzero(np.diff(stroke))] = 0.0  # from one stroke to the next there is no ink
    counts = (np.hypot(ahead[:, 0], ahead[:, 1]) / 4.0).astype(np.int64) + 1
    start = np.repeat(np.arange(len(points)), counts)
    step = np.arange(len(start)) - np.repeat(np.cumsum(counts) - counts, counts)
    return points[start] + ahead[start] * (step / counts[start])[:, None], stroke[start]


def _moved(image: Gray, down: int, right: int, multiple: int) -> Gray:
    """``image`` so many pixels further on a canvas that is still a multiple: uint8 (H', W')."""
    if not down and not right:
        return image
    inked = np.argwhere(image)
    bottom, end = (inked.max(axis=0) + 1) if len(inked) else image.shape
    height = max(image.shape[0], -(-(int(bottom) + down) // multiple) * multiple)
    width = max(image.shape[1], -(-(int(end) + right) // multiple) * multiple)
    canvas = np.zeros((height, width), np.uint8)
    kept = image[: height - down, : width - right]
    canvas[down : down + kept.shape[0], right : right + kept.shape[1]] = kept
    return canvas
