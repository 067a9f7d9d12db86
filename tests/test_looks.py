"""Several looks at one input: which sizes, and which answer wins."""

from __future__ import annotations

from typing import Any

import pytest

from hmer import looks, recognizer
from hmer.bundle import Bundle
from hmer.errors import BadParameter, HmerError, InferenceFailed, UnreadableImage
from hmer.looks import MOST, ZOOMS, surest, surest_of, zooms
from hmer.recognition import Recognition
from hmer.recognizer import LocalRecognizer
from hmer.serving import from_request, to_request
from tests import fake_triton as fake
from tests.model_fixtures import ask, error_of, load_model, png, text


def answer(score: float, *tokens: str) -> Recognition:
    return Recognition(" ".join(tokens), tokens, score, confidence=0.9)


def test_the_first_look_is_the_usual_one() -> None:
    assert zooms(1) == (1.0,)
    assert len(set(ZOOMS)) == MOST
    assert zooms(3) == ZOOMS[:3]


def test_probability_counts_by_token() -> None:
    assert surest([0.5, 0.4], [1, 9]) == 1  # 0.71 a token against 0.91
    assert surest([0.5, 0.4], [1, 1]) == 0
    assert surest([0.0, 1e-200], [3, 3]) == 1


def test_errors_lose() -> None:
    error = UnreadableImage("Unreadable.")
    best = surest_of([error, answer(0.3, "x"), answer(0.6, "y")])
    assert isinstance(best, Recognition)
    assert best.tokens == ("y",)
    assert best.confidence is None  # the calibration is that of one look
    assert surest_of([error, InferenceFailed("Failed.")]) is error
    alone = surest_of([answer(0.3, "x")])
    assert isinstance(alone, Recognition)
    assert alone.confidence == 0.9


@pytest.mark.parametrize("value", [0, MOST + 1, "2", True, 1.5])
def test_how_many(value: Any) -> None:
    assert from_request({"looks": MOST}, 5).looks == MOST
    assert to_request(looks=2) == {"looks": 2}
    with pytest.raises(BadParameter, match="looks"):
        from_request({"looks": value}, 5)
    with pytest.raises(BadParameter, match="looks"):
        to_request(looks=value)


def test_in_process(tiny_graphs: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [png(seed) for seed in range(5)]
    with LocalRecognizer(tiny_graphs.folder, threads=1, max_tokens=30) as local:
        apart: list[list[Recognition | HmerError]] = []
        for zoom in ZOOMS[:3]:
            monkeypatch.setattr(recognizer, "zooms", lambda count, zoom=zoom: (zoom,))
            apart.append(local.recognize_many(inputs))
        monkeypatch.setattr(recognizer, "zooms", looks.zooms)
        together = local.recognize_many([*inputs[:2], b"none", *inputs[2:]], looks=3)
        assert local.recognize(inputs[0], looks=1).tokens == local.recognize(inputs[0]).tokens
        with pytest.raises(BadParameter, match="looks"):
            local.recognize(inputs[0], looks=MOST + 1)
    assert isinstance(together.pop(2), UnreadableImage)
    chosen = []
    for found, *several in zip(together, *apart, strict=True):
        best = surest_of(several)
        assert isinstance(found, Recognition)
        assert isinstance(best, Recognition)
        assert found.tokens == best.tokens
        assert found.score == pytest.approx(best.score, rel=1e-3)
        chosen.append(several[0].tokens != best.tokens)  # type: ignore[union-attr]
    assert any(chosen)  # another look than the first was the surest


def test_served(tiny_graphs: Bundle) -> None:
    inputs = [png(seed) for seed in range(3)]
    with LocalRecognizer(tiny_graphs.folder, threads=1, max_tokens=30) as local:
        expected = [local.recognize(data, looks=3, beam=2) for data in inputs]
    names = {"encoder": {}, "decode": {"slots": "8", "max_tokens": "30"}}
    models = {name: load_model(tiny_graphs, name, **more) for name, more in names.items()}
    fake.MODELS.update(models)
    model = load_model(tiny_graphs, "recognize", max_tokens="30")
    try:

        def send(*rows: bytes, **parameters: Any) -> fake.InferenceResponse:
            sender = ask(model, {"input": fake.bytes_rows(rows)}, parameters=parameters)
            return sender.result()

        response = send(*inputs, looks=3, beam=2)
        for found, wanted in zip(text(response), expected, strict=True):
            assert found[1] == " ".join(wanted.tokens)
            assert found[2] == pytest.approx(wanted.score, rel=1e-3)
        assert all(value < 0 for value in response.arrays()["confidence"][:, 0])  # unknown
        assert "pictures" in str(error_of(send(*inputs, looks=8)))
        assert "attention" in str(error_of(send(inputs[0], looks=2, attention=True)))
    finally:
        model.finalize()
        fake.MODELS.clear()
        for behind in models.values():
            behind.finalize()
