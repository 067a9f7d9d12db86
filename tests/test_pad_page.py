"""The pad's page in a real headless Chromium."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="the pad's extra is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from client.local import SHIPPED  # noqa: E402
from client.pad.backend import LocalBackend, ServerBackend  # noqa: E402
from client.retry import Retry  # noqa: E402
from hmer import ink  # noqa: E402
from hmer.errors import ServerUnavailable  # noqa: E402
from hmer.recognizer import LocalRecognizer  # noqa: E402
from tests.browser import DROP, LINES, latex_is, opened, write  # noqa: E402
from tests.pad_server import FakeBackend, serving  # noqa: E402

HAS_HEAT = """() => { const c = document.getElementById("heat");
  return c.getContext("2d").getImageData(0, 0, c.width, c.height).data.some((v) => v > 0); }"""
DROP_NOTHING = """() => document.dispatchEvent(
  new DragEvent("drop", { dataTransfer: new DataTransfer(), bubbles: true }))"""
SAMPLES = Path(__file__).resolve().parent.parent / "client" / "samples"


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def page(browser: Any, backend: FakeBackend) -> Iterator[Any]:
    with serving(backend) as url:
        yield from opened(browser, url)


def test_drawn_by_mouse(page: Any, backend: FakeBackend) -> None:
    write(page, LINES[:2])
    latex_is(page, "x^{2}")
    assert page.locator("#formula math msup").count() == 1
    assert page.locator("#sure-text").inner_text() == "Confidence 75 %"
    assert page.locator("#tokens button").all_inner_texts() == ["x", "^", "{", "2", "}"]
    data, wanted = backend.asked[0]
    assert data.startswith(b'{"strokes":[[[')
    assert wanted == {}
    page.locator("#choices label").nth(1).click()
    latex_is(page, "y")
    assert page.locator("#choices input").count() == 3


def test_undo_and_clear_by_keys(page: Any) -> None:
    write(page, LINES)
    latex_is(page, "x^{3}")
    page.keyboard.press("Control+z")
    latex_is(page, "x^{2}")
    page.keyboard.press("Escape")
    sync_api.expect(page.locator("#found")).to_be_hidden()
    assert page.locator("#formula").inner_text() == ""
    page.locator("#undo").click()
    latex_is(page, "x^{2}")


def test_earlier_requests_are_cancelled(page: Any, backend: FakeBackend) -> None:
    backend.delay = 1.0
    write(page, LINES[:1])
    page.wait_for_timeout(600)
    write(page, LINES[1:2])
    latex_is(page, "x^{2}")
    assert len(backend.cancelled) == 1
    assert backend.cancelled[0] == backend.asked[0][0]


def heated(page: Any) -> int:
    """Pixels with heat in them."""
    return int(
        page.locator("#heat").evaluate(
            "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data"
            ".filter((v, i) => i % 4 === 3 && v > 0).length"
        )
    )


def test_attention_of_a_token(page: Any) -> None:
    write(page, LINES[:2])
    latex_is(page, "x^{2}")
    assert heated(page) == 0
    with page.expect_response(lambda response: "attention=true" in response.url):
        page.locator("#tokens button").first.focus()
    page.wait_for_timeout(100)
    assert heated(page) > 50
    page.keyboard.press("Tab")
    assert "lit" in (page.locator("#tokens button").nth(1).get_attribute("class") or "")


def test_attention_is_asked_for_again_after_a_failure(page: Any, backend: FakeBackend) -> None:
    write(page, LINES[:2])
    latex_is(page, "x^{2}")
    page.locator("#choices label").first.wait_for()  # nothing else is under way
    backend.error = ServerUnavailable("The server is gone.")
    page.locator("#tokens button").first.focus()
    sync_api.expect(page.locator("#state")).to_have_text("The server is gone.")
    backend.error = None
    with page.expect_response(lambda response: "attention=true" in response.url):
        page.locator("#tokens button").nth(1).focus()
    page.wait_for_function(HAS_HEAT)


def test_clearing_while_attention_is_awaited_leaves_no_message(
    page: Any, backend: FakeBackend
) -> None:
    write(page, LINES[:2])
    latex_is(page, "x^{2}")
    page.locator("#choices label").first.wait_for()
    backend.delay = 30.0
    with page.expect_request(lambda request: "attention=true" in request.url):
        page.locator("#tokens button").first.focus()
    page.keyboard.press("Escape")
    for _ in range(200):
        if backend.cancelled:  # after the page knew that it had given up
            break
        page.wait_for_timeout(50)
    assert backend.cancelled
    assert page.locator("#state").text_content() == ""


def test_a_drop_without_a_file_is_explained(page: Any) -> None:
    page.evaluate(DROP_NOTHING)
    assert "no file" in page.locator("#state").inner_text()


def test_a_transparent_picture_is_on_white_paper_in_the_dark(
    browser: Any, backend: FakeBackend
) -> None:
    clear = np.zeros((40, 120, 4), np.uint8)
    clear[10:30, 20:24, 3] = 255
    stream = io.BytesIO()
    Image.fromarray(clear).save(stream, "PNG")
    with serving(backend) as url:
        for page in opened(browser, url, color_scheme="dark"):
            page.evaluate(DROP, [list(stream.getvalue()), "formula.png", "image/png"])
            latex_is(page, "a+b")
            levels = page.locator("#ink").evaluate(
                "c => [...c.getContext('2d').getImageData(c.width >> 1, c.height >> 1, 1, 1).data]"
            )
            assert levels == [255, 255, 255, 255]


def test_the_head_tells_when_the_server_goes(page: Any, backend: FakeBackend) -> None:
    sync_api.expect(page.locator("#server")).to_have_text("A backend for tests")
    backend.error = ServerUnavailable("The server is gone.")
    write(page, LINES[:1])
    sync_api.expect(page.locator("#server")).to_have_text("The server is gone.")
    sync_api.expect(page.locator("#server")).to_have_class("down")


@pytest.mark.parametrize(("form", "kind"), [("PNG", "image/png"), ("TIFF", "image/tiff")])
def test_a_picture_is_dropped(page: Any, backend: FakeBackend, form: str, kind: str) -> None:
    picture = np.full((40, 120), 255, np.uint8)
    picture[10:30, 20:24] = 0
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, form)
    page.evaluate(DROP, [list(stream.getvalue()), "formula", kind])
    latex_is(page, "a+b")
    assert backend.asked[0][0] == stream.getvalue()
    write(page, LINES[:1])  # begins a new sheet
    latex_is(page, "x^{1}")


def test_what_is_no_picture_is_explained(page: Any) -> None:
    page.evaluate(DROP, [list(b"no picture"), "notes.txt", "text/plain"])
    problem = page.locator("#problem")
    problem.wait_for(state="visible")
    assert "not a PNG" in problem.inner_text()


def test_server_down_shows_a_sentence(browser: Any) -> None:
    nobody = ServerBackend("127.0.0.1:9", retry=Retry(attempts=1), timeout=5.0)
    with serving(nobody) as url:
        for page in opened(browser, url):
            write(page, LINES[:1])
            page.locator("#problem").wait_for(state="visible")
            assert "No server answers at 127.0.0.1:9" in page.locator("#problem").inner_text()
            assert "No server answers" in page.locator("#server").inner_text()


def test_pad_down_shows_a_sentence(browser: Any) -> None:
    with serving(FakeBackend()) as url:
        pages = opened(browser, url)
        page = next(pages)
    write(page, LINES[:1])
    page.locator("#problem").wait_for(state="visible")
    assert "The pad itself does not answer" in page.locator("#problem").inner_text()
    assert next(pages, None) is None


def test_on_a_phone_nothing_overflows(browser: Any, backend: FakeBackend) -> None:
    with serving(backend) as url:
        context = browser.new_context(
            viewport={"width": 360, "height": 740}, has_touch=True, color_scheme="dark"
        )
        page = context.new_page()
        page.goto(url)
        write(page, LINES[:2])
        latex_is(page, "x^{2}")
        page.locator("#choices label").first.wait_for()
        wide = page.locator("html").evaluate("e => e.scrollWidth - e.clientWidth")
        assert wide <= 0
        names = page.locator("button:visible, textarea, input:visible").evaluate_all(
            "all => all.map(e => (e.textContent || e.labels?.[0]?.textContent || '').trim())"
        )
        assert all(names)
        context.close()


def test_the_shipped_network_reads_what_is_drawn(browser: Any) -> None:
    strokes = ink.parse_inkml((SAMPLES / "pythagoras.inkml").read_bytes()).strokes
    sent: list[bytes] = []
    with serving(LocalBackend(threads=1)) as url:
        for page in opened(browser, url):
            page.on("request", lambda request: sent.append(request.post_data_buffer))
            write(page, strokes)
            page.locator("#found").wait_for(state="visible")
            shown = page.locator("#latex").input_value()
    with LocalRecognizer(SHIPPED, threads=1) as recogniser:
        assert shown == recogniser.recognize(sent[0]).latex
    assert len(ink.parse_strokes(sent[0]).strokes) == len(strokes)
