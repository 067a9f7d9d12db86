"""A batch of decoding formulas: rows of persistent buffers that are the step's feeds.

The features of an image are copied once, when it joins, into buffers that are fed as they
stand: n contiguous rows, padded to a common height and width. There are no gaps: a newcomer
takes the row of one that left, and otherwise the last row moves into the gap. Between joining
and leaving a step copies only tokens, states and coverage (some kilobytes a row) from its
outputs to the next feeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmer import contract
from hmer.decode_types import EncodedImage, Move
from hmer.errors import InferenceFailed
from hmer.padded_rows import PaddedRows
from hmer.vocab import EOS_ID, SOS_ID

Array = NDArray[Any]

SHRINK = 0.75  # rows are laid out anew for a smaller size only if that saves a quarter
_FEATURE_SIZE = contract.FEATURE_SIZE.name


class Lane:
    """Up to ``capacity`` rows; each belongs to a slot.

    ``ladder`` and ``bucket`` are as for ``hmer.slots.SlotStep``. What a row holds outside its
    image's true size is zero.
    """

    def __init__(
        self,
        spec: contract.ModelSpec,
        capacity: int,
        ladder: Sequence[int],
        bucket: tuple[int, int],
    ) -> None:
        """An empty lane; it takes memory for what it holds at most.

        ``spec`` is the step's: its first two outputs are tokens and their scores.
        """
        self._spec = spec
        self._ladder = tuple(sorted(ladder))
        self._bucket = bucket
        self._maps: dict[str, PaddedRows] = {}  # the tensors that have a height and a width
        for name in ("values", "keys", "coverage"):
            tensor = spec.input(name)
            channels = tuple(int(size) for size in tensor.dims[2:])
            self._maps[name] = PaddedRows(channels, tensor.dtype)
        rows = self._padded(capacity)
        (state,) = spec.input("state").dims
        self._state = np.zeros((rows, int(state)), spec.input("state").dtype)
        self._token = np.full((rows, 1), EOS_ID, spec.input("token").dtype)
        self._size = np.ones((rows, 2), contract.FEATURE_SIZE.dtype)
        self._slots: list[int | None] = []  # of each row; None: a gap
        self._row_of: dict[int, int] = {}
        self._pending: dict[int, EncodedImage] = {}  # joined since the last step
        self._feeds: dict[str, Array] | None = None  # None: somebody joined or left

    def __len__(self) -> int:
        """How many slots have a row, or will have one in the next step."""
        return len(self._row_of) + len(self._pending)

    @property
    def slots(self) -> list[int]:
        """The slots in the order of their rows, as of the last ``feeds``."""
        return [slot for slot in self._slots if slot is not None]

    def join(self, slot: int, encoded: EncodedImage) -> None:
        """Take in ``encoded`` with the next step. Raises ``InferenceFailed`` for other shapes."""
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
                f"The encoder's state has the shape {encoded.state.shape} where "
                f"{self._state.shape[1:]} was expected. Encoder and decoder are not of one bundle."
            )
        self._pending[slot] = encoded
        self._feeds = None

    def leave(self, slot: int) -> None:
        """Give up the slot's row; nothing if it has none."""
        self._pending.pop(slot, None)
        if (row := self._row_of.pop(slot, None)) is not None:
            self._slots[row] = None
        self._feeds = None

    def feeds(self) -> dict[str, Array]:
        """The inputs of the next step: views of the buffers, contiguous."""
        return self._current()

    def _current(self) -> dict[str, Array]:
        if self._feeds is None:
            self._feeds = self._settle()
        return self._feeds

    def take(self, outputs: Mapping[str, Array], width: int | None = None) -> tuple[Array, Array]:
        """Keep the step's state, and its last tokens as the next; tokens and scores of ``slots``.

        ``width``: how many of them a slot gets, if not as many as the contract says. Raises
        ``InferenceFailed`` if an output is missing or has another shape.
        """
        tokens, scores = self._keep(outputs, width)
        self._token[: len(tokens), 0] = tokens[:, -1]
        return tokens, scores

    def _keep(self, outputs: Mapping[str, Array], width: int | None = None) -> tuple[Array, Array]:
        """The first two outputs (n, ...), after what the next step continues from is kept."""
        feeds, n = self._current(), len(self._slots)
        padded = len(feeds["token"])
        first, second, *_ = self._spec.outputs
        dims = first.dims if width is None else (width,)
        shapes: dict[str, tuple[int | str, ...]] = {
            tensor.name: (padded, *dims) for tensor in (first, second)
        }
        shapes["next_state"] = feeds["state"].shape
        shapes["next_coverage"] = feeds["coverage"].shape
        for name, shape in shapes.items():
            found = outputs[name].shape if name in outputs else "missing"
            if found != shape:
                raise InferenceFailed(
                    f"{self._spec.name}'s output {name} is {found} where {shape} was expected. "
                    "The graph is not of this bundle; export it again."
                )
        self._state[:n] = outputs["next_state"][:n]
        feeds["coverage"][:n] = outputs["next_coverage"][:n]
        return outputs[first.name][:n], outputs[second.name][:n]

    def _settle(self) -> dict[str, Array]:
        """Close the gaps, take in the pending, and give the feeds of the next steps."""
        n = len(self)
        gaps = [r for r in range(n) if r >= len(self._slots) or self._slots[r] is None]
        gaps.reverse()
        for row in range(n, len(self._slots)):
            if (slot := self._slots[row]) is not None:
                self._move(slot, row, gaps.pop())
        del self._slots[n:]
        self._slots.extend([None] * (n - len(self._slots)))

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
            self._slots[row], self._row_of[newcomer] = newcomer, row
        self._pending.clear()
        for row in range(n, padded):
            self._put(row, None)
        feeds: dict[str, Array] = {name: rows.view(padded) for name, rows in self._maps.items()}
        feeds |= {"state": self._state[:padded], "token": self._token[:padded]}
        feeds[_FEATURE_SIZE] = self._size[:padded]
        return feeds

    def _move(self, slot: int, source: int, target: int) -> None:
        for rows in self._maps.values():
            rows.move(source, target)
        for array in (self._state, self._token, self._size):
            array[target] = array[source]
        self._slots[source], self._slots[target], self._row_of[slot] = None, slot, target

    def _put(self, row: int, encoded: EncodedImage | None) -> None:
        """Write a newcomer's row, or one that only pads the batch: <eos>, 1 x 1, all zeros."""
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


