"""Beams as rows of persistent batches: the same answers whatever the batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hmer import contract
from hmer.decode import (
    BeamResult,
    DecodeRequest,
    EncodedImage,
    Move,
    Outcome,
    Scheduler,
    SearchOptions,
    decode_all,
)
from hmer.errors import InferenceFailed
from hmer.slots import LADDER, BeamSlots, SlotStep
from hmer.vocab import EOS_ID, SOS_ID
from tests.decode_fixtures import SIZES, NumpyDecoder, random_images

MAX_TOKENS = 24
OPTIONS = SearchOptions(beam=4, n_best=3, length_penalty=0.7)


def same(left: Outcome, right: Outcome) -> bool:
    """Equal ids, and scores but for rounding."""
    return (
        left.ids == right.ids
        and np.allclose(left.scores, right.scores, atol=1e-4)
        and [other.ids for other in left.alternatives]
        == [other.ids for other in right.alternatives]
    )


class PlainBeams:
    """``BeamStep`` as its definition has it: every slot alone, unpadded, its state in a dict."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.decoder = NumpyDecoder()
        self.images: dict[int, EncodedImage] = {}
        self.states: dict[int, tuple[NDArray[Any], NDArray[Any]]] = {}

    def admit(self, slots: Sequence[int], encoded: EncodedImage) -> None:
        for slot in slots:
            self.images[slot] = encoded
            coverage = np.zeros(encoded.keys.shape[:2], np.float32)
            self.states[slot] = encoded.state, coverage

    def release(self, slots: Sequence[int]) -> None:
        for slot in slots:
            del self.images[slot], self.states[slot]

    def step(self, moves: Sequence[Move]) -> BeamResult:
        before, found = dict(self.states), []
        for move in moves:
            image, (state, coverage) = self.images[move.slot], before[move.parent]
            feeds: dict[str, NDArray[Any]] = {
                "values": image.values[None],
                "keys": image.keys[None],
                "feature_size": np.array([image.keys.shape[:2]], np.int32),
                "token": np.array([[move.token]], np.int32),
                "parent": np.zeros((1, 1), np.int32),
                "state": state[None],
                "coverage": coverage[None],
            }
            found.append(self.decoder.beam(feeds))
            self.states[move.slot] = found[-1]["next_state"][0], found[-1]["next_coverage"][0]
        return BeamResult(
            np.concatenate([outputs["candidates"] for outputs in found]),
            np.concatenate([outputs["scores"] for outputs in found]),
        )


@cache
def alone(count: int, seed: int = 0) -> tuple[list[EncodedImage], list[Outcome]]:
    """Random images, and each one's answers with nobody beside it, by the plainest step."""
    images, outcomes = random_images(count, seed), []
    for image in images:
        greedy = SlotStep(NumpyDecoder(), SIZES, OPTIONS.beam)
        plain = PlainBeams(OPTIONS.beam)
        outcomes += decode_all(greedy, [image], MAX_TOKENS, beam_step=plain, search=OPTIONS)
    return images, outcomes


def test_the_mock_is_worth_testing_with() -> None:
    outcomes = alone(40)[1]
    assert all(outcome.error is None for outcome in outcomes)
    assert len({outcome.ids for outcome in outcomes}) > 20
    assert sum(len(outcome.alternatives) == 2 for outcome in outcomes) > 20
    greedy = decode_all(SlotStep(NumpyDecoder(), SIZES, 8), alone(40)[0], MAX_TOKENS)
    differs = [one.ids != other.ids for one, other in zip(greedy, outcomes, strict=True)]
    assert 3 < sum(differs) < 37, "reordering of states matters, and not everywhere"


@pytest.mark.parametrize("slots", [4, 7, 32])
@pytest.mark.parametrize("ladder", [(), LADDER])
@pytest.mark.parametrize("lanes", [(), (4, 12)])
def test_answers_do_not_depend_on_the_batch(
    slots: int, ladder: tuple[int, ...], lanes: tuple[int, ...]
) -> None:
    images, expected = alone(40)
    decoder = NumpyDecoder()
    beams = BeamSlots(decoder.beam, SIZES, slots, ladder=ladder, lanes=lanes)
    greedy = SlotStep(decoder, SIZES, slots)
    outcomes = decode_all(greedy, images, MAX_TOKENS, beam_step=beams, search=OPTIONS)
    assert all(map(same, outcomes, expected))


def test_answers_do_not_depend_on_arrival() -> None:
    """Beams and greedy requests that join, leave and are cancelled at random."""
    images, expected = alone(40)
    plain = decode_all(SlotStep(NumpyDecoder(), SIZES, 1), images, MAX_TOKENS)
    rng = np.random.default_rng(2)
    decoder = NumpyDecoder()
    scheduler = Scheduler(
        SlotStep(decoder, SIZES, 10, ladder=LADDER),
        max_queue=80,
        beam_step=BeamSlots(decoder.beam, SIZES, 10, ladder=LADDER),
    )
    outcomes: dict[int, Outcome] = {}
    gone: set[int] = set()
    waiting = [at for number in range(40) for at in (number, 100 + number)]
    busy = True
    while waiting or busy:
        for _ in range(int(rng.integers(0, 4))):
            if waiting:
                at = waiting.pop(0)
                scheduler.submit(
                    DecodeRequest(
                        images[at % 100],
                        MAX_TOKENS,
                        on_done=partial(outcomes.__setitem__, at),
                        cancelled=partial(gone.__contains__, at),
                        search=OPTIONS if at < 100 else SearchOptions(),
                    )
                )
        if rng.random() < 0.2:
            gone.add(int(rng.integers(0, 40)))
        busy = scheduler.run_once()
    answered = [at for at, outcome in outcomes.items() if outcome.error is None]
    assert 60 < len(answered) < 80
    for at in answered:
        assert same(outcomes[at], expected[at] if at < 100 else plain[at - 100]), at


