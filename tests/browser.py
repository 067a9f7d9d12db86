"""A real headless Chromium, and how tests open the pad in it and write on it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LINES = [np.array([[0.0, i * 10], [100, i * 10 + 5]]) for i in range(3)]

DROP = """([bytes, name, type]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], name, { type }));
  document.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium: the system's, or playwright's own."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_api.sync_playwright() as playwright:
        try:
            found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"no Chromium here: {str(error).splitlines()[0]}")
        yield found
        found.close()


def opened(browser: Any, url: str, **context_options: Any) -> Iterator[Any]:
    """The page at ``url``; afterwards it must have had no errors and asked nobody else."""
    faults: list[str] = []
    options = {"viewport": {"width": 1000, "height": 700}} | context_options
    context = browser.new_context(**options)
    context.set_default_timeout(20_000)
    page = context.new_page()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: strangers(request.url, url, faults))
    page.goto(url)
    yield page
    context.close()
    assert not faults


def strangers(asked: str, url: str, faults: list[str]) -> None:
    if not asked.startswith((url, "data:", "blob:")):
        faults.append(f"the page asked {asked}")


def write(page: Any, strokes: Sequence[NDArray[Any]]) -> None:
    """Draw by mouse events, as large as the sheet allows."""
    page.evaluate("window.scrollTo(0, 0)")  # where the sheet is
    box = page.locator("#ink").bounding_box()
    points = np.concatenate(strokes)
    low, span = points.min(axis=0), np.ptp(points, axis=0)
    scale = min((box["width"] - 40) / span[0], (box["height"] - 40) / max(span[1], 1))
    for stroke in strokes:
        placed = (stroke - low) * scale + (box["x"] + 20, box["y"] + 20)
        page.mouse.move(*map(float, placed[0]))
        page.mouse.down()
        for point in placed[1:]:
            page.mouse.move(*map(float, point))
        page.mouse.up()


def latex_is(page: Any, expected: str) -> None:
    from playwright.sync_api import expect

    expect(page.locator("#latex")).to_have_value(expected)
