"""Slots as rows of persistent batches: the same answers whatever the batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hmer import contract
from hmer.decode import DecodeRequest, EncodedImage, Outcome, Scheduler, decode_all
from hmer.errors import BadParameter, InferenceFailed
from hmer.slots import LADDER, LANES, SlotStep, lanes_for, split_encoded
from hmer.vocab import EOS_ID, SOS_ID
from tests.decode_fixtures import SIZES, NumpyDecoder, random_images

MAX_TOKENS = 24


@cache
def images_and_answers(count: int, seed: int) -> tuple[list[EncodedImage], list[Outcome]]:
    """Random images, and the answer to each alone, unpadded, by the plainest loop."""
    images = random_images(count, seed)
    decoder = NumpyDecoder()
    outcomes = []
    for image in images:
        h, w = image.keys.shape[:2]
        feeds: dict[str, NDArray[Any]] = {
            "values": image.values[None],
            "keys": image.keys[None],
            "feature_size": np.array([[h, w]], np.int32),
            "token": np.array([[SOS_ID]], np.int32),
            "state": image.state[None],
            "coverage": np.zeros((1, h, w), np.float32),
        }
        ids: list[int] = []
        scores: list[float] = []
        while len(ids) < MAX_TOKENS and EOS_ID not in ids:
            out = decoder(feeds)
            ids += out["tokens"][0].tolist()
            scores += out["scores"][0].tolist()
            feeds |= {"token": out["tokens"][:, -1:], "state": out["next_state"]}
            feeds |= {"coverage": out["next_coverage"]}
        end = min(ids.index(EOS_ID) + 1 if EOS_ID in ids else MAX_TOKENS, MAX_TOKENS)
        reason = "eos" if ids[end - 1] == EOS_ID else "length"
        outcomes.append(Outcome(tuple(ids[:end]), tuple(scores[:end]), reason))  # type: ignore[arg-type]
    return images, outcomes


def same(left: Outcome, right: Outcome) -> bool:
    return left.ids == right.ids and np.allclose(left.scores, right.scores, atol=1e-4)


def test_the_mock_decoder_is_worth_testing_with() -> None:
    answers = [outcome.ids for outcome in images_and_answers(64, 0)[1]]
    assert len(set(answers)) > 45, "the answer depends on the features"  # some are <eos> alone
    lengths = {len(ids) for ids in answers}
    assert min(lengths) < 6
    assert max(lengths) == MAX_TOKENS


@pytest.mark.parametrize("slots", [1, 3, 32])
@pytest.mark.parametrize("ladder", [(), LADDER])
@pytest.mark.parametrize("lanes", [(), (4, 12)])
@pytest.mark.parametrize("bucket", [(1, 1), (4, 8)])
def test_answers_do_not_depend_on_the_batch(
    slots: int, ladder: tuple[int, ...], lanes: tuple[int, ...], bucket: tuple[int, int]
) -> None:
    images, expected = images_and_answers(64, 0)
    step = SlotStep(NumpyDecoder(), SIZES, slots, ladder=ladder, lanes=lanes, bucket=bucket)
    outcomes = decode_all(step, images, MAX_TOKENS)
    assert all(map(same, outcomes, expected))


def test_answers_do_not_depend_on_arrival() -> None:
    """Random joining and cancelling through a scheduler, against each image alone."""
    images, expected = images_and_answers(120, 3)
    rng = np.random.default_rng(1)
    decoder = NumpyDecoder()
    step = SlotStep(decoder, SIZES, 8, ladder=LADDER)
    scheduler = Scheduler(step, max_queue=len(images))
    outcomes: dict[int, Outcome] = {}
    gone: set[int] = set()
    waiting = list(range(len(images)))
    busy = True
    while waiting or busy:
        for _ in range(int(rng.integers(0, 5))):
            if waiting:
                at = waiting.pop(0)
                scheduler.submit(
                    DecodeRequest(
                        images[at],
                        MAX_TOKENS,
                        on_done=partial(outcomes.__setitem__, at),
                        cancelled=partial(gone.__contains__, at),
                    )
                )
        if rng.random() < 0.2:
            gone.add(int(rng.integers(0, len(images))))
        busy = scheduler.run_once()
    answered = [at for at, outcome in outcomes.items() if outcome.error is None]
    assert len(outcomes) == 120
    assert 80 < len(answered) < 120
    assert all(same(outcomes[at], expected[at]) for at in answered)
    assert set(decoder.batches) <= set(LADDER)
    assert len(set(decoder.batches)) > 1


class Recorder:
    """Keeps the feeds of each call; answers with a mock decoder."""

    def __init__(self, sizes: contract.Sizes = SIZES) -> None:
        self.decoder = NumpyDecoder(sizes)
        self.feeds: list[dict[str, NDArray[Any]]] = []
        self.addresses: list[int] = []

    def __call__(self, feeds: dict[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        self.addresses.append(feeds["values"].__array_interface__["data"][0])
        self.feeds.append({name: array.copy() for name, array in feeds.items()})
        return self.decoder(feeds)


def image(height: int, width: int, seed: int = 0) -> EncodedImage:
    rng = np.random.default_rng(seed)
    return EncodedImage(
        rng.normal(size=(height, width, 2 * SIZES.features)).astype(np.float32),
        rng.normal(size=(height, width, SIZES.attention)).astype(np.float32),
        rng.normal(size=SIZES.state).astype(np.float32),
    )


def test_feeds_are_the_contracts_tensors() -> None:
    run = Recorder()
    step = SlotStep(run, SIZES, 4, ladder=LADDER, bucket=(4, 8))
    for slot, seed in enumerate((1, 2, 3)):
        step.admit(slot, image(2 + slot, 5, seed))
    step.step([0, 1, 2])
    (feeds,) = run.feeds
    spec = contract.models(SIZES)[contract.DECODER_STEP]
    sizes = {"feature_height": 4, "feature_width": 8}
    for tensor in spec.inputs:
        dims = tuple(sizes[d] if isinstance(d, str) else d for d in tensor.dims)
        assert feeds[tensor.name].shape == (4, *dims)
        assert feeds[tensor.name].dtype == tensor.dtype
    assert feeds["token"][:, 0].tolist() == [SOS_ID, SOS_ID, SOS_ID, EOS_ID]
    assert feeds["feature_size"].tolist() == [[2, 5], [3, 5], [4, 5], [1, 1]]
    assert not feeds["coverage"].any()
    assert np.array_equal(feeds["keys"][1, :3, :5], image(3, 5, 2).keys)
    assert not feeds["keys"][1, 3:].any()
    assert not feeds["keys"][1, :, 5:].any()


def test_features_stay_where_they_are_between_joining_and_leaving() -> None:
    run = Recorder()
    step = SlotStep(run, SIZES, 4)
    step.admit(0, image(3, 7))
    for _ in range(5):
        step.step([0])
    assert len(set(run.addresses)) == 1
    assert all(np.array_equal(f["values"], run.feeds[0]["values"]) for f in run.feeds)


def test_results_come_in_the_order_asked_for() -> None:
    images = random_images(3)
    orders = ([0, 1, 2], [2, 0, 1])
    results = []
    for order in orders:
        step = SlotStep(NumpyDecoder(), SIZES, 3)
        for slot in order:
            step.admit(slot, images[slot])
        results.append(step.step([1, 2, 0]).tokens.tolist())
    assert results[0] == results[1]
    assert results[0][0] != results[0][1]


def test_a_newcomer_takes_the_row_that_was_left_and_else_the_last_row_moves() -> None:
    run = Recorder()
    step = SlotStep(run, SIZES, 3)
    for slot in range(3):
        step.admit(slot, image(2, 2, slot))
    step.step([0, 1, 2])
    step.release(1)
    step.admit(1, image(2, 2, 9))
    step.step([0, 1, 2])
    first, second = run.feeds[0]["keys"], run.feeds[1]["keys"]
    assert np.array_equal(second[[0, 2]], first[[0, 2]])
    assert np.array_equal(second[1, :2, :2], image(2, 2, 9).keys)
    step.release(0)
    step.step([1, 2])
    assert np.array_equal(run.feeds[2]["keys"], second[[2, 1]])


def test_height_and_width_follow_the_largest_image_at_work() -> None:
    run = Recorder()
    step = SlotStep(run, SIZES, 3, lanes=(), bucket=(2, 4))
    layouts = []

    def turn(*slots: int) -> None:
        step.step(slots)
        layouts.append(run.feeds[-1]["keys"].shape[1:3])

    step.admit(0, image(3, 5))
    turn(0)
    step.admit(1, image(8, 30))
    turn(0, 1)
    step.admit(2, image(1, 33))
    turn(0, 1, 2)
    step.release(2)
    turn(0, 1)  # 8 x 32 instead of 8 x 36 is not worth moving everything
    step.release(1)
    turn(0)
    assert layouts == [(4, 8), (8, 32), (8, 36), (8, 36), (4, 8)]


def test_wide_images_do_not_widen_the_narrow_ones() -> None:
    run = Recorder()
    step = SlotStep(run, SIZES, 4, lanes=(8, 16), bucket=(1, 1))
    widths = (30, 8, 9, 3)
    for slot, width in enumerate(widths):
        step.admit(slot, image(2, width, slot))
    together = step.step([3, 0, 1, 2])
    assert [feeds["keys"].shape[:3] for feeds in run.feeds] == [(2, 2, 8), (1, 2, 9), (1, 2, 30)]
    for row, slot in enumerate([3, 0, 1, 2]):
        alone = SlotStep(NumpyDecoder(), SIZES, 1)
        alone.admit(0, image(2, widths[slot], slot))
        assert alone.step([0]).tokens.tolist() == together.tokens[[row]].tolist()
    step.release(2)
    step.release(0)
    step.step([1, 3])
    assert len(run.feeds) == 4, "lanes without rows are not called"


def test_lanes_suit_the_runtime() -> None:
    assert lanes_for("onnxruntime") == LANES
    assert lanes_for("openvino") == ()


def test_a_broken_image_does_not_reach_its_neighbours_or_followers() -> None:
    images, expected = images_and_answers(8, 5)
    broken = replace(images[0], values=np.full_like(images[0].values, np.nan))
    step = SlotStep(NumpyDecoder(), SIZES, 4, ladder=(4,))
    outcomes = decode_all(step, [broken, *images[1:]], MAX_TOKENS)
    assert isinstance(outcomes[0].error, InferenceFailed)
    assert all(map(same, outcomes[1:], expected[1:]))


@pytest.mark.parametrize("name", ["values", "keys", "state"])
def test_features_of_another_network_are_refused(name: str) -> None:
    good = image(2, 3)
    bad = replace(good, **{name: getattr(good, name)[..., :-1]})
    step = SlotStep(NumpyDecoder(), SIZES, 2)
    outcomes = decode_all(step, [bad, good], MAX_TOKENS)
    assert isinstance(outcomes[0].error, InferenceFailed)
    assert "not of one bundle" in str(outcomes[0].error)
    assert outcomes[1].error is None


@pytest.mark.parametrize("name", ["tokens", "scores", "next_state", "next_coverage"])
def test_a_graph_that_gives_something_else_is_an_error(name: str) -> None:
    decoder = NumpyDecoder()

    def missing(feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {key: array for key, array in decoder(feeds).items() if key != name}

    def narrow(feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        outputs = decoder(feeds)
        return outputs | {name: outputs[name][..., :-1]}

    for run in (missing, narrow):
        (outcome,) = decode_all(SlotStep(run, SIZES, 1), [image(2, 3)], MAX_TOKENS)
        assert isinstance(outcome.error, InferenceFailed)
        assert name in str(outcome.error)


def test_wrong_use_is_refused() -> None:
    step = SlotStep(NumpyDecoder(), SIZES, 2)
    with pytest.raises(BadParameter):
        SlotStep(NumpyDecoder(), SIZES, 0)
    with pytest.raises(BadParameter, match="ascending"):
        SlotStep(NumpyDecoder(), SIZES, 1, lanes=(20, 10))
    step.admit(0, image(1, 1))
    for slot in (0, 2, -1):
        with pytest.raises(ValueError, match="not free"):
            step.admit(slot, image(1, 1))
    step.admit(1, image(1, 1))
    with pytest.raises(ValueError, match="2 slots are occupied"):
        step.step([0])
    step.release(1)
    step.release(1)
    assert step.step([0]).tokens.shape == (1, SIZES.k)


def test_it_works_on_after_a_failed_step() -> None:
    images, expected = images_and_answers(6, 7)
    decoder = NumpyDecoder()
    calls = 0

    def sometimes(feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("device lost")
        return decoder(feeds)

    step = SlotStep(sometimes, SIZES, 2)
    outcomes = decode_all(step, images, MAX_TOKENS)
    failed = [outcome.error is not None for outcome in outcomes]
    assert 1 <= sum(failed) <= 2
    assert all(same(o, e) for o, e in zip(outcomes, expected, strict=True) if o.error is None)


def test_a_row_that_only_pads_shows_nothing_of_who_was_there() -> None:
    run = Recorder()
    step = SlotStep(run, SIZES, 4, ladder=(4,))
    for slot in range(4):
        step.admit(slot, image(3, 5, slot))
    step.step([0, 1, 2, 3])
    step.release(2)
    step.step([0, 1, 3])
    feeds = run.feeds[-1]
    assert feeds["feature_size"].tolist() == [[3, 5]] * 3 + [[1, 1]]
    assert feeds["token"][3, 0] == EOS_ID
    assert not any(feeds[name][3].any() for name in ("values", "keys", "state", "coverage"))


def test_split_encoded_crops_to_the_true_size() -> None:
    images = random_images(3, seed=2)
    sizes = [image.keys.shape[:2] for image in images]
    batch: dict[str, NDArray[Any]] = {
        "values": np.ones((3, 6, 20, 2 * SIZES.features), np.float32),
        "keys": np.ones((3, 6, 20, SIZES.attention), np.float32),
        "feature_size": np.array(sizes, np.int32),
        "state": np.stack([image.state for image in images]),
    }
    for row, single in enumerate(images):
        h, w = sizes[row]
        batch["values"][row, :h, :w], batch["keys"][row, :h, :w] = single.values, single.keys
    for found, single in zip(split_encoded(batch), images, strict=True):
        assert np.array_equal(found.values, single.values)
        assert np.array_equal(found.keys, single.keys)
        assert np.array_equal(found.state, single.state)
