"""Strokes for tests: a few shapes with labels and segmentation, different for each seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from hmer.ink import Stroke

CIRCLE = np.column_stack(
    [50 + 40 * np.cos(np.linspace(0, 6.3, 40)), 100 + 90 * np.sin(np.linspace(0, 6.3, 40))]
)
ONE = np.column_stack([np.full(20, 50.0), np.linspace(0, 200, 20)])
DASH = np.column_stack([np.linspace(0, 100, 20), np.full(20, 110.0)])
SHAPES: dict[str, list[np.ndarray]] = {"0": [CIRCLE], "1": [ONE], "-": [DASH], "+": [DASH, ONE]}


def writing(tokens: list[str], seed: int) -> tuple[list[Stroke], list[tuple[str, list[int]]]]:
    """Strokes of ``tokens`` side by side, with jitter, and their segmentation."""
    rng = np.random.default_rng(seed)
    strokes: list[Stroke] = []
    segments = []
    for place, token in enumerate(tokens):
        size, shift = rng.uniform(0.8, 1.2), rng.normal(0, 8, 2)
        first = len(strokes)
        for shape in SHAPES[token]:
            points = (shape - (50, 100)) * size + (place * 160, 100) + shift
            strokes.append((points + rng.normal(0, 1.5, points.shape)).astype(np.float32))
        segments.append((token, list(range(first, len(strokes)))))
    return strokes, segments


def write_pack(path: Path, count: int = 24, seed: int = 0) -> Path:
    """A stroke pack of ``count`` writings by eight writers."""
    rng = np.random.default_rng(seed)
    names = list(SHAPES)
    with path.open("w", encoding="utf-8") as stream:
        for index in range(count):
            tokens = [names[i] for i in rng.integers(0, len(names), rng.integers(1, 4))]
            strokes, segments = writing(tokens, seed * 1000 + index)
            row = {
                "id": f"w{index}",
                "writer": f"writer{index % 8}",
                "norm": " ".join(tokens),
                "segs": segments,
                "strokes": [stroke.round(1).tolist() for stroke in strokes],
            }
            stream.write(json.dumps(row) + "\n")
    return path
