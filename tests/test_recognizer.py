"""The pipeline within one process, on an exported tiny network."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from hmer import recognizer as module
from hmer.bundle import Bundle
from hmer.calibration import Calibration
from hmer.decode import Hypothesis, Outcome
from hmer.errors import (
    BadInk,
    BadParameter,
    BlankImage,
    Cancelled,
    EmptyInput,
    HmerError,
    InferenceFailed,
    MissingBundle,
    UnreadableImage,
)
from hmer.latex import is_valid, to_latex
from hmer.preprocess import load_at
from hmer.recognizer import Alternative, LocalRecognizer, Recognition, Recognizer, answer
from hmer.runtime import TARGETS
from hmer.vocab import EOS_ID, Vocabulary

MAX_TOKENS = 30
VOCABULARY = Vocabulary(["x", "+", "\\frac", "{", "}"])
X, PLUS = VOCABULARY.encode(["x", "+"])


def pictures(count: int, seed: int = 0) -> list[bytes]:
    """PNGs of black bars and blocks on white, of several sizes."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        height, width = int(rng.integers(40, 120)), int(rng.integers(60, 400))
        gray = np.full((height, width), 255, np.uint8)
        for _ in range(int(rng.integers(2, 9))):
            top, left = int(rng.integers(0, height - 20)), int(rng.integers(0, width - 20))
            gray[top : top + int(rng.integers(3, 20)), left : left + int(rng.integers(3, 20))] = 0
        result.append(cv2.imencode(".png", gray)[1].tobytes())
    return result


def texts(results: Sequence[Recognition | HmerError]) -> list[str]:
    return [
        " ".join(result.tokens) if isinstance(result, Recognition) else result.code
        for result in results
    ]


@pytest.fixture(scope="module", params=TARGETS)
def local(request: pytest.FixtureRequest, tiny_graphs: Bundle) -> Iterator[LocalRecognizer]:
    pytest.importorskip(request.param)
    with LocalRecognizer(
        tiny_graphs.folder, request.param, threads=1, slots=4, max_tokens=MAX_TOKENS
    ) as made:
        yield made


def test_answers_say_what_the_decoder_found() -> None:
    outcome = Outcome(
        (X, PLUS, X, EOS_ID), (-0.1, -0.2, -0.3, -0.4), "eos", queued_s=0.002, decode_s=0.01
    )
    result = answer(VOCABULARY, outcome)
    assert result.tokens == ("x", "+", "x")
    assert result.latex == to_latex(["x", "+", "x"])
    assert result.score == pytest.approx(math.exp(-1.0))
    assert result.alternatives == ()
    assert result.timings == {"queue": pytest.approx(2.0), "decode": pytest.approx(10.0)}


def test_answers_carry_the_next_best_with_their_probabilities() -> None:
    others = (
        Hypothesis((X, EOS_ID), (-1.0, -1.5), -2.0),
        Hypothesis((PLUS, EOS_ID), (-2.0, -2.0), -3.0),
    )
    result = answer(VOCABULARY, Outcome((X, X, EOS_ID), (-1.0,) * 3, "eos", alternatives=others))
    assert [(o.latex, o.tokens) for o in result.alternatives] == [("x", ("x",)), ("+", ("+",))]
    scores = [other.score for other in result.alternatives]
    assert scores == pytest.approx([math.exp(-2.5), math.exp(-4.0)])


def test_confidence_is_the_calibrated_score() -> None:
    outcome = Outcome((X, PLUS, EOS_ID), (-0.5, -0.25, -0.25), "eos")
    assert answer(VOCABULARY, outcome).confidence is None
    found = answer(VOCABULARY, outcome, Calibration(1.0, 2.0, 0.25, {})).confidence
    assert found == pytest.approx(1 / (1 + math.exp(-(1.0 - 2.0 + 0.5))))


def test_an_answer_that_was_cut_off_is_still_an_answer() -> None:
    result = answer(VOCABULARY, Outcome((X, X), (-0.5, -0.5), "length"))
    assert result.tokens == ("x", "x")


def test_a_score_is_a_probability_in_spite_of_rounding() -> None:
    assert answer(VOCABULARY, Outcome((X,), (1e-7,), "length")).score == 1.0
    assert answer(VOCABULARY, Outcome((X,) * 200, (-9.0,) * 200, "length")).score == 0.0


def test_an_outcomes_error_is_raised() -> None:
    with pytest.raises(Cancelled, match="gone"):
        answer(VOCABULARY, Outcome((X,), (-1.0,), "error", Cancelled("It is gone.")))


def test_a_token_beyond_the_vocabulary_is_an_error() -> None:
    with pytest.raises(InferenceFailed, match="not of one bundle"):
        answer(VOCABULARY, Outcome((X, 99), (-1.0, -1.0), "length"))


