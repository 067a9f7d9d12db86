"""Steps for the decode tests: scripted ones, and a small decoder in NumPy with its beams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmer.contract import Sizes
from hmer.decode import (
    BeamResult,
    EncodedImage,
    Guards,
    Move,
    Outcome,
    SearchOptions,
    StepResult,
    decode_all,
)
from hmer.vocab import EOS_ID, SOS_ID

SIZES = Sizes(features=6, attention=5, hidden=7, stride=8, k=4, beam=5)
VOCABULARY_SIZE = 12


def script(*ids: int) -> EncodedImage:
    """An image that a ``ScriptedStep`` answers with ``ids``, then <eos> for ever."""
    empty = np.zeros((1, 1, 1), np.float32)
    return EncodedImage(empty, empty, np.array(ids, np.float32))


class ScriptedStep:
    """A ``StepFn`` that plays scripts; it notes its calls and checks how it is called."""

    def __init__(self, slots: int = 2, k: int = 1) -> None:
        self.slots, self.k = slots, k
        self.scripts: dict[int, list[int]] = {}
        self.calls: list[list[int]] = []  # the slots of each step

    def admit(self, slot: int, encoded: EncodedImage) -> None:
        assert 0 <= slot < self.slots
        assert slot not in self.scripts
        self.scripts[slot] = encoded.state.astype(int).tolist()

    def release(self, slot: int) -> None:
        del self.scripts[slot]

    def step(self, slots: Sequence[int]) -> StepResult:
        assert sorted(slots) == sorted(self.scripts)
        self.calls.append(list(slots))
        tokens = np.full((len(slots), self.k), EOS_ID, np.int32)
        for row, slot in zip(tokens, slots, strict=True):
            part, self.scripts[slot] = self.scripts[slot][: self.k], self.scripts[slot][self.k :]
            row[: len(part)] = part
        return StepResult(tokens, np.full(tokens.shape, -0.5, np.float32))


class MarkovStep:
    """A ``BeamStep`` whose next token depends on all tokens so far, by a random table.

    It gives every token of a vocabulary of ``tokens`` ids as a candidate, and checks its use.
    The distribution depends on the image too: on its ``state``'s only value.
    """

    def __init__(self, slots: int, tokens: int = 6, candidates: int | None = None) -> None:
        self.slots, self.tokens, self.candidates = slots, tokens, candidates or tokens
        self.held: dict[int, tuple[int, ...]] = {}  # slot -> what was fed so far
        self.calls: list[int] = []  # rows of each step

    def admit(self, slots: Sequence[int], encoded: EncodedImage) -> None:
        for slot in slots:
            assert 0 <= slot < self.slots
            assert slot not in self.held
            self.held[slot] = (int(encoded.state[0]),)

    def release(self, slots: Sequence[int]) -> None:
        for slot in slots:
            del self.held[slot]

    def step(self, moves: Sequence[Move]) -> BeamResult:
        assert sorted(move.slot for move in moves) == sorted(self.held)
        self.calls.append(len(moves))
        fed = {
            m.slot: self.held[m.parent] + (() if m.token == EOS_ID else (m.token,)) for m in moves
        }
        self.held = fed
        scores = np.array([self.scores(fed[move.slot]) for move in moves], np.float32)
        best = np.argsort(-scores, axis=1, kind="stable")[:, : self.candidates]
        return BeamResult(best.astype(np.int32), np.take_along_axis(scores, best, axis=1))

    def scores(self, fed: tuple[int, ...]) -> NDArray[np.float32]:
        """Log-probabilities of all ids after the image's number, <sos> and the tokens so far."""
        logits = np.random.default_rng(fed).normal(0, 1.5, self.tokens)
        logits[[0, SOS_ID]] = -30.0
        logits -= np.log(np.exp(logits).sum())
        return logits.astype(np.float32)

    def images(self, count: int) -> list[EncodedImage]:
        return [script(number) for number in range(count)]


