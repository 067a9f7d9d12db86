"""A batch of two-dimensional maps of unlike sizes, contiguous whatever its padded size is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class PaddedRows:
    """Rows (height, width, *channels), padded with zeros to a common ``layout`` (height, width).

    One flat buffer holds them, so that the first n rows are contiguous in any layout; when the
    layout changes, the rows that stay are moved within the buffer.
    """

    def __init__(self, channels: tuple[int, ...], dtype: DTypeLike) -> None:
        """``channels``: the axes after height and width, may be none."""
        self.channels = channels
        self.layout = (0, 0)
        self._flat: NDArray[Any] = np.zeros(0, dtype)

    def view(self, count: int) -> NDArray[Any]:
        """The first ``count`` rows: (count, height, width, *channels), contiguous, no copy."""
        return self._rows(self._flat, count)

    def lay_out(
        self, layout: tuple[int, int], count: int, kept: Iterable[tuple[int, int, int]]
    ) -> None:
        """Make room for ``count`` rows of ``layout``; ``kept`` lists (row, height, width).

        Rows that are not kept hold anything afterwards: ``put`` them before use.
        """
        need = count * math.prod(layout) * math.prod(self.channels)
        if layout == self.layout and need <= self._flat.size:
            return
        old = self._rows(self._flat)
        grows = math.prod(layout) >= math.prod(self.layout)
        self.layout = layout
        if need > self._flat.size:
            self._flat = np.zeros(need + need // 4, self._flat.dtype)
        new = self._rows(self._flat)
        # In the same buffer a row's new place may overlap its neighbours' old ones, towards the
        # end if rows grow: the last first, then, and otherwise the first.
        for row, height, width in sorted(kept, reverse=grows):
            content = old[row, :height, :width].copy()
            new[row] = 0
            new[row, :height, :width] = content

    def put(self, row: int, content: NDArray[Any] | None) -> None:
        """Write ``content`` (h, w, *channels) into a row, zeros around it; ``None``: all zeros."""
        target = self._rows(self._flat)[row]
        if content is None:
            target[...] = 0
            return
        height, width = content.shape[:2]
        target[height:] = 0
        target[:height, width:] = 0
        target[:height, :width] = content

    def move(self, source: int, target: int) -> None:
        """Copy a row over another."""
        rows = self._rows(self._flat)
        rows[target] = rows[source]

    def _rows(self, flat: NDArray[Any], count: int | None = None) -> NDArray[Any]:
        """``flat`` as rows of the present layout: ``count`` of them, or as many as it holds."""
        size = math.prod(self.layout) * math.prod(self.channels)
        if count is None:
            count = flat.size // size if size else 0
        return flat[: count * size].reshape(count, *self.layout, *self.channels)
