"""``--attention``: one picture for each formula, where the network looked token by token."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hmer.attention import draw_attention
from hmer.errors import BadParameter, InferenceFailed
from hmer.preprocess import Gray, decode, extract_ink
from hmer.recognition import AttentionMaps, Recognition

_CELL = 16  # pixels of the drawing for a position of the maps


class AttentionFiles:
    """A folder of pictures, named by the inputs."""

    def __init__(self, folder: Path) -> None:
        """Make the folder. Raises ``BadParameter``."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadParameter(f"The folder {folder} cannot be made: {error.strerror}.") from None
        self._folder = folder
        self._taken: set[str] = set()

    def add(self, name: str, data: bytes, answer: Recognition) -> Path:
        """Draw one answer. Raises ``InferenceFailed`` if it came without attention."""
        if answer.attention is None or len(answer.attention.maps) < len(answer.tokens):
            raise InferenceFailed(
                f"The server gave no attention for {name}: it is of another version of hmer."
            )
        sheet = sheet_of(data, answer.tokens, answer.attention)
        path = self.path(name)
        try:
            Image.fromarray(sheet).save(path, format="PNG")
        except OSError as error:
            raise BadParameter(f"{path} cannot be written: {error.strerror or error}.") from None
        return path

    def path(self, name: str) -> Path:
        """``scans/a b.pdf#page=2`` -> ``a_b.pdf_page_2.png``; numbered if there is such a one."""
        stem = re.sub(r"[^\w.-]+", "_", Path(name).name).strip("._-")[:100] or "input"
        unique, number = stem, 1
        while unique in self._taken:
            number += 1
            unique = f"{stem}-{number}"
        self._taken.add(unique)
        return self._folder / f"{unique}.png"


def sheet_of(data: bytes, tokens: tuple[str, ...], attention: AttentionMaps) -> NDArray[np.uint8]:
    """The contact sheet of ``hmer.attention.draw_attention`` over the picture or ink ``data``."""
    maps = attention.maps[: len(tokens)]
    size = (maps.shape[2] * _CELL, maps.shape[1] * _CELL)
    image = _window(extract_ink(decode(data)), attention.box, size)
    if not tokens:
        return np.repeat((255 - image)[:, :, None], 3, axis=2)
    return draw_attention(image, tokens, maps, _CELL)


def _window(image: Gray, box: tuple[float, float, float, float], size: tuple[int, int]) -> Gray:
    """What lies in ``box`` (left, top, right, bottom) of ``image``, at ``size`` (width, height)."""
    left, top, right, bottom = box
    x, y = (right - left) / size[0], (bottom - top) / size[1]
    if not (np.isfinite(box).all() and x > 0 and y > 0):
        raise InferenceFailed(f"The attention's box {box} is none.")
    placed = np.array([[x, 0, left + (x - 1) / 2], [0, y, top + (y - 1) / 2]])
    flags = cv2.INTER_AREA | cv2.WARP_INVERSE_MAP
    shrunk = cv2.GaussianBlur(image, (0, 0), max(x, y) / 3) if max(x, y) > 1.5 else image
    return np.asarray(cv2.warpAffine(shrunk, placed, size, flags=flags), np.uint8)