def test_a_recognition_becomes_json() -> None:
    other = Alternative("y", ("y",), 0.25)
    document = json.loads(
        json.dumps(Recognition("x", ("x",), 0.5, (other,), 0.75, {"decode": 1.23456}).to_dict())
    )
    assert document == {
        "latex": "x",
        "tokens": ["x"],
        "score": 0.5,
        "confidence": 0.75,
        "alternatives": [{"latex": "y", "tokens": ["y"], "score": 0.25}],
        "timings": {"decode": 1.235},
    }


def test_a_picture_is_recognised(local: LocalRecognizer) -> None:
    recognizer: Recognizer = local
    (picture,) = pictures(1)
    result = recognizer.recognize(picture)
    assert result.tokens
    assert result.latex == to_latex(result.tokens)
    assert 0.0 <= result.score <= 1.0
    assert list(result.timings) == ["preprocess", "encode", "queue", "decode"]
    assert all(0.0 <= ms < 60_000 for ms in result.timings.values())


def test_one_by_one_and_many_give_the_same(local: LocalRecognizer) -> None:
    inputs = pictures(40)  # more than a window of 4 x slots
    alone = [local.recognize(data) for data in inputs]
    together = local.recognize_many(inputs)
    assert texts(together) == texts(alone)
    assert len(set(texts(alone))) > 10, "the answers differ from picture to picture"
    for one, many in zip(alone, together, strict=True):
        assert isinstance(many, Recognition)
        assert many.score == pytest.approx(one.score, rel=1e-3)
    assert local.recognize_many([]) == []


BEAM: dict[str, Any] = {"beam": 4, "n_best": 3, "length_penalty": 0.8}


def test_a_beam_of_one_is_greedy(local: LocalRecognizer) -> None:
    inputs = pictures(12, seed=5)
    assert texts(local.recognize_many(inputs, beam=1, length_penalty=2.0)) == texts(
        local.recognize_many(inputs)
    )


def test_beams_alone_and_among_others(local: LocalRecognizer) -> None:
    inputs = pictures(17, seed=6)
    alone = [local.recognize(data, **BEAM) for data in inputs]
    together = local.recognize_many(inputs, **BEAM)
    assert texts(together) == texts(alone)
    greedy = texts(local.recognize_many(inputs))
    assert greedy != texts(alone)
    for one, many in zip(alone, together, strict=True):
        assert isinstance(many, Recognition)
        assert [other.tokens for other in many.alternatives] == [
            other.tokens for other in one.alternatives
        ]
        assert len({many.tokens, *(o.tokens for o in many.alternatives)}) == 1 + len(
            many.alternatives
        )
        assert all(0.0 <= other.score <= 1.0 for other in many.alternatives)
    assert sum(len(one.alternatives) == 2 for one in alone) > 8


def test_options_of_the_recogniser_are_the_calls_defaults(tiny_graphs: Bundle) -> None:
    (data,) = pictures(1, seed=7)
    with (
        LocalRecognizer(tiny_graphs.folder, threads=1, beam=4, n_best=4, length_penalty=0.8) as one,
        LocalRecognizer(tiny_graphs.folder, threads=1) as other,
    ):
        best = one.recognize(data)
        assert other.recognize(data, beam=4, n_best=4, length_penalty=0.8).tokens == best.tokens
        assert len(best.alternatives) == 3
        assert one.recognize(data, beam=1).tokens == other.recognize(data).tokens
        with pytest.raises(BadParameter, match="n_best is 5"):
            one.recognize(data, n_best=5)
        with pytest.raises(BadParameter, match="16 slots"):
            one.recognize(data, beam=17)
        assert one.recognize(data).tokens == best.tokens


def test_guarded_answers_of_a_beam_parse(tiny_graphs: Bundle) -> None:
    """The random network writes no LaTeX; within the guards what it ends does parse."""
    counts = []
    for guards in (False, True):
        with LocalRecognizer(
            tiny_graphs.folder, threads=1, beam=4, n_best=4, max_tokens=120, guards=guards
        ) as recognizer:
            found = recognizer.recognize_many(pictures(10, seed=8))
        tokens = [
            other.tokens
            for one in found
            if isinstance(one, Recognition) and len(one.tokens) < 119
            for other in (one, *one.alternatives)
        ]
        counts.append((sum(map(is_valid, tokens)), len(tokens)))
    (without, unguarded), (within, guarded) = counts
    assert without < unguarded
    assert within == guarded > 0


