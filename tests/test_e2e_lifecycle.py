"""The life of requests and of models on the real embedded server, with the tiny network."""

from __future__ import annotations

import base64
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

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
    ServerError,
    from_wire,
)
from hmer.recognizer import LocalRecognizer
from model_repository.repository import open_repository
from model_repository.server import EmbeddedServer
from model_repository.settings import ServerSettings
from model_repository.versions import add_version, take_over
from tests import tiny
from tests.e2e_fixtures import ANY_PORTS, Raw, metrics, need_embedded, picture, wait_for

pytestmark = pytest.mark.e2e

LONG = 100_000  # tokens: an answer that takes longer than any test waits


@pytest.fixture(scope="module")
def running(
    tiny_graphs: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedServer]:
    """Answers that may be endless, a cache, and model control."""
    need_embedded()
    folder = tmp_path_factory.mktemp("lifecycle") / "r"
    assemble(
        tiny_graphs.folder,
        folder,
        RepositoryOptions(slots=4, max_queue=8, max_tokens=LONG, guards=False, preprocessors=1),
    )
    settings = ServerSettings(cache=1 << 20, model_control=True)
    with EmbeddedServer(open_repository(folder), ANY_PORTS, settings=settings) as server:
        yield server


@pytest.fixture(scope="module")
def endless(tiny_graphs: Bundle) -> bytes:
    """A picture whose answer never ends."""
    with LocalRecognizer(tiny_graphs.folder, threads=1, guards=False) as local:
        return next(p for p in map(picture, range(14)) if len(local.recognize(p).tokens) >= 256)


class Stream:
    """A gRPC stream of requests below the client; ``take`` gives one response after the other."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.raw = Raw(server)
        self._responses: SimpleQueue[tuple[Any, Any]] = SimpleQueue()
        self.raw.client.start_stream(
            callback=lambda result, error: self._responses.put((result, error))
        )

    def ask(self, data: bytes, **parameters: Any) -> None:
        row = np.array([[data]], np.object_)
        self.raw.client.async_stream_infer(
            "recognize_stream", self.raw.tensors(input=row), parameters=parameters
        )

    def take(self) -> tuple[dict[str, Any], bool]:
        """The outputs by name, and whether they are the last. Raises the stream's error."""
        result, error = self._responses.get(timeout=10)
        if error is not None:
            raise from_wire(error.message())
        response = result.get_response()
        outputs = {output.name: result.as_numpy(output.name) for output in response.outputs}
        return outputs, response.parameters["triton_final_response"].bool_param

    def close(self, cancel: bool = False) -> None:
        self.raw.client.stop_stream(cancel_requests=cancel)


@pytest.fixture
def stream(running: EmbeddedServer) -> Iterator[Stream]:
    opened = Stream(running)
    yield opened
    opened.close()


