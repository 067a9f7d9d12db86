"""The ``StepFn`` over the ``decoder_step`` tensors.

``run`` is an in-process runtime or a call to the served ``decoder_step``; both give the same
tokens. Slots are rows of one or more lanes (``hmer.lane``), each a batch with a padded size of
its own: a step costs as much as the positions that it pads to, and the widest formula of a
batch sets that for all. Where a call costs as little as with ONNX Runtime on a CPU (as much as
300 positions), lanes by width save a quarter of the decoder's time with 16 formulas at work and
40 % with 32.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmer import contract
from hmer.decode_types import EncodedImage, StepResult
from hmer.errors import BadParameter
from hmer.lane import Lane
from hmer.runtime import ONNXRUNTIME

Array = NDArray[Any]
Run = Callable[[dict[str, Array]], Mapping[str, Array]]

LADDER = (1, 2, 4, 8, 16, 32)
BUCKET = (2, 4)
LANES = (12, 24, 48)


def lanes_for(target: str) -> tuple[int, ...]:
    """The lanes that suit a runtime, measured on one CPU core with formulas of CROHME.

    With 16 formulas at work ONNX Runtime answers a third more with ``LANES``; OpenVINO, whose
    calls are dearer, and dearer still when the shape is not the last call's, an eighth less.
    """
    return LANES if target == ONNXRUNTIME else ()


class SlotStep:
    """``StepFn`` of ``slots`` slots over ``run``, which takes and gives the contract's tensors.

    ``lanes``: images up to each of these widths share a batch, in one call a step; wider ones
    share another. Empty: one batch for all, as suits a device on which calls are dear.
    ``bucket``: a batch's height and width are multiples of it. Both in feature positions.
    ``ladder``: pad the number of rows to the next of these, for a runtime that wants few
    shapes (CUDA graphs). The rows added are fed <eos> and are 1 x 1 positions large.
    """

    def __init__(
        self,
        run: Run,
        sizes: contract.Sizes,
        slots: int,
        *,
        lanes: Sequence[int] = LANES,
        ladder: Sequence[int] = (),
        bucket: tuple[int, int] = BUCKET,
    ) -> None:
        """``sizes`` are the bundle's. Raises ``BadParameter``."""
        if slots < 1 or min(bucket) < 1 or list(lanes) != sorted(lanes):
            raise BadParameter(
                f"Slots ({slots}) and bucket ({bucket}) must be positive, and lanes "
                f"({list(lanes)}) in ascending order."
            )
        self.slots = slots
        self.k = sizes.k
        self._run = run
        self._widths = tuple(lanes)
        self._lanes = [Lane(sizes, slots, ladder, bucket) for _ in range(len(lanes) + 1)]
        self._lane_of: dict[int, Lane] = {}

    def admit(self, slot: int, encoded: EncodedImage) -> None:
        """Begin ``encoded`` in ``slot``. Raises ``InferenceFailed`` if its shapes don't fit."""
        if not 0 <= slot < self.slots or slot in self._lane_of:
            raise ValueError(f"Slot {slot} of {self.slots} is not free.")
        lane = self._lanes[bisect_left(self._widths, encoded.values.shape[1])]
        lane.join(slot, encoded)
        self._lane_of[slot] = lane

    def release(self, slot: int) -> None:
        """Free ``slot``; nothing if it is free."""
        lane = self._lane_of.pop(slot, None)
        if lane is not None:
            lane.leave(slot)

    def step(self, slots: Sequence[int]) -> StepResult:
        """Advance all admitted slots by k tokens. Raises ``InferenceFailed`` on bad outputs."""
        if len(slots) != len(self._lane_of):
            raise ValueError(
                f"{len(self._lane_of)} slots are occupied, but a step of {len(slots)} was asked."
            )
        place = {slot: index for index, slot in enumerate(slots)}
        tokens = np.empty((len(slots), self.k), np.int32)
        scores = np.empty((len(slots), self.k), np.float32)
        for lane in self._lanes:
            if len(lane):
                found = lane.take(self._run(lane.feeds()))
                rows = [place[slot] for slot in lane.slots]
                tokens[rows], scores[rows] = found
        return StepResult(tokens, scores)


def split_encoded(outputs: Mapping[str, Array]) -> list[EncodedImage]:
    """The encoder's outputs (a batch, padded) as one ``EncodedImage`` an image, cropped views."""
    values, keys, state = (outputs[name] for name in ("values", "keys", "state"))
    return [
        EncodedImage(values[row, :height, :width], keys[row, :height, :width], state[row])
        for row, (height, width) in enumerate(outputs[contract.FEATURE_SIZE.name].tolist())
    ]
