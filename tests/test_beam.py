"""Beam search: against an exhaustive search, against greedy decoding, in the scheduler."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest

from hmer.beam import BeamSearch, length_penalty
from hmer.decode import (
    DecodeRequest,
    EncodedImage,
    Guards,
    Hypothesis,
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
from hmer.vocab import EOS_ID, SOS_ID, Vocabulary
from tests.decode_fixtures import MarkovStep, ScriptedStep, script

LENGTH = 4  # tokens, <eos> included
IDS = range(3, 6)  # of MarkovStep's vocabulary, without the special ones


def search_all(image: int, options: SearchOptions, length: int = LENGTH) -> list[Hypothesis]:
    """Every finished sequence of at most ``length`` tokens, ranked by definition."""
    step = MarkovStep(1)
    found = []
    for n in range(length):
        for body in itertools.product(IDS, repeat=n):
            ids = (*body, EOS_ID)
            scores = [
                float(step.scores((image, SOS_ID, *ids[:at]))[token])
                for at, token in enumerate(ids)
            ]
            lp = ((5 + len(ids)) / 6) ** options.length_penalty
            found.append(Hypothesis(ids, tuple(scores), sum(scores) / lp))
    return sorted(found, key=lambda hypothesis: -hypothesis.rank)


def run(
    step: MarkovStep,
    images: Sequence[EncodedImage],
    options: SearchOptions,
    max_tokens: int = LENGTH,
    guards: Guards | None = None,
) -> list[Outcome]:
    greedy = ScriptedStep(step.slots)
    return decode_all(
        greedy, images, max_tokens, beam_step=step, guards=guards, search=options
    )  # fmt: skip


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 2.5])
@pytest.mark.parametrize("n_best", [1, 4])
def test_a_beam_that_holds_everything_finds_the_best(alpha: float, n_best: int) -> None:
    options = SearchOptions(beam=130, n_best=n_best, length_penalty=alpha)
    step = MarkovStep(slots=130)
    outcomes = run(step, step.images(12), options)
    for image, outcome in enumerate(outcomes):
        expected = search_all(image, options)[:n_best]
        assert outcome.reason == "eos"
        found = [outcome.ids, *(other.ids for other in outcome.alternatives)]
        assert found == [hypothesis.ids for hypothesis in expected]
        assert outcome.scores == pytest.approx(expected[0].scores)
        for other, hypothesis in zip(outcome.alternatives, expected[1:], strict=True):
            assert other.rank == pytest.approx(hypothesis.rank)
            assert other.scores == pytest.approx(hypothesis.scores)


def greedy_loop(image: int, max_tokens: int) -> tuple[int, ...]:
    step, ids = MarkovStep(1), list[int]()
    while EOS_ID not in ids and len(ids) < max_tokens:
        ids.append(int(step.scores((image, SOS_ID, *ids)).argmax()))
    return tuple(ids)


def test_a_beam_of_one_is_greedy() -> None:
    for image in range(60):
        for alpha in (0.0, 1.5):
            request = DecodeRequest(
                script(image), 9, lambda _: None, search=SearchOptions(1, 1, alpha)
            )
            search = BeamSearch((0,), request, 0.0, 0.0)
            step, reason = MarkovStep(1), None
            step.admit((0,), request.encoded)
            while reason is None:
                result = step.step(search.moves)
                reason = search.take(result.candidates.tolist(), result.scores.tolist()).reason
            (answer,) = search.answers()
            assert answer.ids == greedy_loop(image, 9)
            assert reason == ("eos" if answer.ids[-1] == EOS_ID else "length")


class Stubborn(BeamSearch):
    """Goes on until every place is taken, or the limit is reached."""

    def _reason(self, live):  # type: ignore[no-untyped-def]
        return super()._reason(live) if not live or self.steps >= self.request.max_tokens else None


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.2])
@pytest.mark.parametrize(("width", "n_best"), [(3, 1), (3, 2), (8, 3)])
def test_stopping_early_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, alpha: float, width: int, n_best: int
) -> None:
    options = SearchOptions(width, n_best, alpha)
    step = MarkovStep(width)
    early = run(step, step.images(40), options, 12)
    monkeypatch.setattr("hmer.machines.BeamSearch", Stubborn)
    late = run(step, step.images(40), options, 12)
    for one, other in zip(early, late, strict=True):
        assert (one.ids, one.alternatives) == (other.ids, other.alternatives)
    assert sum(o.steps for o in early) < sum(o.steps for o in late)


def test_a_wider_beam_finds_what_greedy_misses() -> None:
    better = 0
    step = MarkovStep(6)
    images = step.images(40)
    for image, outcome in enumerate(run(step, images, SearchOptions(6, 1, 0.0), 12)):
        greedy = greedy_loop(image, 12)
        scores = [
            step.scores((image, SOS_ID, *greedy[:at]))[token] for at, token in enumerate(greedy)
        ]
        if greedy[-1] == EOS_ID:
            assert sum(outcome.scores) >= sum(scores) - 1e-4
            better += sum(outcome.scores) > sum(scores) + 1e-4
    assert better > 5


def test_length_penalty() -> None:
    assert length_penalty(30, 0.0) == 1.0
    assert length_penalty(1, 0.7) == 1.0
    assert length_penalty(13, 1.0) == pytest.approx(3.0)


def test_few_candidates_are_enough_for_a_search() -> None:
    """A beam wider than the graph's candidates grows over the first steps."""
    step = MarkovStep(slots=6, candidates=2)
    (outcome,) = run(step, step.images(1), SearchOptions(6, 4, 0.5), 20)
    assert outcome.reason == "eos"
    assert len({outcome.ids, *(other.ids for other in outcome.alternatives)}) == 4


