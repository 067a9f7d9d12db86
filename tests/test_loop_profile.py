"""The profile of the decode loop: every moment is some part's, and taking it changes nothing."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from hmer.bundle import Bundle
from hmer.decode import DecodeRequest, EncodedImage, Outcome, Scheduler
from hmer.errors import BadParameter
from hmer.loop_profile import PARTS, LoopProfile, profile_loop
from hmer.slots import SlotStep
from tests.decode_fixtures import SIZES, NumpyDecoder, random_images


def test_laps_add_up() -> None:
    profile = LoopProfile(iter([0.0, 1.0, 3.0, 6.0, 16.0]).__next__)
    for part in ("scheduler", "runtime", "scheduler", "idle"):
        profile.lap(part)
    assert profile.seconds["scheduler"] == 4.0
    assert profile.laps["scheduler"] == 2
    assert profile.shares()["runtime"] == pytest.approx(2 / 6), "idle time is not work"
    assert sum(profile.shares().values()) == pytest.approx(1.0)


def test_no_work_has_no_shares() -> None:
    assert set(LoopProfile().shares().values()) == {0.0}


def test_a_profiled_loop_answers_the_same_and_knows_every_part() -> None:
    answers = []
    profile = LoopProfile(itertools.count().__next__)  # every reading of the clock takes a second
    for taken in (None, profile):
        outcomes: list[Outcome] = []
        step = SlotStep(NumpyDecoder(), SIZES, 4, profile=taken)
        scheduler = Scheduler(step, max_queue=20, profile=taken)
        for image in random_images(12, 1):
            scheduler.submit(DecodeRequest(image, 24, outcomes.append))
        while scheduler.run_once():
            pass
        answers.append([outcome.ids for outcome in outcomes])
        steps = scheduler.stats().steps
    assert answers[0] == answers[1]
    assert set(PARTS) - {"idle"} <= {part for part, laps in profile.laps.items() if laps}
    assert profile.laps["response"] == 12
    assert profile.laps["runtime"] > steps, "a call in a lane, and the rest of the step"
    assert sum(profile.seconds.values()) == sum(profile.laps.values()), "no moment is lost"


def test_the_report_of_a_bundle(tiny_graphs: Bundle) -> None:
    sizes = tiny_graphs.sizes
    rng = np.random.default_rng(0)
    images = [
        EncodedImage(
            rng.normal(size=(3, w, 2 * sizes.features)).astype(np.float32),
            rng.normal(size=(3, w, sizes.attention)).astype(np.float32),
            np.zeros(sizes.state, np.float32),
        )
        for w in (4, 9, 5, 7, 6)
    ]
    report = profile_loop(tiny_graphs, images, 3, max_tokens=12)
    assert report.requests == 5
    assert 1.0 < report.rows <= 3.0
    assert report.padding >= 1.0
    assert report.tokens_a_request <= 12
    assert sum(report.shares.values()) == pytest.approx(1.0)
    assert report.busy_ms_a_request == pytest.approx(sum(report.ms_a_request.values()))
    assert replace(report).to_dict()["shares"] == report.shares
    with pytest.raises(BadParameter, match="at least one image"):
        profile_loop(tiny_graphs, [], 1)
