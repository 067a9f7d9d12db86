"""The Python API: lists, streams, asyncio, the recogniser in this process, notebooks."""

from __future__ import annotations

import asyncio
import io
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client import (
    AsyncRecognizer,
    FormulaRecognizer,
    LocalRecognizer,
    Partial,
    Recognition,
    Recognizer,
)
from client.protocol import Item, is_many
from hmer.bundle import Bundle
from hmer.errors import BadInk, BadParameter, Cancelled, EmptyInput, HmerError
from hmer.ink import MAX_POINTS, Ink
from hmer.recognition import Alternative
from tests.client_fixtures import Fake, fake
from tests.fake_server import Asked

__all__ = ["fake"]
INK = [[(0.0, 0.0), (30.0, 40.0)], [(0.0, 40.0), (30.0, 0.0)]]


def test_a_list_of_inputs_gives_a_list_of_answers(fake: Fake, tmp_path: Path) -> None:
    path = tmp_path / "f.bin"
    path.write_bytes(b"xy")
    inputs: list[Item] = [b"a", b"", path]
    with Recognizer(fake.url) as recognizer:
        a, empty, file = recognizer.recognize(inputs, request_id="job")
    assert isinstance(a, Recognition)
    assert isinstance(empty, EmptyInput)
    assert isinstance(file, Recognition)
    assert (a.latex, file.latex) == ("a", "xy")
    assert {asked.id for asked in fake.script.asked} == {"job-1", "job-3"}


def test_strokes_are_one_input_and_pictures_many() -> None:
    picture, stroke = np.zeros((4, 4), np.uint8), np.zeros((4, 2), np.float32)
    for many in (["a.png"], (Path("a"), b"b"), [picture, Image.new("L", (2, 2))], [Ink([])]):
        assert is_many(many)
    for one in (INK, [stroke], [], "a.png", b"ab", picture, Ink([]), [[(0, 0)], picture]):
        assert not is_many(one)


def test_a_pillow_picture_travels_as_it_is(fake: Fake) -> None:
    with Recognizer(fake.url) as recognizer, pytest.raises(HmerError):
        recognizer.recognize(Image.new("I;16", (9, 7), 40_000))  # no text for the fake server
    with Image.open(io.BytesIO(fake.script.asked[0].data)) as arrived:
        assert (arrived.mode, arrived.size, arrived.getpixel((0, 0))) == ("I;16", (9, 7), 40_000)


def test_too_many_points_are_not_even_copied() -> None:
    endless = np.broadcast_to(np.float64(1.0), (10**9, 2))
    with Recognizer("localhost:1") as recognizer:
        with pytest.raises(BadInk, match=f"more than {MAX_POINTS} points"):
            recognizer.recognize([endless])
        with pytest.raises(BadInk, match="finite"):
            recognizer.recognize([[(0.0, float("nan"))]])


def test_a_stream_grows_and_ends_with_the_answer(fake: Fake) -> None:
    with Recognizer(fake.url) as recognizer:
        *parts, answer = recognizer.stream(b"abc", request_id="mine", max_tokens=7)
    assert [part.tokens for part in parts] == [("a",), ("a", "b"), ("a", "b", "c")]
    assert all(isinstance(part, Partial) and part.scores[-1] == 0.5 for part in parts)
    assert isinstance(answer, Recognition)
    assert answer.latex == "abc"
    (asked,) = fake.script.asked
    assert (asked.model, asked.id, asked.parameters) == (
        "recognize_stream",
        "mine",
        {"max_tokens": 7},
    )
    assert asked.timeout_us > 0


def test_attention_comes_with_the_answer(fake: Fake) -> None:
    with Recognizer(fake.url) as recognizer:
        assert recognizer.recognize(b"ab").attention is None
        attention = recognizer.recognize(b"ab", attention=True).attention
    assert attention is not None
    assert attention.maps.shape == (2, 1, 2)
    assert attention.box == (0.0, 0.0, 32.0, 16.0)


def test_an_unknown_option_is_named(fake: Fake) -> None:
    with Recognizer(fake.url) as recognizer, pytest.raises(BadParameter, match=r"'beams'.*beam"):
        recognizer.recognize(b"a", beams=3)  # type: ignore[call-overload]


def test_asyncio(fake: Fake) -> None:
    async def main() -> None:
        async with AsyncRecognizer(fake.url) as recognizer:
            assert (await recognizer.recognize(b"ab")).latex == "ab"
            parts = [part.latex async for part in recognizer.stream(b"xy")]
            assert parts == ["x", "xy", "xy"]
            many = [a async for a in recognizer.recognize_many([b"a", b"", b"c"], 2)]
            assert [type(a) for a in many] == [Recognition, EmptyInput, Recognition]
            assert (await recognizer.health()).serving
            both = await asyncio.gather(recognizer.recognize(b"d"), recognizer.recognize(b"e"))
            assert [answer.latex for answer in both] == ["d", "e"]

    asyncio.run(main())


