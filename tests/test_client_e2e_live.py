"""What the client does to a running server: streams, cancellation, retries, shared memory."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from client import AsyncRecognizer, Cancellation, Partial, Recognition, Recognizer, Retry
from client.cli import main
from export.config import RepositoryOptions
from hmer.bundle import Bundle
from hmer.errors import BadParameter, Cancelled, HmerError, Overloaded
from hmer.recognizer import LocalRecognizer
from hmer.serving import JSON
from model_repository.server import EmbeddedServer
from model_repository.settings import ServerSettings
from tests.e2e_fixtures import metrics, need_embedded, picture, serve, wait_for

pytestmark = pytest.mark.e2e

LONG = 100_000  # tokens: an answer that takes longer than any test waits


@pytest.fixture(scope="module")
def running(
    tiny_graphs: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedServer]:
    """Few slots, a short queue, and answers that may be endless."""
    need_embedded()
    options = RepositoryOptions(slots=4, max_queue=4, max_tokens=LONG, guards=False)
    folder = tmp_path_factory.mktemp("live") / "r"
    settings = ServerSettings(shared_memory=True, log_requests=JSON)
    with serve(tiny_graphs.folder, folder, options, settings) as server:
        yield server


@pytest.fixture(scope="module")
def endless(tiny_graphs: Bundle) -> bytes:
    """A picture whose answer never ends."""
    with LocalRecognizer(tiny_graphs.folder, threads=1, guards=False) as local:
        return next(p for p in map(picture, range(14)) if len(local.recognize(p).tokens) >= 256)


@pytest.fixture(params=["grpc", "http"])
def url(request: pytest.FixtureRequest, running: EmbeddedServer) -> str:
    return str(getattr(running.endpoints, request.param))


def test_a_stream_is_the_answer_in_parts(url: str) -> None:
    with Recognizer(url) as recognizer:
        answer = recognizer.recognize(picture(1), max_tokens=9, attention=True)
        *parts, last = recognizer.stream(picture(1), max_tokens=9, attention=True)
        wide = recognizer.recognize(picture(1), max_tokens=9, beam=3, n_best=2)
        beams = list(recognizer.stream(picture(1), max_tokens=9, beam=3, n_best=2))
    assert isinstance(last, Recognition)
    assert (last.tokens, last.latex) == (answer.tokens, answer.latex)
    assert [part.tokens for part in parts] == [
        answer.tokens[: place + 1] for place in range(len(answer.tokens))
    ]
    assert answer.attention is not None
    assert len(answer.attention.maps) == len(parts)
    for part, maps in zip(parts, answer.attention.maps, strict=True):
        assert isinstance(part, Partial)
        assert part.attention is not None
        np.testing.assert_allclose(part.attention.maps[0], maps, atol=1e-4)
        assert part.attention.box == pytest.approx(answer.attention.box)
    assert isinstance(beams[-1], Recognition)
    assert beams[-1].tokens == wide.tokens
    assert [part.tokens for part in beams[:-1]] == [
        wide.tokens[: place + 1] for place in range(len(wide.tokens))
    ]


def test_cancelling_frees_the_slot(url: str, running: EmbeddedServer, endless: bytes) -> None:
    """At once over gRPC; Triton's HTTP front does not pass it on, but the deadline travels."""
    limit = 4.0 if url.startswith("http") else 600.0
    cancellation = Cancellation()
    caught: list[HmerError] = []

    def ask() -> None:
        try:
            recognizer.recognize(endless, cancellation=cancellation)
        except HmerError as error:
            caught.append(error)

    with Recognizer(url, timeout=limit) as recognizer:
        thread = threading.Thread(target=ask)
        thread.start()
        wait_for(running, slots_in_use=1)
        cancellation.cancel()
        thread.join(20.0)
        assert [type(error) for error in caught] == [Cancelled]
        wait_for(running, slots_in_use=0)


def test_leaving_a_stream_frees_the_slot(url: str, running: EmbeddedServer, endless: bytes) -> None:
    with Recognizer(url, timeout=600.0) as recognizer:
        parts = recognizer.stream(endless)
        for _ in range(5):
            next(parts)
        wait_for(running, slots_in_use=1)
        parts.close()  # type: ignore[attr-defined]
        wait_for(running, slots_in_use=0)


def test_a_full_server_is_asked_again_until_there_is_room(
    running: EmbeddedServer, endless: bytes
) -> None:
    """Endless requests fill it; they are cancelled; who waited is answered."""
    url = running.endpoints.grpc

    async def fill() -> int:
        once, patient = Retry(attempts=1), Retry(attempts=500, first=0.05, longest=0.2)
        async with (
            AsyncRecognizer(url, threads=48, retry=once, timeout=600) as crowd,
            AsyncRecognizer(url, retry=patient, timeout=60) as waiting,
        ):
            tasks = [asyncio.create_task(crowd.recognize(endless)) for _ in range(48)]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=30)
            assert done, "48 endless requests found room"
            assert all(isinstance(task.exception(), Overloaded) for task in done)
            late = asyncio.create_task(waiting.recognize(picture(1), max_tokens=3))
            await asyncio.sleep(0.3)
            assert not late.done()  # refused, and asking again
            for task in tasks:
                task.cancel()
            assert (await late).tokens
            results = await asyncio.gather(*tasks, return_exceptions=True)
            return sum(isinstance(result, asyncio.CancelledError) for result in results)

    assert asyncio.run(fill()) > 4
    wait_for(running, slots_in_use=0)


def test_shared_memory_gives_the_same_answer(url: str) -> None:
    with Recognizer(url) as plain, Recognizer(url, shared_memory=True) as shared:
        expected = plain.recognize(picture(2), max_tokens=9).tokens
        for _ in range(3):
            assert shared.recognize(picture(2), max_tokens=9).tokens == expected
        many = [picture(seed) for seed in range(6)] * 3
        answers = (r.recognize_many(many, max_tokens=9) for r in (plain, shared))
        for a, b in zip(*answers, strict=True):
            assert isinstance(a, Recognition)
            assert isinstance(b, Recognition)
            assert a.tokens == b.tokens


def test_what_the_server_does_not_take_is_explained(url: str) -> None:
    with Recognizer(url) as recognizer, pytest.raises(BadParameter, match="max_tokens"):
        recognizer.recognize(picture(1), max_tokens=LONG + 1)
    with Recognizer(url) as recognizer, pytest.raises(BadParameter, match="max_tokens"):
        list(recognizer.stream(picture(1), max_tokens=LONG + 1))


def test_the_commands(url: str, running: EmbeddedServer, tmp_path: Path) -> None:
    (tmp_path / "f.png").write_bytes(picture(1))
    run = CliRunner().invoke
    file, server = str(tmp_path / "f.png"), ("--url", url, "--max-tokens", "9")
    answer = json.loads(run(main, ["recognize", file, "--json", *server]).stdout)
    streamed = run(main, ["stream", file, *server])
    assert (streamed.exit_code, streamed.stdout) == (0, answer["latex"] + "\n")
    listed = run(main, ["models", "--url", url])
    assert (listed.exit_code, "recognize_stream" in listed.stdout) == (0, True)
    pictures = tmp_path / "maps"
    drawn = run(main, ["recognize", file, "--attention", str(pictures), *server])
    assert (drawn.exit_code, [p.name for p in pictures.iterdir()]) == (0, ["f.png.png"])
    page = f"http://127.0.0.1:{running.endpoints.metrics_port}"
    shown = run(main, ["metrics", "--url", url, "--metrics-url", page])
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert "recognize_stream" in shown.stdout
    assert metrics(running)