class BeamLane(Lane):
    """A lane whose slots continue slots: what each does next is told before every step.

    All slots of a request have a row each, with the same features; the graph copies state and
    coverage from row to row (``parent``), so a step moves no more than in a ``Lane``.
    """

    def __init__(
        self,
        spec: contract.ModelSpec,
        capacity: int,
        ladder: Sequence[int],
        bucket: tuple[int, int],
    ) -> None:
        """As ``Lane``; ``spec`` is the contract's ``decoder_beam``."""
        super().__init__(spec, capacity, ladder, bucket)
        self._parent = np.zeros((len(self._token), 1), spec.input("parent").dtype)
        self._moves: list[Move] = []

    def tell(self, moves: Sequence[Move]) -> None:
        """The moves of all its slots in the next step."""
        self._moves = list(moves)

    def feeds(self) -> dict[str, Array]:
        """See ``Lane``; rows that only pad are their own parents."""
        feeds = dict(self._current())
        feeds["parent"] = self._parent[: len(feeds["token"])]
        feeds["parent"][:, 0] = np.arange(len(feeds["token"]))
        rows = [self._row_of[move.slot] for move in self._moves]
        feeds["token"][rows, 0] = [move.token for move in self._moves]
        feeds["parent"][rows, 0] = [self._row_of[move.parent] for move in self._moves]
        return feeds

    def take(self, outputs: Mapping[str, Array], width: int | None = None) -> tuple[Array, Array]:
        """Keep the step's state; candidates and scores (n, N) of ``slots``."""
        return self._keep(outputs, width)
