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
from typing import Any, Generic, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

from hmer import contract
from hmer.decode_types import BeamResult, EncodedImage, Move, StepResult
from hmer.errors import BadParameter
from hmer.lane import BeamLane, Lane
from hmer.loop_profile import LoopProfile, laps_of
from hmer.runtime import ONNXRUNTIME

Array = NDArray[Any]
Run = Callable[[dict[str, Array]], Mapping[str, Array]]

LADDER = (1, 2, 4, 8, 16, 32)
BUCKET = (2, 4)
# On a GPU padding costs little and a new shape much: nearly all formulas of one line share this.
GPU_BUCKET = (8, 32)
TENSORRT = "tensorrt"
LANES = (12, 24, 48)


def lanes_for(target: str) -> tuple[int, ...]:
    """The lanes that suit a runtime, measured on one CPU core with formulas of CROHME.

    With 16 formulas at work ONNX Runtime answers a third more with ``LANES``; OpenVINO, whose
    calls are dearer, and dearer still when the shape is not the last call's, an eighth less.
    """
    return LANES if target == ONNXRUNTIME else ()


def ladder_for(slots: int) -> tuple[int, ...]:
    """The numbers of rows that ``slots`` slots are padded to: ``LADDER`` as far as it goes."""
    return (*(rung for rung in LADDER if rung < slots), slots)


class Batches(TypedDict):
    """How rows become batches; see ``SlotStep``."""

    lanes: Sequence[int]
    ladder: Sequence[int]
    bucket: tuple[int, int]


def batches_for(target: str, slots: int, calls_are_dear: bool) -> Batches:
    """What suits a runtime: on a CPU little padding, on a GPU few shapes, as its graphs want.

    ``calls_are_dear``: every call is a trip through the server, so there is one a step.
    """
    if target == TENSORRT:
        return {"lanes": (), "ladder": ladder_for(slots), "bucket": GPU_BUCKET}
    return {"lanes": () if calls_are_dear else lanes_for(target), "ladder": (), "bucket": BUCKET}


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
        profile: LoopProfile | None,
    ) -> None:
        if slots < 1 or min(bucket) < 1 or list(lanes) != sorted(lanes):
            raise BadParameter(
                f"Slots ({slots}) and bucket ({bucket}) must be positive, and lanes "
                f"({list(lanes)}) in ascending order."
            )
        self.slots = slots
        self.answer = spec.outputs[0]  # what a step says of every slot: tokens or candidates
        self._run = run
        self._lap = laps_of(profile)
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

    def step(
        self, slots: Sequence[int], run: Run | None = None, width: int | None = None
    ) -> tuple[Array, Array]:
        """One call for every lane with rows; the first two outputs, in the order of ``slots``.

        ``run`` instead of the usual one gives ``width`` numbers a slot.
        """
        run = run or self._run
        if len(slots) != len(self._lane_of):
            raise ValueError(
                f"{len(self._lane_of)} slots are occupied, but a step of {len(slots)} was asked."
            )
        place = {slot: index for index, slot in enumerate(slots)}
        dims = self.answer.dims if width is None else (width,)
        shape = (len(slots), *(int(size) for size in dims))
        found, scores = np.empty(shape, self.answer.dtype), np.empty(shape, np.float32)
        for lane in self._lanes:
            if len(lane):
                feeds = lane.feeds()
                self._lap("copies")
                outputs = run(feeds)
                self._lap("runtime")
                taken = lane.take(outputs, width)
                rows = [place[slot] for slot in lane.slots]
                found[rows], scores[rows] = taken
        self._lap("copies")
        return found, scores


class SlotStep:
    """``StepFn`` of ``slots`` slots over ``run``, which takes ``decoder_step``'s tensors.

    For ``lanes``, ``ladder`` and ``bucket`` see ``_Slots``; ``profile``: see ``hmer.loop_profile``.
    With ``one_token``, which takes ``decoder_beam``'s tensors, a step may also bring one token.
    """

    def __init__(
        self,
        run: Run,
        sizes: contract.Sizes,
        slots: int,
        *,
        one_token: Run | None = None,
        lanes: Sequence[int] = LANES,
        ladder: Sequence[int] = (),
        bucket: tuple[int, int] = BUCKET,
        profile: LoopProfile | None = None,
    ) -> None:
        """``sizes`` are the bundle's. Raises ``BadParameter``."""
        spec = contract.models(sizes)[contract.DECODER_STEP]
        self._rows = _Slots(Lane, run, spec, slots, lanes, ladder, bucket, profile)
        self.slots = slots
        self.k = sizes.k
        self.ks: tuple[int, ...] = (1, sizes.k) if one_token and sizes.k > 1 else ()
        self._most, self._one_token = sizes.k, one_token

    def admit(self, slot: int, encoded: EncodedImage) -> None:
        """Begin ``encoded`` in ``slot``. Raises ``InferenceFailed`` if its shapes don't fit."""
        self._rows.join(slot, encoded)

    def release(self, slot: int) -> None:
        """Free ``slot``; nothing if it is free."""
        self._rows.leave(slot)

    def step(self, slots: Sequence[int]) -> StepResult:
        """Advance all admitted slots by k tokens. Raises ``InferenceFailed`` on bad outputs."""
        if self.k == self._most or self._one_token is None:
            return StepResult(*self._rows.step(slots))
        return StepResult(*self._rows.step(slots, self._first_candidates, 1))

    def _first_candidates(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """``decoder_beam`` as a step of one token: its best candidate, of rows that stay."""
        assert self._one_token is not None
        rows = np.arange(len(feeds["token"]), dtype=np.int32)[:, None]
        outputs = dict(self._one_token({**feeds, "parent": rows}))
        outputs["tokens"] = outputs["candidates"][:, :1]
        outputs["scores"] = outputs["scores"][:, :1]
        return outputs


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
        profile: LoopProfile | None = None,
    ) -> None:
        """``sizes`` are the bundle's, with a beam. Raises ``BadParameter``."""
        spec = contract.models(sizes)[contract.DECODER_BEAM]
        self._rows = _Slots(BeamLane, run, spec, slots, lanes, ladder, bucket, profile)
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
