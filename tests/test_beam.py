"""Beam search: against an exhaustive search, against greedy decoding, within the guards."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from hmer.beam import BeamSearch, length_penalty
from hmer.decode import (
    DecodeRequest,
    Guards,
    Hypothesis,
    SearchOptions,
    decode_all,
)
from hmer.vocab import EOS_ID, SOS_ID, Vocabulary
from tests.decode_fixtures import MarkovStep, ScriptedStep, run_beams, script

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


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 2.5])
@pytest.mark.parametrize("n_best", [1, 4])
def test_a_beam_that_holds_everything_finds_the_best(alpha: float, n_best: int) -> None:
    options = SearchOptions(beam=130, n_best=n_best, length_penalty=alpha)
    step = MarkovStep(slots=130)
    outcomes = run_beams(step, step.images(12), options)
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
    early = run_beams(step, step.images(40), options, 12)
    monkeypatch.setattr("hmer.machines.BeamSearch", Stubborn)
    late = run_beams(step, step.images(40), options, 12)
    for one, other in zip(early, late, strict=True):
        assert (one.ids, one.alternatives) == (other.ids, other.alternatives)
    assert sum(o.steps for o in early) < sum(o.steps for o in late)


def test_a_wider_beam_finds_what_greedy_misses() -> None:
    better = 0
    step = MarkovStep(6)
    images = step.images(40)
    for image, outcome in enumerate(run_beams(step, images, SearchOptions(6, 1, 0.0), 12)):
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
    (outcome,) = run_beams(step, step.images(1), SearchOptions(6, 4, 0.5), 20)
    assert outcome.reason == "eos"
    assert len({outcome.ids, *(other.ids for other in outcome.alternatives)}) == 4


def test_an_unfinished_answer_is_the_best_so_far() -> None:
    class Endless(MarkovStep):
        def scores(self, fed):  # type: ignore[no-untyped-def]
            scores = super().scores(fed)
            scores[EOS_ID] = -60.0
            return scores

    step = Endless(4)
    (outcome,) = run_beams(step, step.images(1), SearchOptions(4, 3), 5)
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
        for outcome in run_beams(step, step.images(60), SearchOptions(5, 3), 40, guarded):
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
    (outcome,) = run_beams(step, step.images(1), SearchOptions(2), 40, Guards(VOCABULARY))
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
