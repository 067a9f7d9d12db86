"""Beams in the scheduler: slots, queue, cancellation, failures, refusals."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from hmer.decode import (
    DecodeRequest,
    EncodedImage,
    Outcome,
    Scheduler,
    SearchOptions,
    StepResult,
    decode_all,
)
from hmer.errors import (
    BadParameter,
    Cancelled,
    DeadlineExceeded,
    HmerError,
    InferenceFailed,
    Overloaded,
)
from hmer.vocab import EOS_ID
from tests.decode_fixtures import MarkovStep, ScriptedStep, run_beams, script


def ask(
    scheduler: Scheduler,
    outcomes: dict[int, Outcome],
    number: int,
    image: EncodedImage,
    options: SearchOptions,
    **more: object,
) -> None:
    done = partial(outcomes.__setitem__, number)
    scheduler.submit(DecodeRequest(image, 20, done, search=options, **more))  # type: ignore[arg-type]


def test_beams_and_greedy_requests_share_the_slots() -> None:
    step, greedy = MarkovStep(8), ScriptedStep(8)
    beam = SearchOptions(3, 2)
    alone = run_beams(MarkovStep(8), step.images(30), beam, 20)
    scheduler = Scheduler(greedy, max_queue=100, beam_step=step)
    outcomes: dict[int, Outcome] = {}
    rng = np.random.default_rng(0)
    waiting = [(number, kind) for number in range(30) for kind in (0, 1)]
    busy = True
    while waiting or busy:
        for _ in range(int(rng.integers(0, 3))):
            if waiting:
                number, kind = waiting.pop(0)
                if kind:
                    ask(
                        scheduler,
                        outcomes,
                        100 + number,
                        script(*[5] * (number % 9)),
                        beam.with_(1),
                    )
                else:
                    ask(scheduler, outcomes, number, script(number), beam)
        busy = scheduler.run_once()
        assert len(step.held) + len(greedy.scripts) == scheduler.stats().slots_in_use <= 8
    for number, expected in enumerate(alone):
        assert outcomes[number].ids == expected.ids
        assert outcomes[number].alternatives == expected.alternatives
        assert outcomes[100 + number].ids == (5,) * (number % 9) + (EOS_ID,)
    assert not step.held
    assert not greedy.scripts
    assert max(step.calls) == 6
    stats = scheduler.stats()
    assert stats.completed == stats.accepted == 60
    assert stats.rows == sum(step.calls) + sum(map(len, greedy.calls))


def test_a_beam_at_the_head_of_the_queue_is_not_overtaken() -> None:
    step, greedy = MarkovStep(4), ScriptedStep(4)
    scheduler = Scheduler(greedy, max_queue=10, beam_step=step)
    outcomes: dict[int, Outcome] = {}
    greedy_options = SearchOptions()
    ask(scheduler, outcomes, 0, script(*[5] * 9), greedy_options)
    scheduler.run_once()
    ask(scheduler, outcomes, 1, script(1), SearchOptions(4))
    ask(scheduler, outcomes, 2, script(), greedy_options)
    while scheduler.run_once():
        assert not (2 in outcomes and 1 not in outcomes)
    assert list(outcomes) == [0, 1, 2]


def test_a_queue_is_bounded_in_requests_that_find_no_slots() -> None:
    scheduler = Scheduler(ScriptedStep(4), max_queue=0, beam_step=MarkovStep(4))
    outcomes: dict[int, Outcome] = {}
    ask(scheduler, outcomes, 0, script(0), SearchOptions(3))
    with pytest.raises(Overloaded):
        ask(scheduler, outcomes, 1, script(1), SearchOptions(2))
    ask(scheduler, outcomes, 2, script(5), SearchOptions(1))
    with pytest.raises(Overloaded):
        ask(scheduler, outcomes, 3, script(5), SearchOptions(1))
    while scheduler.run_once():
        pass
    assert outcomes.keys() == {0, 2}


def test_cancellation_and_deadlines_free_all_slots_of_a_beam() -> None:
    now = [0.0]
    step = MarkovStep(4)
    scheduler = Scheduler(ScriptedStep(4), max_queue=9, beam_step=step, clock=lambda: now[0])
    outcomes: dict[int, Outcome] = {}
    gone: list[int] = []
    long = SearchOptions(4, 4, 2.0)
    ask(scheduler, outcomes, 0, script(0), long, cancelled=lambda: bool(gone))
    ask(scheduler, outcomes, 1, script(1), long, deadline=5.0)
    ask(scheduler, outcomes, 2, script(2), SearchOptions(2))
    scheduler.run_once()
    scheduler.run_once()
    assert len(step.held) == 4
    gone.append(1)
    scheduler.run_once()
    assert isinstance(outcomes[0].error, Cancelled)
    assert len(outcomes[0].ids) == 2
    assert outcomes[0].alternatives == ()
    now[0] = 6.0
    while scheduler.run_once():
        pass
    assert isinstance(outcomes[1].error, DeadlineExceeded)
    assert outcomes[2].ids == run_beams(MarkovStep(2), [script(2)], SearchOptions(2), 20)[0].ids
    assert step.held == {}


def test_a_failing_beam_step_spares_the_greedy_requests() -> None:
    class Failing(MarkovStep):
        def step(self, moves):  # type: ignore[no-untyped-def]
            raise RuntimeError("device lost")

    step = Failing(4)
    scheduler = Scheduler(ScriptedStep(4), max_queue=9, beam_step=step)
    outcomes: dict[int, Outcome] = {}
    ask(scheduler, outcomes, 0, script(0), SearchOptions(2))
    ask(scheduler, outcomes, 1, script(5, 5), SearchOptions())
    while scheduler.run_once():
        pass
    assert isinstance(outcomes[0].error, InferenceFailed)
    assert outcomes[1].ids == (5, 5, EOS_ID)
    assert step.held == {}


def test_nan_fails_its_beam_alone() -> None:
    class Broken(MarkovStep):
        def scores(self, fed):  # type: ignore[no-untyped-def]
            return super().scores(fed) * (np.nan if fed[0] == 1 and len(fed) > 2 else 1.0)

    step = Broken(6)
    outcomes = run_beams(step, step.images(3), SearchOptions(2, 2, 1.0), 20)
    assert isinstance(outcomes[1].error, InferenceFailed)
    assert "nan" in str(outcomes[1].error)
    sound = run_beams(MarkovStep(6), step.images(3), SearchOptions(2, 2, 1.0), 20)
    assert [outcomes[n].ids for n in (0, 2)] == [sound[n].ids for n in (0, 2)]


def test_a_beam_is_streamed_when_it_is_known() -> None:
    step = MarkovStep(3)
    scheduler = Scheduler(ScriptedStep(3), max_queue=1, beam_step=step)
    parts: list[list[int]] = []
    outcomes: dict[int, Outcome] = {}
    ask(
        scheduler, outcomes, 0, script(3), SearchOptions(3),
        on_tokens=lambda ids, _: parts.append(list(ids)),
    )  # fmt: skip
    while scheduler.run_once():
        pass
    assert parts == [list(outcomes[0].ids[:-1])]
    assert scheduler.stats().tokens == len(outcomes[0].ids)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beam": 0}, "beam is 0"),
        ({"beam": 2.5}, "beam is 2.5"),
        ({"beam": True}, "beam is True"),
        ({"beam": 3, "n_best": 4}, "1 to the beam's width, which is 3"),
        ({"n_best": 0}, "n_best is 0"),
        ({"length_penalty": -0.1}, "within 0 and 10"),
        ({"length_penalty": float("nan")}, "within 0 and 10"),
        ({"length_penalty": "long"}, "must be a number"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(BadParameter, match=words):
        SearchOptions(**options)  # type: ignore[arg-type]


def test_beams_that_cannot_be_done_are_refused() -> None:
    def error_of(scheduler: Scheduler, width: int) -> HmerError:
        with pytest.raises(BadParameter) as caught:
            ask(scheduler, {}, 0, script(0), SearchOptions(width))
        return caught.value

    without = Scheduler(ScriptedStep(4), max_queue=1)
    assert "hmer-export onnx --beam" in str(error_of(without, 2))
    narrow = Scheduler(ScriptedStep(4), max_queue=1, beam_step=MarkovStep(4))
    assert "4 slots" in str(error_of(narrow, 5))
    with pytest.raises(BadParameter, match="share their slots"):
        Scheduler(ScriptedStep(4), max_queue=1, beam_step=MarkovStep(5))


def test_options_with_others() -> None:
    options = SearchOptions(5, 4, 0.9)
    assert options.with_() == options
    assert options.with_(beam=2) == SearchOptions(2, 2, 0.9)
    assert options.with_(n_best=5, length_penalty=0.0) == SearchOptions(5, 5, 0.0)
    with pytest.raises(BadParameter):
        options.with_(beam=2, n_best=3)


def test_a_step_of_the_wrong_shape_is_an_error() -> None:
    class Wrong(ScriptedStep):
        def step(self, slots):  # type: ignore[no-untyped-def]
            return StepResult(np.zeros((1, 2), np.int32), np.zeros((1, 2), np.float32))

    (outcome,) = decode_all(Wrong(), [script(5)], 9)
    assert isinstance(outcome.error, InferenceFailed)
