r"""New expressions from segmented ones: other hands, other symbols, other halves.

The segmentation of the ink (which strokes are which symbol) allows three changes that keep
ink and label consistent, drawn before the geometric augmentation (``training.augment``):

* **swap**: a symbol's ink is replaced by the same symbol from another expression;
* **rename**: every occurrence of one symbol becomes another of its kind (``n`` for ``m``,
  never ``B`` for ``m``: relative height tells some cases apart), rare ones more often;
* **cross**: two expressions are cut at an operator of their outermost row and the left part
  of one is joined to the right part of the other, or one part is taken alone;
* **jitter**: every symbol gets a size and a place of its own.

Cutting and recombining follows Le, Indurkhya and Nakagawa, "Pattern generation strategies
for improving recognition of handwritten mathematical expressions" (2019). An expression
whose symbols and label do not match, or that has no segmentation, is left as it is.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hmer.ink import Stroke
from training.cutting import Cut, box_of, find_cuts, join, matches, part
from training.data import Example

# Symbols that may stand for each other in ink of the same box.
KINDS = (
    (*"acemnorsuvwxz", "\\alpha", "\\pi", "\\sigma"),
    (*"bdhkltABCEFGHILMNPRSTVXY0123456789i", "\\theta", "\\lambda", "\\Delta"),
    (*"fgjpqy", "\\beta", "\\gamma", "\\mu", "\\phi"),
    ("=", "\\neq", "\\leq", "\\geq", "<", ">", "\\rightarrow", "\\in"),
    ("+", "\\times", "\\div", "\\pm"),
    ("\\sin", "\\cos", "\\tan", "\\log"),
)
# Their ink spans other symbols, or is a line whose length means something.
FIXED = frozenset({"-", "\\sqrt", "\\frac", "\\ldots", "\\cdots", "\\lim"})
_TRIES = 6


@dataclass(frozen=True)
class RecombineSettings:
    """Probabilities: ``cross`` and ``rename`` an expression, ``swap`` a symbol.

    ``scale`` and ``shift`` are the standard deviations of every symbol's log size and of its
    displacement in heights of itself.
    ``alone`` is the share of crossings that keep one part only. A joined expression is at most
    ``wider`` times as wide and as tall as the first one, because batches are planned by it, and
    has at most ``tokens`` tokens.
    """

    cross: float = 0.35
    alone: float = 0.25
    rename: float = 0.25
    swap: float = 0.15
    scale: float = 0.1
    shift: float = 0.04
    wider: float = 1.15
    tokens: int = 70


class Recombiner:
    """Draws variations of ``examples``; what it needs of an example is found when needed."""

    def __init__(self, examples: Sequence[Example], settings: RecombineSettings) -> None:
        self.settings = settings
        self.examples = [e for e in examples if matches(e)]
        self._places = {id(example): index for index, example in enumerate(self.examples)}
        self._writings: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        for index, example in enumerate(self.examples):
            for place, (symbol, _) in enumerate(example.segments):
                self._writings[symbol].append((index, place))
        self._cuts = functools.cache(self._find_cuts)

    def draw(self, example: Example, rng: np.random.Generator) -> Example:
        """A variation of ``example``, one of those given: strokes, segments and tokens agree."""
        settings = self.settings
        if id(example) not in self._places:
            return example
        if rng.random() < settings.cross:
            example = self._cross(example, rng)
        if rng.random() < settings.rename:
            example = self._rename(example, rng)
        return self._jitter(self._swap(example, rng), rng)

    # Crossing

    def _find_cuts(self, index: int) -> tuple[Cut, ...]:
        return tuple(find_cuts(self.examples[index]))

    def _cross(self, example: Example, rng: np.random.Generator) -> Example:
        own = self._cuts(self._places[id(example)])
        if not own:
            return example
        cut = own[rng.integers(len(own))]
        if rng.random() < self.settings.alone:
            return part(example, cut, bool(rng.integers(2)))
        size = _span(example.strokes)
        for _ in range(_TRIES):
            index = int(rng.integers(len(self.examples)))
            cuts = self._cuts(index)
            if not cuts:
                continue
            joined = join(example, cut, self.examples[index], cuts[rng.integers(len(cuts))])
            fits = (_span(joined.strokes) <= self.settings.wider * size).all()
            if fits and len(joined.tokens) <= self.settings.tokens:
                return joined
        return example

    # Other symbols, other hands

    def _rename(self, example: Example, rng: np.random.Generator) -> Example:
        present = sorted({symbol for symbol, _ in example.segments if _kind(symbol)})
        if not present:
            return example
        old = present[rng.integers(len(present))]
        choices = [s for s in _kind(old) if s != old and self._writings.get(s)]
        if not choices:
            return example
        weights = np.array([len(self._writings[s]) for s in choices]) ** -0.5
        new = choices[rng.choice(len(choices), p=weights / weights.sum())]
        replaced = {}
        for place, (symbol, _) in enumerate(example.segments):
            if symbol == old:
                ink = self.written(new, self._ink(example, place), rng)
                if ink is None:
                    return example
                replaced[place] = (new, ink)
        tokens = tuple(new if token == old else token for token in example.tokens)
        return replace(_with_ink(example, replaced), tokens=tokens)

    def _swap(self, example: Example, rng: np.random.Generator) -> Example:
        replaced = {}
        chosen = rng.random(len(example.segments)) < self.settings.swap
        for place in np.flatnonzero(chosen).tolist():
            symbol = example.segments[place][0]
            if symbol in FIXED:
                continue
            ink = self.written(symbol, self._ink(example, place), rng)
            if ink is not None:
                replaced[place] = (symbol, ink)
        return _with_ink(example, replaced) if replaced else example

    def _jitter(self, example: Example, rng: np.random.Generator) -> Example:
        count = len(example.segments)
        scales = np.exp(rng.normal(0.0, self.settings.scale, count))
        shifts = rng.normal(0.0, self.settings.shift, (count, 2))
        strokes = list(example.strokes)
        for (symbol, indices), scale, shift in zip(example.segments, scales, shifts, strict=True):
            if symbol in FIXED:
                continue
            low, size = box_of([strokes[i] for i in indices])
            centre = low + size / 2
            offset = centre * (1.0 - scale) + shift * size.max()
            for i in indices:
                strokes[i] = (strokes[i] * scale + offset).astype(np.float32)
        return replace(example, strokes=strokes)

    @staticmethod
    def _ink(example: Example, place: int) -> list[Stroke]:
        return [example.strokes[i] for i in example.segments[place][1]]

    def count(self, symbol: str) -> int:
        """How many writings of ``symbol`` there are."""
        return len(self._writings[symbol]) if symbol in self._writings else 0

    def written(
        self, symbol: str, where: list[Stroke], rng: np.random.Generator
    ) -> list[Stroke] | None:
        """Another writing of ``symbol`` fitted to the box of ``where``; ``None`` if none fits."""
        for _ in range(_TRIES if self.count(symbol) else 0):
            index, place = self._writings[symbol][rng.integers(len(self._writings[symbol]))]
            fitted = fit(self._ink(self.examples[index], place), where)
            if fitted is not None:
                return fitted
        return None


def recombination(
    settings: RecombineSettings, examples: Sequence[Example]
) -> Callable[[Example, np.random.Generator], Example]:
    """``Recombiner.draw`` for ``examples``: made anew in every process that makes batches."""
    return Recombiner(examples, settings).draw


def fit(ink: Sequence[Stroke], where: Sequence[Stroke]) -> list[Stroke] | None:
    """``ink`` scaled and moved into the box of ``where``; ``None`` if its shape is too unlike.

    The height (of flat symbols, the width) becomes that of the box; the other side is squeezed
    by a third at most.
    """
    low, size = box_of(ink)
    to_low, to_size = box_of(where)
    size, to_size = np.maximum(size, 8.0), np.maximum(to_size, 8.0)
    scale = np.empty(2)
    main = 0 if to_size[0] > 2 * to_size[1] else 1
    scale[:] = to_size[main] / size[main]
    ratio = to_size[1 - main] / (size[1 - main] * scale[1 - main])
    if not 0.55 < ratio < 2.5:
        return None
    scale[1 - main] *= min(1.0, max(ratio, 0.7))
    offset = to_low + to_size / 2 - (low + size / 2) * scale
    return [(stroke * scale + offset).astype(np.float32) for stroke in ink]


def _with_ink(example: Example, replaced: dict[int, tuple[str, list[Stroke]]]) -> Example:
    """``example`` with other symbols and ink at some places."""
    strokes: list[Stroke] = []
    segments = []
    for place, (symbol, indices) in enumerate(example.segments):
        name, ink = replaced.get(place, (symbol, [example.strokes[i] for i in indices]))
        segments.append((name, tuple(range(len(strokes), len(strokes) + len(ink)))))
        strokes += ink
    return replace(example, strokes=strokes, segments=tuple(segments))


@functools.cache
def _kind(symbol: str) -> tuple[str, ...]:
    return next((kind for kind in KINDS if symbol in kind), ())


def _span(strokes: Sequence[Stroke]) -> NDArray[np.float64]:
    return np.maximum(box_of(strokes)[1], 100.0)
