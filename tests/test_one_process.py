"""``--processes one``: ``recognize`` holds encoder and decoder, and nothing else changes."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from client import Cancellation, Recognizer, Retry
from export.config import MANY, ONE, RepositoryOptions, model_configs
from hmer.bundle import Bundle
from hmer.errors import BadParameter, BlankImage, Cancelled, DeadlineExceeded, HmerError
from hmer.recognition import Partial, Recognition
from hmer.recognizer import LocalRecognizer
from model_repository.server import EmbeddedServer
from tests import fake_triton as fake
from tests.e2e_fixtures import need_embedded, picture, serve, wait_for
from tests.model_fixtures import args_of, load_model, png, text

PICTURES = [picture(seed) for seed in range(10)]
LONG = 100_000  # tokens: an answer that takes longer than any test waits


@pytest.fixture(scope="module")
def running(
    tiny_graphs: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedServer]:
    need_embedded()
    options = RepositoryOptions(
        slots=4, processes=ONE, max_tokens=LONG, guards=False, max_wait_ms=0
    )
    with serve(tiny_graphs.folder, tmp_path_factory.mktemp("one") / "r", options) as found:
        yield found


@pytest.fixture(scope="module")
def expected(tiny_graphs: Bundle) -> list[Recognition]:
    with LocalRecognizer(tiny_graphs.folder, threads=1, guards=False) as local:
        return [local.recognize(data) for data in PICTURES]


@pytest.fixture(scope="module")
def endless(expected: list[Recognition]) -> bytes:
    return next(d for d, a in zip(PICTURES, expected, strict=True) if len(a.tokens) >= 256)


@pytest.mark.e2e
def test_two_models_are_served(running: EmbeddedServer) -> None:
    assert set(running.repository.models) == {"recognize", "recognize_stream"}


@pytest.mark.e2e
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_answers_are_the_local_ones_alone_and_in_company(
    running: EmbeddedServer, expected: list[Recognition], protocol: str
) -> None:
    with Recognizer(getattr(running.endpoints, protocol)) as recognizer:
        for data, local in zip(PICTURES, expected, strict=True):
            assert recognizer.recognize(data, max_tokens=256).tokens == local.tokens
        order = np.random.default_rng(0).integers(len(PICTURES), size=60).tolist()
        answers = recognizer.recognize_many(
            [PICTURES[i] for i in order], concurrency=16, max_tokens=256
        )
        for index, answer in zip(order, answers, strict=True):
            assert isinstance(answer, Recognition)
            assert answer.tokens == expected[index].tokens


@pytest.mark.e2e
def test_streams_beams_looks_and_attention(running: EmbeddedServer, tiny_graphs: Bundle) -> None:
    local = LocalRecognizer(tiny_graphs.folder, threads=1, guards=False)
    with Recognizer(running.endpoints.grpc) as served, local:
        for attention in (False, True):
            whole = served.recognize(PICTURES[1], max_tokens=20, attention=attention)
            parts = list(served.stream(PICTURES[1], max_tokens=20, attention=attention))
            assert isinstance(parts[0], Partial)
            assert (parts[0].attention is not None) == attention
            assert isinstance(parts[-1], Recognition)
            assert parts[-1].tokens == whole.tokens
            assert len(parts) == len(whole.tokens) + 1
        assert whole.attention is not None
        assert parts[0].attention is not None
        assert parts[0].attention.box == whole.attention.box
        beams = [r.recognize(PICTURES[2], beam=3, n_best=3, max_tokens=20) for r in (served, local)]
        assert beams[0].tokens == beams[1].tokens
        assert [x.tokens for x in beams[0].alternatives] == [
            x.tokens for x in beams[1].alternatives
        ]
        for penalty in (0.0, 0.7):  # a fraction, which no call between models can carry
            whole = served.recognize(PICTURES[2], beam=3, length_penalty=penalty, max_tokens=20)
            parts = list(served.stream(PICTURES[2], beam=3, length_penalty=penalty, max_tokens=20))
            assert isinstance(parts[-1], Recognition)
            assert (parts[-1].tokens, parts[-1].score) == (whole.tokens, whole.score)
        looks = [r.recognize(PICTURES[2], looks=4, max_tokens=20).tokens for r in (served, local)]
        assert looks[0] == looks[1]


@pytest.mark.e2e
@pytest.mark.parametrize("more", [{"beam": 3, "length_penalty": 0.7}, {"triton_x": 2**64}])
def test_a_stream_with_a_fraction_over_http(running: EmbeddedServer, more: dict[str, Any]) -> None:
    """Triton makes a fraction of a whole number beyond 64 bits, too."""
    strokes = "[[[0, 0], [20, 40]], [[20, 0], [0, 40]]]"
    body = json.dumps({"input": strokes, "max_tokens": 8, **more}).encode()
    url = f"{running.endpoints.http}/v2/models/recognize_stream/generate_stream"
    with urllib.request.urlopen(urllib.request.Request(url, body)) as response:
        said = response.read().decode("utf-8")
    assert "latex" in said, said
    assert "error" not in said


@pytest.mark.e2e
def test_who_leaves_frees_the_slot(running: EmbeddedServer, endless: bytes) -> None:
    caught: list[HmerError] = []
    cancellation = Cancellation()

    def ask() -> None:
        try:
            recognizer.recognize(endless, cancellation=cancellation)
        except HmerError as error:
            caught.append(error)

    with Recognizer(running.endpoints.grpc, timeout=600.0, retry=Retry(attempts=1)) as recognizer:
        thread = threading.Thread(target=ask)
        thread.start()
        wait_for(running, slots_in_use=1)
        cancellation.cancel()
        thread.join(20.0)
        assert [type(error) for error in caught] == [Cancelled]
        wait_for(running, slots_in_use=0)
        parts = recognizer.stream(endless)
        for _ in range(5):
            next(parts)
        wait_for(running, slots_in_use=1)
        parts.close()  # type: ignore[attr-defined]
        wait_for(running, slots_in_use=0)
        for ask_it in (recognizer.recognize, lambda *a, **k: list(recognizer.stream(*a, **k))):
            with pytest.raises(DeadlineExceeded):
                ask_it(endless, timeout=0.5)
            wait_for(running, slots_in_use=0)


@pytest.mark.e2e
def test_what_is_wrong_is_said(running: EmbeddedServer) -> None:
    blank = np.full((50, 100), 255, np.uint8)
    with Recognizer(running.endpoints.grpc) as recognizer:
        with pytest.raises(BlankImage):
            recognizer.recognize(blank)
        with pytest.raises(BlankImage):
            list(recognizer.stream(blank))
        with pytest.raises(BadParameter):
            recognizer.recognize(PICTURES[0], beam=3000)


def hosting(bundle: Bundle, **changes: str) -> dict[str, str]:
    """Parameters of a ``recognize`` that holds both."""
    found = {}
    for name in ("encoder", "decode"):
        entries = json.loads(args_of(bundle, name)["model_config"])["parameters"]
        values = {key: entry["string_value"] for key, entry in entries.items()}
        found[name] = json.dumps(values | ({"target": changes[name]} if name in changes else {}))
    return found


def test_over_the_fake(tiny_graphs: Bundle) -> None:
    model = load_model(tiny_graphs, "recognize", **hosting(tiny_graphs))
    try:
        request = fake.request({"input": fake.bytes_rows([png(1)])})
        assert model.execute([request]) is None
        (found,) = text(request.sender.result())
        with LocalRecognizer(tiny_graphs.folder, threads=1) as local:
            assert found[1].split() == list(local.recognize(png(1)).tokens)
    finally:
        model.finalize()


@pytest.mark.parametrize("broken", ["encoder", "decode"])
def test_one_that_cannot_load_is_named_and_nothing_stays(tiny_graphs: Bundle, broken: str) -> None:
    before = threading.active_count()
    with pytest.raises(fake.TritonModelException, match="abacus"):
        load_model(tiny_graphs, "recognize", **hosting(tiny_graphs, **{broken: "abacus"}))
    deadline = time.monotonic() + 10
    while threading.active_count() > before:
        assert time.monotonic() < deadline, [t.name for t in threading.enumerate()]
        time.sleep(0.02)


def test_only_where_one_process_can_hold_both(tiny_graphs: Bundle) -> None:
    with pytest.raises(BadParameter, match="one or many"):
        RepositoryOptions(processes="two")
    for options in ({"step": "bls"}, {"preprocessors": 1}, {"host": "container"}):
        with pytest.raises(BadParameter, match="Python models run both"):
            RepositoryOptions(processes=ONE, **options)
    both = {"recognize", "recognize_stream"}
    for options, models in (
        (RepositoryOptions(), both),
        (RepositoryOptions(processes=MANY), both | {"encoder", "decode"}),
        (RepositoryOptions(preprocessors=1), both | {"preprocess", "encoder", "decode"}),
    ):
        assert set(model_configs(tiny_graphs.sizes, options)) == models