def sse(server: EmbeddedServer, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of ``generate_stream``."""
    request = urllib.request.Request(
        f"{server.endpoints.http}/v2/models/recognize_stream/generate_stream",
        json.dumps(body).encode(),
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        lines = answer.read().decode("utf-8").splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line]


@pytest.mark.parametrize("options", [{"max_tokens": 9}, {"max_tokens": 7, "beam": 3}])
def test_a_stream_ends_in_the_answer(
    running: EmbeddedServer, stream: Stream, options: dict[str, int]
) -> None:
    for seed in range(4):
        (expected,) = stream.raw.recognize([picture(seed)], parameters=options)
        encoded = base64.b64encode(picture(seed)).decode()
        body = {"input": encoded, "encoding": "base64", **options}
        events = sse(running, body) if seed % 2 else []  # whoever comes second gets it cached
        stream.ask(picture(seed), **options)
        tokens, last = [], False
        while not last:
            outputs, last = stream.take()
            if not last:
                assert outputs["index"].item() == len(tokens)
                assert 0 < outputs["token_score"].item() <= 1
                tokens.append(outputs["token"].item().decode())
        assert tuple(tokens) == expected
        assert outputs["tokens"].item().decode().split() == tokens
        events = events or sse(running, body)
        assert [event["token"] for event in events[:-1]] == tokens
        assert events[-1]["tokens"].split() == tokens


def test_a_stream_gives_tokens_at_once_and_ends_when_its_client_goes(
    running: EmbeddedServer, endless: bytes
) -> None:
    opened = Stream(running)
    opened.ask(endless)
    for place in range(20):  # of an answer that never ends
        outputs, last = opened.take()
        assert outputs["index"].item() == place
        assert not last
    opened.close(cancel=True)
    wait_for(running, slots_in_use=0)


def test_attention(running: EmbeddedServer, stream: Stream) -> None:
    options = {"max_tokens": 5, "attention": True}
    row = stream.raw.tensors(input=np.array([[picture(1)]], np.object_))
    result = stream.raw.client.infer("recognize", row, parameters=options)
    maps, tokens = result.as_numpy("attention"), result.as_numpy("tokens").item().split()
    assert maps.shape[:2] == (1, len(tokens))
    np.testing.assert_allclose(maps.sum((2, 3)), 1, atol=1e-3)
    stream.ask(picture(1), **options)
    for index in range(len(tokens)):
        outputs, _ = stream.take()
        np.testing.assert_allclose(outputs["attention"][0, 0], maps[0, index], atol=1e-5)
        np.testing.assert_allclose(outputs["attention_box"], result.as_numpy("attention_box"))
    assert stream.take()[1]


def test_errors_of_streams(running: EmbeddedServer, stream: Stream) -> None:
    stream.ask(picture(0), bean=3)
    with pytest.raises(BadParameter, match="no request parameter 'bean'"):
        stream.take()
    with pytest.raises(urllib.error.HTTPError) as caught:
        sse(running, {"input": "not a picture", "max_tokens": 3})
    assert "[unreadable_image]" in caught.value.read().decode("utf-8")


def test_a_cancelled_recognize_frees_its_slot(running: EmbeddedServer, endless: bytes) -> None:
    raw = Raw(running)
    ended = threading.Event()
    errors: list[Any] = []

    def done(result: Any, error: Any) -> None:
        errors.append(error)
        ended.set()

    row = raw.tensors(input=np.array([[endless]], np.object_))
    call = raw.client.async_infer("recognize", row, callback=done)
    wait_for(running, slots_in_use=1)
    call.cancel()
    assert ended.wait(5)
    assert errors[0] is not None
    wait_for(running, slots_in_use=0)
    with (  # one that just does not wait any longer
        Recognizer(running.endpoints.grpc, retry=Retry(attempts=1)) as impatient,
        pytest.raises(DeadlineExceeded),
    ):
        impatient.recognize(endless, timeout=0.4)
    wait_for(running, slots_in_use=0)


def test_raw_calls_of_wrong_type_rank_and_size(running: EmbeddedServer) -> None:
    raw = Raw(running)

    def refused(model: str, **arrays: Any) -> HmerError:
        with pytest.raises(raw.grpc.InferenceServerException) as caught:
            raw.client.infer(model, raw.tensors(**arrays))
        assert "Traceback" not in caught.value.message()
        assert "INVALID_ARGUMENT" in str(caught.value.status()) or model == "decode"
        return from_wire(caught.value.message())

    refused("recognize", input=np.zeros((1, 1), np.float32))
    refused("recognize", input=np.array([b"x"], np.object_))
    refused("recognize", input=np.array([[b"x"]] * 17, np.object_))
    refused("preprocess", input=np.zeros((1, 1), np.int32))
    arrays = {tensor.name(): raw.array_of(tensor) for tensor in raw.features(picture(0))}
    broken = arrays["values"].copy()
    broken[0, 0, 0, 0] = np.nan
    assert "not finite" in str(refused("decode", **{**arrays, "values": broken}))
    outside = np.array([[900, 900]], np.int32)
    assert isinstance(refused("decode", **{**arrays, "feature_size": outside}), BadParameter)
    tall = np.zeros((1, 3000, 9, arrays["values"].shape[3]), np.float32)
    keys = np.zeros((1, 3000, 9, arrays["keys"].shape[3]), np.float32)
    assert "positions" in str(refused("decode", **{**arrays, "values": tall, "keys": keys}))
    assert raw.recognize([picture(0)], parameters={"max_tokens": 3})


def test_the_cache(running: EmbeddedServer) -> None:
    raw = Raw(running)
    asked = [{"max_tokens": 4}, {"max_tokens": 6}, {"max_tokens": 4, "beam": 2}]
    first = [raw.recognize([picture(5)], parameters=p) for p in asked]
    assert len({str(answer) for answer in first}) >= 2
    stats = raw.client.get_inference_statistics("decode", as_json=True)
    before = stats["model_stats"][0]["inference_stats"]["success"]["count"]
    assert [raw.recognize([picture(5)], parameters=p) for p in asked] == first
    stats = raw.client.get_inference_statistics("decode", as_json=True)
    assert stats["model_stats"][0]["inference_stats"]["success"]["count"] == before
    which = {"prefix": "hmer_recognize", "labels": 'model="recognize_stream"'}
    hits = metrics(running, **which)["hmer_recognize_cache_hits_total"]
    begun = Stream(running)
    for _ in range(2):  # a stream's cache is its own; the second comes from there
        begun.ask(picture(5), max_tokens=4)
        parts = [begun.take() for _ in range(len(first[0][0]) + 1)]
        assert [o["token"].item().decode() for o, _ in parts[:-1]] == list(first[0][0])
        assert parts[-1][1]
    begun.close()
    wait_for(running, **which, cache_hits_total=hits + 1)  # published once a second


def test_a_new_version_takes_over(running: EmbeddedServer, tmp_path: Path) -> None:
    """Under light load; last of this module, for the server serves other weights afterwards."""
    new = tiny.make_graphs(tmp_path / "new", seed=2, beam=6)
    stop, failures, answers = threading.Event(), list[HmerError](), set[tuple[str, ...]]()

    def load() -> None:
        with Recognizer(running.endpoints.grpc, retry=Retry(attempts=1)) as recognizer:
            while not stop.is_set():
                try:
                    answers.add(recognizer.recognize(picture(3), max_tokens=12).tokens)
                except HmerError as error:
                    failures.append(error)
                time.sleep(0.01)

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert add_version(running.repository, new.folder) == 2
    assert take_over(running.endpoints.http, running.repository) == [1]
    time.sleep(0.2)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    with LocalRecognizer(new.folder, threads=1, guards=False, max_tokens=12) as local:
        expected = local.recognize(picture(3)).tokens
    with Recognizer(running.endpoints.grpc) as recognizer:
        assert recognizer.recognize(picture(3), max_tokens=12).tokens == expected
    assert answers - {expected}  # from before


def test_a_server_is_closed_to_new_versions_by_default(server: EmbeddedServer) -> None:
    with pytest.raises(ServerError, match="--model-control"):
        take_over(server.endpoints.http, server.repository)