class Recorder:
    """Keeps the feeds of each call; answers with a mock decoder."""

    def __init__(self) -> None:
        self.feeds: list[dict[str, NDArray[Any]]] = []
        self.addresses: list[int] = []

    def __call__(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.addresses.append(feeds["values"].__array_interface__["data"][0])
        self.feeds.append({name: array.copy() for name, array in feeds.items()})
        return NumpyDecoder().beam(feeds)


def test_feeds_are_the_contracts_tensors() -> None:
    run = Recorder()
    beams = BeamSlots(run, SIZES, 8, ladder=LADDER, bucket=(4, 8))
    images = random_images(2, most=(4, 8))
    beams.admit([5, 1], images[0])
    beams.admit([7], images[1])
    moves = [Move(5, SOS_ID, 5), Move(1, EOS_ID, 1), Move(7, SOS_ID, 7)]
    result = beams.step(moves)
    assert result.candidates.shape == result.scores.shape == (3, SIZES.beam)
    (feeds,) = run.feeds
    spec = contract.models(SIZES)[contract.DECODER_BEAM]
    sizes = {"feature_height": 4, "feature_width": 8}
    assert set(feeds) == {tensor.name for tensor in spec.inputs}
    for tensor in spec.inputs:
        dims = tuple(sizes[d] if isinstance(d, str) else d for d in tensor.dims)
        assert feeds[tensor.name].shape == (4, *dims)
        assert feeds[tensor.name].dtype == tensor.dtype
    assert feeds["parent"][:, 0].tolist() == [0, 1, 2, 3]
    assert sorted(feeds["token"][:, 0].tolist()) == sorted([SOS_ID, EOS_ID, SOS_ID, EOS_ID])


def test_features_are_copied_at_admission_only() -> None:
    run = Recorder()
    beams = BeamSlots(run, SIZES, 4, lanes=())
    (image,) = random_images(1)
    beams.admit([0, 1, 2], image)
    for _ in range(4):
        beams.step([Move(0, SOS_ID, 2), Move(1, SOS_ID, 0), Move(2, SOS_ID, 0)])
    assert len(set(run.addresses)) == 1
    h, w = image.keys.shape[:2]
    for feeds in run.feeds:
        for row in range(3):
            assert np.array_equal(feeds["values"][row, :h, :w], image.values)


def test_parents_are_found_after_rows_have_moved() -> None:
    """A neighbour leaves, the last rows move into its place: slots keep their states."""
    images = random_images(2, seed=4, most=(3, 8))
    run = Recorder()
    beams = BeamSlots(run, SIZES, 4, lanes=())
    beams.admit([0, 1], images[0])
    beams.admit([2, 3], images[1])
    first = [Move(slot, SOS_ID, slot) for slot in (2, 3)]
    beams.step([Move(0, SOS_ID, 0), Move(1, SOS_ID, 1), *first])
    beams.release([0, 1])
    moved = beams.step([Move(3, 7, 2), Move(2, 9, 3)])
    still = PlainBeams(4)
    still.admit([2, 3], images[1])
    still.step(first)
    expected = still.step([Move(3, 7, 2), Move(2, 9, 3)])
    assert moved.candidates.tolist() == expected.candidates.tolist()
    assert np.allclose(moved.scores, expected.scores, atol=1e-5)
    assert moved.candidates[0].tolist() != moved.candidates[1].tolist()


@pytest.mark.parametrize("name", ["candidates", "scores", "next_state", "next_coverage"])
def test_a_graph_that_gives_something_else_is_an_error(name: str) -> None:
    def narrow(feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        outputs = NumpyDecoder().beam(feeds)
        return outputs | {name: outputs[name][..., :-1]}

    beams = BeamSlots(narrow, SIZES, 4)
    outcomes = decode_all(
        SlotStep(NumpyDecoder(), SIZES, 4), random_images(1), 9, beam_step=beams, search=OPTIONS
    )
    assert isinstance(outcomes[0].error, InferenceFailed)
    assert f"decoder_beam's output {name}" in str(outcomes[0].error)


def test_features_of_another_network_fail_alone_and_leave_nothing() -> None:
    good, other = random_images(2)
    bad = EncodedImage(other.values[..., :-1], other.keys, other.state)
    decoder = NumpyDecoder()
    beams = BeamSlots(decoder.beam, SIZES, 8)
    greedy = SlotStep(decoder, SIZES, 8)
    for _ in range(2):  # the slots are free again
        outcomes = decode_all(greedy, [bad, good], 9, beam_step=beams, search=OPTIONS)
        assert "not of one bundle" in str(outcomes[0].error)
        assert outcomes[1].error is None
