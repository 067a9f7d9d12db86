"""Augmentation of ink, strictly before preprocessing: what another hand might have written.

Everything here takes and returns strokes (float32 (n, 2), y down) in pixels as placed by
``hmer.ink.place``; only the scale augmentation is a number handed to ``hmer.preprocess``,
because preprocessing would undo a change of size made before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hmer.ink import Stroke


@dataclass(frozen=True)
class AugmentSettings:
    """Ranges of the random changes; symmetric ones give the half width.

    ``zoom``: scale augmentation (Li et al., 2020), drawn once a batch by ``plan_epoch``.
    ``aspect``: log of the horizontal stretch. ``shear``: slant, dx per dy. ``rotation``: degrees.
    ``stroke_shift``: standard deviation of each stroke's own displacement and ``wobble`` the
    amplitude of a smooth distortion, both as a fraction of the writing's height. ``pens``: pen
    widths in pixels. ``degraded``: share of pictures that lose quality (``training.degrade``).
    ``jitter``: log of each picture's own zoom; above 0 it is also moved on the grid of features.
    """

    zoom: tuple[float, float] = (0.65, 1.15)
    aspect: float = 0.15
    shear: float = 0.25
    rotation: float = 3.0
    stroke_shift: float = 0.02
    wobble: float = 0.03
    pens: tuple[int, ...] = (2, 3, 3, 4, 4, 5, 6)
    degraded: float = 0.0
    jitter: float = 0.0

    def times(self, factor: float) -> AugmentSettings:
        """The same with ``factor`` times the stretch, slant, rotation and distortions."""
        names = ("aspect", "shear", "rotation", "stroke_shift", "wobble")
        return replace(self, **{name: factor * getattr(self, name) for name in names})


@dataclass(frozen=True)
class Drawn:
    """One augmented writing: strokes and pen width in pixels."""

    strokes: list[Stroke]
    pen: int


def augment(
    strokes: Sequence[Stroke], settings: AugmentSettings, rng: np.random.Generator, height: float
) -> Drawn:
    """Draw one random variation of ``strokes`` whose typical height is ``height`` pixels."""
    stretch = math.exp(rng.uniform(-settings.aspect, settings.aspect))
    shear = rng.uniform(-settings.shear, settings.shear)
    angle = math.radians(rng.uniform(-settings.rotation, settings.rotation))
    cosine, sine = math.cos(angle), math.sin(angle)
    matrix = np.array([[cosine, -sine], [sine, cosine]]) @ np.array([[stretch, shear], [0, 1]])
    wave = settings.wobble * height
    phases = rng.uniform(0, 2 * math.pi, 4)
    periods = rng.uniform(2.0, 6.0, 4) * height
    amplitudes = rng.uniform(0.0, wave, 4)
    lengths = [len(stroke) for stroke in strokes]
    points = np.concatenate(strokes).astype(np.float64) @ matrix.T
    shifts = rng.normal(0.0, settings.stroke_shift * height, (len(strokes), 2))
    points += np.repeat(shifts, lengths, axis=0)
    offsets = amplitudes * np.sin(2 * math.pi * points[:, [0, 1, 0, 1]] / periods + phases)
    points += offsets[:, [0, 2]] + offsets[:, [1, 3]]
    changed = np.split(points.astype(np.float32), np.cumsum(lengths)[:-1])
    return Drawn(changed, int(rng.choice(settings.pens)))
