"""The ``StepFn`` and the ``BeamStep`` over the tensors of ``decoder_step`` and ``decoder_beam``.

``run`` is an in-process runtime or a call to the served model; both give the same tokens. Slots
are rows of one or more lanes (``hmer.lane``), each a batch with a padded size of its own: a step
costs as much as the positions that it pads to, and the widest formula of a batch sets that for
all. Where a call costs as little as with ONNX Runtime on a CPU (as much as 300 positions), lanes
by width save a quarter of the decoder's time with 16 formulas at work and 40 % with 32.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from hmer import contract
from hmer.decode_types import BeamResult, EncodedImage, Move, StepResult
from hmer.errors import BadParameter
from hmer.lane import BeamLane, Lane
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


L = TypeVar("L", bound=Lane)


class _Slots(Generic[L]):
    """``slots`` slots in lanes over ``run``, which takes and gives the tensors of ``spec``.

    ``lanes``: images up to each of these widths share a batch, in one call a step; wider ones
    share another. Empty: one batch for all, as suits a device on which calls are dear.
    ``bucket``: a batch's height and width are multiples of it. Both in feature positions.
    ``ladder``: pad the number of rows to the next of these, for a runtime that wants few
    shapes (CUDA graphs). The rows added are fed <eos> and are 1 x 1 positions large.
    """

    def __init__(
        self,
        lane: Callable[[contract.ModelSpec, int, Sequence[int], tuple[int, int]], L],
        run: Run,
        spec: contract.ModelSpec,
        slots: int,
        lanes: Sequence[int],
        ladder: Sequence[int],
        bucket: tuple[int, int],
    ) -> None:
        if slots < 1 or min(bucket) < 1 or list(lanes) != sorted(lanes):
            raise BadParameter(
                f"Slots ({slots}) and bucket ({bucket}) must be positive, and lanes "
                f"({list(lanes)}) in ascending order."
            )
        self.slots = slots
        self.answer = spec.outputs[0]  # what a step says of every slot: tokens or candidates
        self._run = run
        self._widths = tuple(lanes)
        self._lanes = [lane(spec, slots, ladder, bucket) for _ in range(len(lanes) + 1)]
        self._lane_of: dict[int, L] = {}

    def join(self, slot: int, encoded: EncodedImage) -> None:
        """Begin ``encoded`` in ``slot``. Raises ``InferenceFailed`` if its shapes don't fit."""
        if not 0 <= slot < self.slots or slot in self._lane_of:
            raise ValueError(f"Slot {slot} of {self.slots} is not free.")
        lane = self._lanes[bisect_left(self._widths, encoded.values.shape[1])]
        lane.join(slot, encoded)
        self._lane_of[slot] = lane

    def leave(self, slot: int) -> None:
        """Free ``slot``; nothing if it is free."""
        lane = self._lane_of.pop(slot, None)
        if lane is not None:
            lane.leave(slot)

    def lane_of(self, slot: int) -> L:
        """The lane of an occupied slot."""
        return self._lane_of[slot]

    def step(self, slots: Sequence[int]) -> tuple[Array, Array]:
        """One call for every lane with rows; the first two outputs, in the order of ``slots``."""
        if len(slots) != len(self._lane_of):
            raise ValueError(
                f"{len(self._lane_of)} slots are occupied, but a step of {len(slots)} was asked."
            )
        place = {slot: index for index, slot in enumerate(slots)}
        shape = (len(slots), *(int(size) for size in self.answer.dims))
        found, scores = np.empty(shape, self.answer.dtype), np.empty(shape, np.float32)
        for lane in self._lanes:
            if len(lane):
                taken = lane.take(self._run(lane.feeds()))
                rows = [place[slot] for slot in lane.slots]
                found[rows], scores[rows] = taken
        return found, scores


class SlotStep:
    """``StepFn`` of ``slots`` slots over ``run``, which takes ``decoder_step``'s tensors.

    For ``lanes``, ``ladder`` and ``bucket`` see ``_Slots``.
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
        spec = contract.models(sizes)[contract.DECODER_STEP]
        self._rows = _Slots(Lane, run, spec, slots, lanes, ladder, bucket)
        self.slots = slots
        self.k = sizes.k

    def admit(self, slot: int, encoded: EncodedImage) -> None:
        """Begin ``encoded`` in ``slot``. Raises ``InferenceFailed`` if its shapes don't fit."""
        self._rows.join(slot, encoded)

    def release(self, slot: int) -> None:
        """Free ``slot``; nothing if it is free."""
        self._rows.leave(slot)

    def step(self, slots: Sequence[int]) -> StepResult:
        """Advance all admitted slots by k tokens. Raises ``InferenceFailed`` on bad outputs."""
        return StepResult(*self._rows.step(slots))


class BeamSlots:
    """``BeamStep`` of ``slots`` slots over ``run``, which takes ``decoder_beam``'s tensors.

    An image's features are copied into each of its slots, once, when it is admitted.
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
        """``sizes`` are the bundle's, with a beam. Raises ``BadParameter``."""
        spec = contract.models(sizes)[contract.DECODER_BEAM]
        self._rows = _Slots(BeamLane, run, spec, slots, lanes, ladder, bucket)
        self.slots = slots

    def admit(self, slots: Sequence[int], encoded: EncodedImage) -> None:
        """Begin ``encoded`` in ``slots``. Raises ``InferenceFailed`` if its shapes don't fit."""
        for slot in slots:
            self._rows.join(slot, encoded)

    def release(self, slots: Sequence[int]) -> None:
        """Free ``slots``, those of them that are not free."""
        for slot in slots:
            self._rows.leave(slot)

    def step(self, moves: Sequence[Move]) -> BeamResult:
        """Make ``moves``, one of every admitted slot. Raises ``InferenceFailed``."""
        of_lane: defaultdict[BeamLane, list[Move]] = defaultdict(list)
        for move in moves:
            of_lane[self._rows.lane_of(move.slot)].append(move)
        for lane, told in of_lane.items():
            lane.tell(told)
        return BeamResult(*self._rows.step([move.slot for move in moves]))


def split_encoded(outputs: Mapping[str, Array]) -> list[EncodedImage]:
    """The encoder's outputs (a batch, padded) as one ``EncodedImage`` an image, cropped views."""
    values, keys, state = (outputs[name] for name in ("values", "keys", "state"))
    return [
        EncodedImage(values[row, :height, :width], keys[row, :height, :width], state[row])
        for row, (height, width) in enumerate(outputs[contract.FEATURE_SIZE.name].tolist())
    ]