class NumpyDecoder:
    """``decoder_step`` as a function of feeds: random weights, masked attention, <eos> frozen."""

    def __init__(self, sizes: Sizes = SIZES, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.sizes = sizes
        d, a, u = sizes.features, sizes.attention, sizes.hidden
        self.embedding = rng.normal(0, 2.0, (VOCABULARY_SIZE, u))
        self.recur = rng.normal(0, 0.8, (u + d, u))
        self.query, self.cumulative = rng.normal(0, 1.5, (u, a)), rng.normal(0, 1.5, a)
        self.energy = rng.normal(0, 2.0, a)
        self.output = rng.normal(0, 1.5, (d + u, VOCABULARY_SIZE))
        self.bias = np.zeros(VOCABULARY_SIZE)
        self.bias[[0, SOS_ID]], self.bias[EOS_ID] = -50.0, 1.0
        self.batches: list[int] = []

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        assert all(array.flags.c_contiguous for array in feeds.values())
        token, state, coverage = feeds["token"][:, 0], feeds["state"], feeds["coverage"]
        self.batches.append(len(token))
        tokens, scores = [], []
        for _ in range(self.sizes.k):
            following, score, new_state, alpha = self._one(feeds, token, state, coverage)
            over = token == EOS_ID
            token = np.where(over, EOS_ID, following).astype(np.int32)
            state = np.where(over[:, None], state, new_state)
            coverage = coverage + np.where(over[:, None, None], 0.0, alpha)
            tokens.append(token)
            scores.append(np.where(over, 0.0, score))
        return {
            "tokens": np.stack(tokens, 1),
            "scores": np.stack(scores, 1).astype(np.float32),
            "next_state": state.astype(np.float32),
            "next_coverage": coverage.astype(np.float32),
        }

    def beam(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """``decoder_beam`` of the same weights."""
        assert all(array.flags.c_contiguous for array in feeds.values())
        parent, over = feeds["parent"][:, 0], feeds["token"][:, 0] == EOS_ID
        state, coverage = feeds["state"][parent], feeds["coverage"][parent]
        self.batches.append(len(parent))
        logits, new_state, alpha = self._all(feeds, feeds["token"][:, 0], state, coverage)
        best = np.argsort(-logits, axis=1, kind="stable")[:, : self.sizes.beam]
        scores = np.take_along_axis(logits, best, axis=1)
        return {
            "candidates": np.where(over[:, None], EOS_ID, best).astype(np.int32),
            "scores": np.where(over[:, None], 0.0, scores).astype(np.float32),
            "next_state": np.where(over[:, None], state, new_state).astype(np.float32),
            "next_coverage": (coverage + np.where(over[:, None, None], 0.0, alpha)).astype(
                np.float32
            ),
        }

    def _one(
        self,
        feeds: Mapping[str, NDArray[Any]],
        token: NDArray[Any],
        state: NDArray[Any],
        coverage: NDArray[Any],
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        logits, state, alpha = self._all(feeds, token, state, coverage)
        following = logits.argmax(1)
        return following, logits[np.arange(len(token)), following], state, alpha

    def _all(
        self,
        feeds: Mapping[str, NDArray[Any]],
        token: NDArray[Any],
        state: NDArray[Any],
        coverage: NDArray[Any],
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Log-probabilities of all tokens, the state after the step, and its attention."""
        d, u = self.sizes.features, self.sizes.hidden
        keys, values = feeds["keys"].astype(np.float64), feeds["values"].astype(np.float64)
        hidden, cell, located = np.split(state.astype(np.float64), [u, 2 * u], axis=1)
        new = np.tanh(
            self.embedding[token] + np.concatenate([hidden, located], 1) @ self.recur + cell
        )
        hidden = np.where((token == SOS_ID)[:, None], hidden, new)
        inner = keys + (hidden @ self.query)[:, None, None] + coverage[..., None] * self.cumulative
        energy = np.tanh(inner) @ self.energy
        height, width = energy.shape[1:]
        size = feeds["feature_size"]
        mask = (np.arange(height) < size[:, :1])[:, :, None]
        mask = mask & (np.arange(width) < size[:, 1:])[:, None, :]
        energy = np.where(mask, energy, -1e9)
        weight = np.exp(energy - energy.max((1, 2), keepdims=True))
        alpha = weight / weight.sum((1, 2), keepdims=True)
        context = np.einsum("nhw,nhwc->nc", alpha, values)
        logits = np.concatenate([context[:, :d], hidden], 1) @ self.output + self.bias
        logits -= logits.max(1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(1, keepdims=True))
        state = np.concatenate([hidden, np.tanh(cell + hidden * 0.3), context[:, d:]], 1)
        return logits, state, alpha


def random_images(
    count: int, seed: int = 0, sizes: Sizes = SIZES, most: tuple[int, int] = (6, 20)
) -> list[EncodedImage]:
    """``EncodedImage``s of several sizes with random features."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        h, w = int(rng.integers(1, most[0] + 1)), int(rng.integers(1, most[1] + 1))
        result.append(
            EncodedImage(
                rng.normal(0, 1, (h, w, 2 * sizes.features)).astype(np.float32),
                rng.normal(0, 1, (h, w, sizes.attention)).astype(np.float32),
                rng.normal(0, 0.5, sizes.state).astype(np.float32),
            )
        )
    return result


def run_beams(
    step: MarkovStep,
    images: Sequence[EncodedImage],
    options: SearchOptions,
    max_tokens: int = 4,
    guards: Guards | None = None,
) -> list[Outcome]:
    """The outcomes of a beam search for ``images``."""
    greedy = ScriptedStep(step.slots)
    return decode_all(greedy, images, max_tokens, beam_step=step, guards=guards, search=options)
