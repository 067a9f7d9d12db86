"""The attention of a formula's tokens, traced while they are decoded.

Decoding takes k tokens a call, which gives the sum of their attention. So the tokens are fed once
more, one a call, to a graph that can do that (``hmer.attention``): beside the decoding, which goes
on at its own pace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmer.attention import Maps, one_token_step
from hmer.decode_types import EncodedImage
from hmer.vocab import SOS_ID

Array = NDArray[Any]


class AttentionFollower:
    """Follows the tokens of one image. Not for several threads at a time."""

    def __init__(
        self, run: Callable[[dict[str, Array]], Any], encoded: EncodedImage, beam: bool
    ) -> None:
        """``run`` takes the tensors of ``decoder_beam`` if ``beam``, else of a step of k = 1."""
        self._step = one_token_step(run, encoded, beam)
        self._state: Array = encoded.state[None].astype(np.float32)
        self._coverage: Array = np.zeros((1, *encoded.values.shape[:2]), np.float32)
        self._token = SOS_ID
        self._maps: list[Array] = []

    @property
    def maps(self) -> Maps:
        """All tokens' maps so far: float32 (T, h, w), each of sum 1."""
        shape = self._coverage.shape[1:]
        return np.stack(self._maps) if self._maps else np.zeros((0, *shape), np.float32)

    def follow(self, ids: Sequence[int]) -> Maps:
        """The maps of the next tokens: float32 (len(ids), h, w). Raises ``InferenceFailed``."""
        for index in ids:
            _, _, self._state, after = self._step(self._token, self._state, self._coverage)
            self._maps.append((after[0] - self._coverage[0]).astype(np.float32))
            self._coverage, self._token = after, index
        return self.maps[len(self._maps) - len(ids) :]