def test_an_unfinished_answer_is_the_best_so_far() -> None:
    class Endless(MarkovStep):
        def scores(self, fed):  # type: ignore[no-untyped-def]
            scores = super().scores(fed)
            scores[EOS_ID] = -60.0
            return scores

    step = Endless(4)
    (outcome,) = run(step, step.images(1), SearchOptions(4, 3), 5)
    assert outcome.reason == "length"
    assert len(outcome.ids) == 5
    assert outcome.steps == 5
    assert len(outcome.alternatives) == 2
    totals = [math.fsum(h) for h in (outcome.scores, *(o.scores for o in outcome.alternatives))]
    assert totals == sorted(totals, reverse=True)


VOCABULARY = Vocabulary(["{", "}", "^", "x", "2"])
OPEN, CLOSE, SUP, X, TWO = VOCABULARY.encode(["{", "}", "^", "x", "2"])


def test_guards_keep_a_beam_to_formulas() -> None:
    step = MarkovStep(5, tokens=len(VOCABULARY))
    guards, free, bound = Guards(VOCABULARY), 0, 0
    for guarded in (None, guards):
        for outcome in run(step, step.images(60), SearchOptions(5, 3), 40, guarded):
            for ids in (outcome.ids, *(other.ids for other in outcome.alternatives)):
                if ids[-1] != EOS_ID:
                    continue
                state = guards.start
                for token in ids:
                    following = guards.follow(state, token)
                    free += guarded is None and following is None
                    if following is None:
                        break
                    state = following
                else:
                    bound += guarded is not None
    assert free > 20, "without guards many answers are no formulas"
    assert bound > 100


def test_a_search_that_the_guards_leave_no_way_is_stuck() -> None:
    class Closing(MarkovStep):
        def scores(self, fed):  # type: ignore[no-untyped-def]
            scores = np.full(self.tokens, -50.0, np.float32)
            scores[[X, CLOSE]] = (-0.1, -2.0) if len(fed) < 4 else (-50.0, -0.1)
            return scores

    step = Closing(2, tokens=len(VOCABULARY), candidates=1)
    (outcome,) = run(step, step.images(1), SearchOptions(2), 40, Guards(VOCABULARY))
    assert outcome.reason == "stuck"
    assert outcome.ids == (X, X)


def test_greedy_decoding_ends_a_loop() -> None:
    step = ScriptedStep(k=4)
    loop = [X, SUP, OPEN, TWO, CLOSE] * 50
    (free,) = decode_all(step, [script(*loop)], 200)
    (ended,) = decode_all(step, [script(*loop)], 200, guards=Guards(VOCABULARY))
    assert (free.reason, len(free.ids)) == ("length", 200)
    assert ended.reason == "repetition"
    assert ended.ids == tuple(loop[:35])
    assert ended.steps < free.steps / 5


# In the scheduler


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
    alone = run(MarkovStep(8), step.images(30), beam, 20)
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
    assert outcomes[2].ids == run(MarkovStep(2), [script(2)], SearchOptions(2), 20)[0].ids
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
    outcomes = run(step, step.images(3), SearchOptions(2, 2, 1.0), 20)
    assert isinstance(outcomes[1].error, InferenceFailed)
    assert "nan" in str(outcomes[1].error)
    sound = run(MarkovStep(6), step.images(3), SearchOptions(2, 2, 1.0), 20)
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
