"""How many tokens a call brings: chosen by who waits, and never seen in an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hmer.decode import DecodeRequest, EncodedImage, Outcome, Scheduler
from hmer.machines import tokens_a_call
from hmer.search import GreedySearch
from hmer.slots import SlotStep
from tests.decode_fixtures import SIZES, NumpyDecoder, random_images, script

Tensors = dict[str, NDArray[Any]]
MAX_TOKENS = 24


class OneToken:
    """``decoder_beam`` as far as a step of one token needs it, by a decoder with k = 1."""

    def __init__(self) -> None:
        self.calls = 0
        self._decoder = NumpyDecoder(replace(SIZES, k=1))

    def __call__(self, feeds: Tensors) -> Tensors:
        self.calls += 1
        feeds = dict(feeds)
        assert feeds.pop("parent")[:, 0].tolist() == list(range(len(feeds["token"])))
        out = dict(self._decoder(feeds))
        rows = len(out["tokens"])
        worse = np.zeros((rows, SIZES.beam - 1))
        out["candidates"] = np.hstack([out.pop("tokens"), worse.astype(np.int32)])
        out["scores"] = np.hstack([out["scores"], (worse - 99).astype(np.float32)])
        return out


def run(
    step: SlotStep, images: list[EncodedImage], **options: Any
) -> tuple[list[Outcome], list[int]]:
    """Outcomes in order, and the tokens of every call."""
    outcomes: dict[int, Outcome] = {}
    ks: list[int] = []
    scheduler = Scheduler(step, max_queue=len(images))
    for index, image in enumerate(images):
        done = partial(outcomes.__setitem__, index)
        own = {name: value(index) for name, value in options.items()}
        scheduler.submit(DecodeRequest(image, MAX_TOKENS, done, **own))
    while scheduler.run_once():
        ks.append(step.k)
    return [outcomes[index] for index in range(len(images))], ks


def search(max_tokens: int = MAX_TOKENS, ids: tuple[int, ...] = (), **options: Any) -> GreedySearch:
    request = DecodeRequest(script(), max_tokens, lambda outcome: None, **options)
    return GreedySearch((0,), request, 0.0, 0.0, ids=list(ids))


def test_calls_are_long_unless_somebody_waits_for_a_first_token() -> None:
    assert tokens_a_call((1, 4), [search(), search(ids=(5,))]) == 4
    assert tokens_a_call((1, 4), [search(), search(eager=True)]) == 1
    assert tokens_a_call((1, 4), [search(), search(ids=(5,), eager=True)]) == 4


def test_a_request_can_ask_for_short_calls() -> None:
    assert tokens_a_call((1, 2, 4), [search(), search(k=3)]) == 2
    assert tokens_a_call((2, 4), [search(k=1)]) == 2, "as far as the step has a choice"


def test_no_more_is_computed_than_the_limit_allows() -> None:
    assert tokens_a_call((1, 4), [search(max_tokens=3, ids=(5, 6))]) == 1
    assert tokens_a_call((1, 4), [search(max_tokens=3, ids=(5, 6)), search()]) == 4


@pytest.mark.parametrize("slots", [1, 5])
def test_answers_do_not_depend_on_k(slots: int) -> None:
    images = random_images(24, 3)
    plain, _ = run(SlotStep(NumpyDecoder(), SIZES, slots), images)
    one = OneToken()
    mixed, ks = run(
        SlotStep(NumpyDecoder(), SIZES, slots, one_token=one),
        images,
        eager=lambda index: index % 3 == 0,
        k=lambda index: 2 if index % 7 == 6 else None,
    )
    assert {1, SIZES.k} <= set(ks)
    assert one.calls
    assert [outcome.ids for outcome in mixed] == [outcome.ids for outcome in plain]
    for left, right in zip(mixed, plain, strict=True):
        np.testing.assert_allclose(left.scores, right.scores, atol=1e-4)


def test_a_first_token_comes_alone() -> None:
    step = SlotStep(NumpyDecoder(), SIZES, 4, one_token=OneToken())
    parts: list[int] = []
    image = next(i for i, o in zip(*_long(), strict=True) if len(o.ids) > 6)

    def note(ids: Sequence[int], scores: Sequence[float]) -> None:
        parts.append(len(ids))

    run(step, [image], eager=lambda _: True, on_tokens=lambda _: note)
    assert parts[:2] == [1, SIZES.k]


def _long() -> tuple[list[EncodedImage], list[Outcome]]:
    images = random_images(16, 5)
    return images, run(SlotStep(NumpyDecoder(), SIZES, 8), images)[0]
