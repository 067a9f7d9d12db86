"""Encoded images as one padded batch of the step's first feeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmer.vocab import SOS_ID


def padded(rows: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """The step's first feeds for ``rows`` of encoder outputs, padded to the largest."""
    height = max(row["values"].shape[0] for row in rows)
    width = max(row["values"].shape[1] for row in rows)
    feeds: dict[str, NDArray[Any]] = {}
    for name in ("values", "keys"):
        channels = rows[0][name].shape[2]
        feeds[name] = np.zeros((len(rows), height, width, channels), np.float32)
        for target, row in zip(feeds[name], rows, strict=True):
            target[: row[name].shape[0], : row[name].shape[1]] = row[name]
    feeds["feature_size"] = np.stack([row["feature_size"] for row in rows])
    feeds["state"] = np.stack([row["state"] for row in rows])
    feeds["coverage"] = np.zeros((len(rows), height, width), np.float32)
    feeds["token"] = np.full((len(rows), 1), SOS_ID, np.int32)
    return feeds