def test_a_bundle_without_the_graph_refuses_beams_and_says_how_to_get_it(
    beamless_graphs: Bundle,
) -> None:
    (data,) = pictures(1)
    with pytest.raises(BadParameter, match="hmer-export onnx --beam"):
        LocalRecognizer(beamless_graphs.folder, threads=1, beam=3)
    with LocalRecognizer(beamless_graphs.folder, threads=1) as recognizer:
        with pytest.raises(BadParameter, match="hmer-export onnx --beam"):
            recognizer.recognize(data, beam=3)
        assert recognizer.recognize(data, beam=1).tokens


def test_the_runtimes_agree(tiny_graphs: Bundle) -> None:
    answers = []
    for target in TARGETS:
        pytest.importorskip(target)
        with LocalRecognizer(tiny_graphs.folder, target, threads=1, max_tokens=MAX_TOKENS) as one:
            answers.append(texts(one.recognize_many(pictures(20, seed=1))))
    assert answers[0] == answers[1]


def test_ink_and_pictures_go_the_same_way(local: LocalRecognizer) -> None:
    strokes = [[[0, 0], [60, 60]], [[60, 0], [0, 60]], [[90, 30], [140, 30]]]
    ink = json.dumps({"strokes": strokes}).encode()
    inkml = "".join(
        f"<trace>{', '.join(f'{x} {y}' for x, y in stroke)}</trace>" for stroke in strokes
    )
    inkml = f'<ink xmlns="http://www.w3.org/2003/InkML">{inkml}</ink>'
    assert local.recognize(ink).tokens == local.recognize(inkml.encode()).tokens


def test_bad_inputs_get_their_errors_and_the_others_their_answers(local: LocalRecognizer) -> None:
    good = pictures(4, seed=2)
    blank = cv2.imencode(".png", np.full((60, 90), 255, np.uint8))[1].tobytes()
    bad = {
        b"": EmptyInput,
        b"just text": UnreadableImage,
        good[0][: len(good[0]) // 2]: UnreadableImage,
        blank: BlankImage,
        b"<ink><trace>": BadInk,
        b'{"strokes": []}': BadInk,
    }
    mixed = [good[0], *bad, *good[1:]]
    results = local.recognize_many(mixed)
    assert [type(result) for result in results[1 : 1 + len(bad)]] == list(bad.values())
    kept = [results[0], *results[1 + len(bad) :]]
    assert texts(kept) == texts([local.recognize(data) for data in good])
    with pytest.raises(EmptyInput):
        local.recognize(b"")


def test_a_fault_of_the_program_hits_one_input(
    local: LocalRecognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(data: bytes, *settings: object) -> object:
        if data == b"fault":
            raise ZeroDivisionError("division by zero")
        return original(data, *settings)  # type: ignore[arg-type]

    original = load_at
    monkeypatch.setattr(module, "load_at", faulty)
    (picture,) = pictures(1)
    results = local.recognize_many([picture, b"fault", picture])
    assert isinstance(results[1], InferenceFailed)
    assert "division by zero" in str(results[1])
    assert texts([results[0]]) == texts([results[2]]) == texts([local.recognize(picture)])


def test_a_failing_encoder_fails_its_batch_alone(
    local: LocalRecognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = pictures(6, seed=3)
    expected = texts(local.recognize_many(inputs))
    original, widths = local._encoder.infer, []

    def failing(feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        widths.append(feeds["image"].shape[3])
        if widths[-1] == widths[0]:
            raise InferenceFailed("The encoder failed.")
        return original(feeds)

    monkeypatch.setattr(local._encoder, "infer", failing)
    found = texts(local.recognize_many(inputs))
    assert found[0] == "inference_failed"
    assert any(text != "inference_failed" for text in found)
    assert all(f in (e, "inference_failed") for f, e in zip(found, expected, strict=True))


def test_several_threads_share_it(local: LocalRecognizer) -> None:
    inputs = pictures(8, seed=4)
    expected = texts([local.recognize(data) for data in inputs])
    found: dict[int, str] = {}

    def work(index: int) -> None:
        found[index] = texts([local.recognize(inputs[index])])[0]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[index] for index in range(len(inputs))] == expected


def test_what_cannot_be_opened(tiny_graphs: Bundle, tmp_path: Path) -> None:
    with pytest.raises(MissingBundle):
        LocalRecognizer(tmp_path)
    for wrong in ({"slots": 0}, {"batch": 0}, {"max_tokens": 0}, {"threads": -1}):
        with pytest.raises(BadParameter):
            LocalRecognizer(tiny_graphs.folder, **wrong)  # type: ignore[arg-type]
    with pytest.raises(BadParameter, match="abacus"):
        LocalRecognizer(tiny_graphs.folder, "abacus")


def test_closing(tiny_graphs: Bundle) -> None:
    recognizer = LocalRecognizer(tiny_graphs.folder, threads=1)
    recognizer.close()
    recognizer.close()
    with pytest.raises(InferenceFailed, match="closed"):
        recognizer.recognize(pictures(1)[0])