def test_cancelling_a_task_cancels_its_request(fake: Fake) -> None:
    arrived, release = threading.Event(), threading.Event()

    def hold(asked: Asked) -> None:
        if asked.data == b"slow":
            arrived.set()
            release.wait(20.0)

    fake.script.hold = hold

    async def main() -> None:
        async with AsyncRecognizer(fake.url, threads=1) as recognizer:
            task = asyncio.create_task(recognizer.recognize(b"slow"))
            assert await asyncio.to_thread(arrived.wait, 20.0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            # The only thread is free again although the server still holds the request.
            assert (await recognizer.recognize(b"b")).latex == "b"
            release.set()

    asyncio.run(main())


def holding(fake: Fake) -> tuple[threading.Event, threading.Event]:
    """The server holds every request: one has arrived, and they are let go."""
    arrived, release = threading.Event(), threading.Event()

    def hold(asked: Asked) -> None:
        arrived.set()
        release.wait(20.0)

    fake.script.hold = hold
    return arrived, release


def test_closing_ends_what_waits_for_a_thread(fake: Fake) -> None:
    arrived, release = holding(fake)

    async def main() -> None:
        recognizer = AsyncRecognizer(fake.url, threads=1)
        tasks = [asyncio.create_task(recognizer.recognize(b"slow"))]
        assert await asyncio.to_thread(arrived.wait, 20.0)
        tasks.append(asyncio.create_task(recognizer.recognize(b"queued")))
        tasks.append(asyncio.create_task(anext(recognizer.stream(b"queued, too"))))
        await asyncio.sleep(0.05)
        await recognizer.close()
        ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20.0)
        assert [type(error) for error in ended] == [Cancelled] * 3
        release.set()
        with pytest.raises(Cancelled, match="closed by this program"):
            await recognizer.recognize(b"late")
        with pytest.raises(Cancelled, match="closed by this program"):
            await anext(recognizer.stream(b"late"))

    asyncio.run(main())


def test_closing_ends_what_others_wait_for(fake: Fake) -> None:
    arrived, release = holding(fake)

    async def main() -> None:
        recognizer = AsyncRecognizer(fake.url)
        task = asyncio.create_task(recognizer.recognize(b"slow"))
        assert await asyncio.to_thread(arrived.wait, 20.0)
        await recognizer.close()
        with pytest.raises(Cancelled):
            await task
        release.set()

    asyncio.run(main())


def ask_all(recognizer: FormulaRecognizer) -> list[tuple[str, ...]]:
    """What user code does with either recogniser."""
    one = recognizer.recognize(INK, max_tokens=12)
    (same,) = recognizer.recognize_many([INK], max_tokens=12)
    assert isinstance(same, Recognition)
    parts = list(recognizer.stream(INK, max_tokens=12))
    assert isinstance(parts[-1], Recognition)
    assert [len(part.tokens) for part in parts[:-1]] == list(range(1, len(parts)))
    return [one.tokens, same.tokens, parts[-1].tokens]


def test_the_recogniser_in_this_process_is_one_too(tiny_graphs: Bundle) -> None:
    with LocalRecognizer(tiny_graphs.folder, threads=1) as recognizer:
        one, many, streamed = ask_all(recognizer)
        assert one == many == streamed
        inputs: list[Item] = [Ink([np.array(s, np.float32) for s in INK]), b""]
        good, bad = recognizer.recognize(inputs)
        assert isinstance(good, Recognition)
        assert isinstance(bad, EmptyInput)
        with pytest.raises(BadParameter, match="1 to 256"):
            recognizer.recognize(INK, max_tokens=257)
        with pytest.raises(BadParameter, match="trace_attention"):
            recognizer.recognize(INK, attention=True)
        stream = recognizer.stream(INK)
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert recognizer.recognize(INK, max_tokens=12).tokens == one  # no slot was lost


def test_both_follow_one_protocol(fake: Fake) -> None:
    with Recognizer(fake.url) as recognizer:
        assert len(set(ask_all(recognizer))) == 1


def test_a_notebook_shows_formula_confidence_and_alternatives() -> None:
    other = Alternative("a<b", ("a", "<", "b"), 0.25)
    answer = Recognition("x^{2}", ("x", "^", "{", "2", "}"), 0.5, (other,), 0.875)
    assert answer._repr_latex_() == r"$\displaystyle x^{2}$"
    page = answer._repr_html_()
    assert "<msup>" in page
    assert "88%" in page
    assert "a&lt;b" in page
    assert "a<b" not in page
