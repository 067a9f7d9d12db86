"""End to end: the real embedded Triton, over gRPC and HTTP, with the tiny network."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from client import Recognizer, Retry
from export.config import RepositoryOptions
from export.repository import assemble
from hmer.bundle import Bundle
from hmer.errors import (
    BadParameter,
    DeadlineExceeded,
    HmerError,
    InputError,
    Overloaded,
    ServerUnavailable,
    UnknownModel,
    VocabularyMismatch,
    from_wire,
)
from hmer.recognizer import LocalRecognizer, Recognition
from hmer.score import compare
from model_repository.repository import open_repository
from model_repository.server import EmbeddedServer
from tests.e2e_fixtures import (
    ANY_PORTS,
    SHIPPED,
    Raw,
    metrics,
    need_embedded,
    picture,
    serve,
    until,
    wait_for,
)

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = sorted((ROOT / "client" / "samples").glob("*.inkml"))[:6]
LONG = 100_000  # tokens: an answer that takes longer than any test waits


@pytest.fixture(scope="module")
def inputs() -> list[bytes]:
    return [picture(seed) for seed in range(14)] + [path.read_bytes() for path in SAMPLES]


@pytest.fixture(scope="module")
def expected(tiny_graphs: Bundle, inputs: list[bytes]) -> list[Recognition]:
    """What the same bundle answers in this process, one by one."""
    with LocalRecognizer(tiny_graphs.folder, threads=1) as local:
        answers = [local.recognize(data) for data in inputs]
    assert len({answer.tokens for answer in answers}) > len(answers) // 3
    return answers


@pytest.fixture(scope="module")
def unguarded(tiny_graphs: Bundle, inputs: list[bytes]) -> list[Recognition]:
    """``expected`` where answers may go round in circles for ever."""
    with LocalRecognizer(tiny_graphs.folder, threads=1, guards=False) as local:
        return [local.recognize(data) for data in inputs]


@pytest.fixture(scope="module")
def endless(inputs: list[bytes], unguarded: list[Recognition]) -> bytes:
    """An input whose answer never ends."""
    return next(d for d, a in zip(inputs, unguarded, strict=True) if len(a.tokens) >= 256)


@pytest.fixture(scope="module")
def bls_server(
    tiny_graphs: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedServer]:
    """Steps by calls to the served graphs; two slots, a short queue, no short answers."""
    need_embedded()
    options = RepositoryOptions(
        step="bls", slots=2, max_queue=2, max_tokens=LONG, guards=False, preprocessors=1
    )
    with serve(tiny_graphs.folder, tmp_path_factory.mktemp("bls") / "r", options) as running:
        yield running


def agree(expected: Recognition, found: Recognition | HmerError) -> None:
    assert isinstance(found, Recognition), found
    assert (found.tokens, found.latex) == (expected.tokens, expected.latex)
    assert found.score == pytest.approx(expected.score, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_served_answers_are_the_local_ones(
    server: EmbeddedServer, inputs: list[bytes], expected: list[Recognition], protocol: str
) -> None:
    with Recognizer(getattr(server.endpoints, protocol)) as recognizer:
        assert recognizer.health().serving
        for data, local in zip(inputs, expected, strict=True):
            agree(local, recognizer.recognize(data))


def test_32_at_a_time_are_answered_as_one_by_one(
    server: EmbeddedServer, inputs: list[bytes], expected: list[Recognition]
) -> None:
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(len(inputs)), 5)).tolist()
    with Recognizer(server.endpoints.grpc) as recognizer:
        answers = recognizer.recognize_many([inputs[index] for index in order], concurrency=32)
        for index, answer in zip(order, answers, strict=True):
            agree(expected[index], answer)


def test_bls_answers_are_the_local_ones(
    bls_server: EmbeddedServer, inputs: list[bytes], unguarded: list[Recognition]
) -> None:
    raw = Raw(bls_server)
    for data, local in zip(inputs, unguarded, strict=True):
        # Unpadded on the wire, so several of its rows may not fit: one at a time.
        (tokens,) = raw.recognize([data], parameters={"max_tokens": 256})
        assert tokens == local.tokens
    before = metrics(bls_server)["hmer_decode_steps_total"]
    stats = raw.client.get_inference_statistics("decoder_step", as_json=True)["model_stats"][0]
    assert int(stats["inference_stats"]["success"]["count"]) >= before > 0


def test_rows_of_one_request(
    server: EmbeddedServer, inputs: list[bytes], expected: list[Recognition]
) -> None:
    rows = Raw(server).recognize(inputs[:10])
    assert rows == [answer.tokens for answer in expected[:10]]


def test_bad_inputs_fail_alone(
    server: EmbeddedServer, inputs: list[bytes], expected: list[Recognition]
) -> None:
    blank = cv2.imencode(".png", np.full((80, 80), 255, np.uint8))[1].tobytes()
    pixel = cv2.imencode(".png", np.zeros((1, 1), np.uint8))[1].tobytes()
    bad = {
        b"this is a text": "unreadable_image",
        picture(0)[:150]: "unreadable_image",
        blank: "blank_image",
        pixel: "image_too_small",
        b"<ink><trace>1 2, 3": "bad_ink",
        b"<ink></ink>": "bad_ink",
        b'{"strokes": []}': "bad_ink",
    }
    mixed: list[bytes] = []
    for index, data in enumerate(inputs[: len(bad)]):
        mixed += [data, list(bad)[index]]
    with Recognizer(server.endpoints.grpc) as recognizer:
        answers = list(recognizer.recognize_many(mixed, concurrency=16))
    for local, good in zip(expected, answers[::2], strict=False):
        agree(local, good)
    for code, error in zip(bad.values(), answers[1::2], strict=True):
        assert isinstance(error, InputError)
        assert error.code == code
        assert "Traceback" not in str(error)


def test_unknown_model_and_version(server: EmbeddedServer, inputs: list[bytes]) -> None:
    for options in ({"model": "nothing"}, {"version": 7}):
        for url in (server.endpoints.grpc, server.endpoints.http):
            with Recognizer(url, **options) as recognizer, pytest.raises(UnknownModel):
                recognizer.recognize(inputs[0])


def test_no_server() -> None:
    free = ANY_PORTS.reserve()
    for url in (free.grpc, free.http):
        with (
            Recognizer(url, retry=Retry(attempts=1), timeout=5) as recognizer,
            pytest.raises(ServerUnavailable),
        ):
            recognizer.recognize(picture(0))


def test_max_tokens(
    server: EmbeddedServer, inputs: list[bytes], expected: list[Recognition]
) -> None:
    raw = Raw(server)
    assert raw.recognize(inputs[:1], parameters={"max_tokens": 3}) == [expected[0].tokens[:3]]
    with pytest.raises(BadParameter, match="1 to 256"):
        raw.recognize(inputs[:1], parameters={"max_tokens": 1000})


def test_a_cancelled_request_frees_its_slot(bls_server: EmbeddedServer, endless: bytes) -> None:
    raw = Raw(bls_server)
    features = raw.features(endless)
    cancelled = metrics(bls_server)["hmer_decode_cancelled_total"]
    ended = threading.Event()
    errors: list[Any] = []

    def done(result: Any, error: Any) -> None:
        errors.append(error)
        ended.set()

    call = raw.client.async_infer("decode", features, callback=done)
    wait_for(bls_server, slots_in_use=1)
    call.cancel()
    assert ended.wait(5)
    assert errors[0] is not None
    wait_for(bls_server, slots_in_use=0, cancelled_total=cancelled + 1)


def test_the_time_limit_frees_the_slot(bls_server: EmbeddedServer, endless: bytes) -> None:
    def ended() -> float:
        # The limit goes with the request and with the call; who sees its end first is chance.
        values = metrics(bls_server)
        return sum(values[f"hmer_decode_{how}_total"] for how in ("deadline", "cancelled"))

    before = ended()
    with (
        Recognizer(bls_server.endpoints.grpc, retry=Retry(attempts=1)) as recognizer,
        ThreadPoolExecutor(1) as pool,
    ):
        # Long enough for a busy machine to bring the request to its slot.
        asked = pool.submit(recognizer.recognize, endless, timeout=6.0)
        wait_for(bls_server, slots_in_use=1)
        with pytest.raises(DeadlineExceeded):
            asked.result(30)
    until(lambda: ended() == before + 1)
    wait_for(bls_server, slots_in_use=0)
    # The server itself ends it too, when only it knows the limit: on the way, or in its slot.
    raw = Raw(bls_server)
    with pytest.raises(DeadlineExceeded, match="time limit"):
        raw.recognize([endless], timeout=300_000)
    with pytest.raises(raw.grpc.InferenceServerException) as caught:
        raw.client.infer("decode", raw.features(endless), timeout=300_000)
    assert isinstance(from_wire(caught.value.message()), DeadlineExceeded)


def test_too_many_are_refused_and_the_others_answered(
    bls_server: EmbeddedServer, endless: bytes, inputs: list[bytes], unguarded: list[Recognition]
) -> None:
    raw = Raw(bls_server)
    features = raw.features(endless)
    outcomes: list[str] = []

    def ask() -> None:
        try:
            raw.client.infer("decode", features, timeout=1_500_000)
        except raw.grpc.InferenceServerException as error:
            outcomes.append(from_wire(error.message()).code)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    # Two slots and two places in the queue.
    assert sorted(outcomes) == ["deadline_exceeded"] * 4 + [Overloaded.code] * 4
    (tokens,) = raw.recognize([inputs[0]], parameters={"max_tokens": 256})
    assert tokens == unguarded[0].tokens


def test_metrics_are_published(server: EmbeddedServer, inputs: list[bytes]) -> None:
    with Recognizer(server.endpoints.grpc) as recognizer:
        recognizer.recognize(inputs[0])
    wait_for(server, slots=8, slots_in_use=0, queue_length=0)
    values = metrics(server)
    assert values["hmer_decode_completed_total"] > 0
    assert values["hmer_decode_tokens_total"] >= values["hmer_decode_completed_total"]


def test_shipped_weights(shipped_server: EmbeddedServer) -> None:
    pictures = [p.read_bytes() for p in sorted((ROOT / "client" / "samples").glob("*.png"))[:4]]
    with LocalRecognizer(SHIPPED) as local, Recognizer(shipped_server.endpoints.grpc) as served:
        for data in pictures:
            agree(local.recognize(data), served.recognize(data))


def test_the_shipped_weights_read_most_samples(shipped_server: EmbeddedServer) -> None:
    folder = ROOT / "client" / "samples"
    entries = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    truths = {file: entry["tokens"] for entry in entries for file in entry["files"]}
    with Recognizer(shipped_server.endpoints.grpc) as recognizer:
        answers = recognizer.recognize_many([folder / name for name in truths])
        scored = [
            compare(name, truth, None if isinstance(answer, HmerError) else answer.tokens)
            for (name, truth), answer in zip(truths.items(), answers, strict=True)
        ]
    wrong = [item.id for item in scored if not item.correct]
    assert len(scored) >= 24
    assert len(wrong) <= len(scored) // 5, wrong


def test_a_bundle_that_changes_before_loading(tiny_graphs: Bundle, tmp_path: Path) -> None:
    need_embedded()
    assemble(tiny_graphs.folder, tmp_path / "r", RepositoryOptions(preprocessors=1))
    running = EmbeddedServer(open_repository(tmp_path / "r"), ANY_PORTS, log=tmp_path / "log")
    path = tmp_path / "r" / "bundle" / "bundle.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["vocabulary"]["tokens"].reverse()
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(VocabularyMismatch, match="were changed"), running:
        pass
    assert running.pid is None
    assert "vocabulary_mismatch" in (tmp_path / "log").read_text(encoding="utf-8")
