"""The ``StepFn`` over the ``decoder_step`` tensors: slots as rows of persistent batches.

The features of an image are copied once, when it is admitted, into buffers that are the
step's feeds as they stand: n contiguous rows, padded to a common height and width. Rows
are kept without gaps: a newcomer takes the row of one that left, and otherwise the last row
moves into the gap. Between joining and leaving a step copies only tokens, states and coverage
(some kilobytes a row) from its outputs to the next feeds.

``run`` is an in-process runtime or a call to the served ``decoder_step``; both give the same
tokens. What a row holds outside its image's true size is zero and masked in the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmer import contract
from hmer.decode_types import EncodedImage, StepResult
from hmer.errors import BadParameter, InferenceFailed
from hmer.padded_rows import PaddedRows
from hmer.vocab import EOS_ID, SOS_ID

Array = NDArray[Any]
Run = Callable[[dict[str, Array]], Mapping[str, Array]]

LADDER = (1, 2, 4, 8, 16, 32)
BUCKET = (4, 8)  # feature positions: common heights and widths are multiples
SHRINK = 0.75  # rows are laid out anew for a smaller size only if it saves a quarter


class SlotStep:
    """``StepFn`` of ``slots`` slots; a step is one call of ``run`` with the contract's tensors.

    ``ladder``: pad the number of rows to the next of these, for a runtime that wants few
    shapes (CUDA graphs). The rows added are fed <eos> and are 1 x 1 positions large.
    ``bucket``: heights and widths are padded to multiples of it.
    """

    def __init__(
        self,
        run: Run,
        sizes: contract.Sizes,
        slots: int,
        *,
        ladder: Sequence[int] | None = None,
        bucket: tuple[int, int] = BUCKET,
    ) -> None:
        """``sizes`` are the bundle's. Raises ``BadParameter``."""
        if slots < 1 or min(bucket) < 1:
            raise BadParameter(f"Slots ({slots}) and bucket ({bucket}) must be positive.")
        self.slots = slots
        self.k = sizes.k
        self._run = run
        self._ladder = tuple(sorted(ladder or ()))
        self._bucket = bucket
        spec = contract.models(sizes)[contract.DECODER_STEP]
        self._spec = spec
        self._maps = {  # the tensors that have a height and a width
            name: PaddedRows(
                tuple(int(size) for size in spec.input(name).dims[2:]), spec.input(name).dtype
            )
            for name in ("values", "keys", "coverage")
        }
        most = self._padded(slots)
        self._state = np.zeros((most, sizes.state), spec.input("state").dtype)
        self._token = np.full((most, 1), EOS_ID, spec.input("token").dtype)
        self._size = np.ones((most, 2), contract.FEATURE_SIZE.dtype)
        self._rows: list[int | None] = []  # the slot of each row; None: a gap
        self._row_of: dict[int, int] = {}
        self._pending: dict[int, EncodedImage] = {}  # admitted since the last step
        self._feeds: dict[str, Array] | None = None  # None: rows joined or left

    def admit(self, slot: int, encoded: EncodedImage) -> None:
        """Begin ``encoded`` in ``slot``. Raises ``InferenceFailed`` if its shapes don't fit."""
        if not 0 <= slot < self.slots or slot in self._row_of or slot in self._pending:
            raise ValueError(f"Slot {slot} of {self.slots} is not free.")
        shape = encoded.values.shape[:2]
        for name, array in (("values", encoded.values), ("keys", encoded.keys)):
            expected = (*shape, *self._maps[name].channels)
            if array.shape != expected or min(shape) < 1:
                raise InferenceFailed(
                    f"The encoder's {name} have the shape {array.shape} where {expected} was "
                    "expected. Encoder and decoder are not of one bundle."
                )
        if encoded.state.shape != self._state.shape[1:]:
            raise InferenceFailed(
                f"The encoder's state has {encoded.state.size} numbers where "
                f"{self._state.shape[1]} were expected. Encoder and decoder are not of one bundle."
            )
        self._pending[slot] = encoded
        self._feeds = None

    def release(self, slot: int) -> None:
        """Free ``slot``; nothing if it is free."""
        self._pending.pop(slot, None)
        if (row := self._row_of.pop(slot, None)) is not None:
            self._rows[row] = None
        self._feeds = None

    def step(self, slots: Sequence[int]) -> StepResult:
        """Advance all admitted slots by k tokens. Raises ``InferenceFailed`` on bad outputs."""
        if self._feeds is None:
            self._feeds = self._settle()
        n = len(self._rows)
        if len(slots) != n:
            raise ValueError(f"{n} slots are occupied, but a step of {len(slots)} was asked for.")
        outputs = self._run(self._feeds)
        tokens, scores, state, coverage = self._checked(outputs, self._feeds)
        self._token[:n, 0] = tokens[:n, -1]
        self._state[:n] = state[:n]
        self._maps["coverage"].view(n)[...] = coverage[:n]
        order = [self._row_of[slot] for slot in slots]
        return StepResult(tokens[order], scores[order])

    def _checked(self, outputs: Mapping[str, Array], feeds: Mapping[str, Array]) -> list[Array]:
        """The four outputs, in the contract's order and of the right shapes."""
        batch = len(feeds["token"])
        shapes = {
            "tokens": (batch, self.k),
            "scores": (batch, self.k),
            "next_state": feeds["state"].shape,
            "next_coverage": feeds["coverage"].shape,
        }
        for name, shape in shapes.items():
            if name not in outputs or outputs[name].shape != shape:
                found = outputs[name].shape if name in outputs else "missing"
                raise InferenceFailed(
                    f"decoder_step's output {name} is {found} where {shape} was expected. The "
                    "graph is not of this bundle; export it again."
                )
        return [outputs[name] for name in shapes]

    def _settle(self) -> dict[str, Array]:
        """Close the gaps, take in the pending, and give the feeds of the next steps."""
        n = len(self._row_of) + len(self._pending)
        gaps = [r for r in range(n) if r >= len(self._rows) or self._rows[r] is None]
        gaps.reverse()
        for row in range(n, len(self._rows)):
            if (slot := self._rows[row]) is not None:
                self._move(slot, row, gaps.pop())
        del self._rows[n:]
        self._rows.extend([None] * (n - len(self._rows)))

        padded = self._padded(n)
        layout = self._layout()
        kept = [
            (row, int(self._size[row, 0]), int(self._size[row, 1])) for row in self._row_of.values()
        ]
        for rows in self._maps.values():
            rows.lay_out(layout, padded, kept)
        for newcomer, encoded in self._pending.items():
            row = gaps.pop()
            self._put(row, encoded)
            self._rows[row], self._row_of[newcomer] = newcomer, row
        self._pending.clear()
        for row in range(n, padded):
            self._put(row, None)
        feeds: dict[str, Array] = {name: rows.view(padded) for name, rows in self._maps.items()}
        feeds |= {"state": self._state[:padded], "token": self._token[:padded]}
        feeds[contract.FEATURE_SIZE.name] = self._size[:padded]
        return feeds

    def _move(self, slot: int, source: int, target: int) -> None:
        for rows in self._maps.values():
            rows.move(source, target)
        for array in (self._state, self._token, self._size):
            array[target] = array[source]
        self._rows[source], self._rows[target], self._row_of[slot] = None, slot, target

    def _put(self, row: int, encoded: EncodedImage | None) -> None:
        """Write a newcomer's row, or one that only pads the batch."""
        self._maps["values"].put(row, None if encoded is None else encoded.values)
        self._maps["keys"].put(row, None if encoded is None else encoded.keys)
        self._maps["coverage"].put(row, None)
        self._state[row] = 0 if encoded is None else encoded.state
        self._token[row] = EOS_ID if encoded is None else SOS_ID
        self._size[row] = 1 if encoded is None else encoded.values.shape[:2]

    def _layout(self) -> tuple[int, int]:
        """The common height and width: the largest image's, in buckets, and not restless."""
        shapes: list[list[int]] = self._size[list(self._row_of.values())].tolist()
        shapes += [list(encoded.values.shape[:2]) for encoded in self._pending.values()]
        now = self._maps["values"].layout
        if not shapes:
            return now
        step_h, step_w = self._bucket
        height = -(-max(h for h, _ in shapes) // step_h) * step_h
        width = -(-max(w for _, w in shapes) // step_w) * step_w
        fits = height <= now[0] and width <= now[1]
        if fits and height * width > SHRINK * now[0] * now[1]:
            return now
        return height, width

    def _padded(self, n: int) -> int:
        return next((rung for rung in self._ladder if rung >= n), n)


def split_encoded(outputs: Mapping[str, Array]) -> list[EncodedImage]:
    """The encoder's outputs (a batch, padded) as one ``EncodedImage`` an image, cropped views."""
    values, keys, state = (outputs[name] for name in ("values", "keys", "state"))
    return [
        EncodedImage(values[row, :height, :width], keys[row, :height, :width], state[row])
        for row, (height, width) in enumerate(outputs[contract.FEATURE_SIZE.name].tolist())
    ]
