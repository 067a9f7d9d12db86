"""The pad and the report for everybody: axe-core, keyboard alone, what a screen reader is told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the pad's extra is not installed")
axe_package = pytest.importorskip("axe_playwright_python", reason="axe-core is not installed")

from client.output import Style  # noqa: E402
from client.report import Report  # noqa: E402
from hmer.errors import BlankImage  # noqa: E402
from hmer.recognition import Alternative, Recognition  # noqa: E402
from tests.browser import LINES, latex_is, opened, write  # noqa: E402
from tests.pad_server import FakeBackend, serving  # noqa: E402

SAMPLES = Path(__file__).resolve().parent.parent / "client" / "samples"
AXE = Path(axe_package.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
WIDE, NARROW = {"width": 1200, "height": 800}, {"width": 360, "height": 740}
LOOKS = [
    pytest.param(size, scheme, id=f"{name}-{scheme}")
    for name, size in (("wide", WIDE), ("narrow", NARROW))
    for scheme in ("light", "dark")
]
# Everything that axe-core 4 checks: WCAG 2 A, AA and AAA's rules that are on, best practices.
AUDIT = """async () => (await axe.run()).violations.map(
  found => `${found.id}: ${found.help}: ${found.nodes.map(node => node.html).join(' | ')}`)"""


def violations(page: Any) -> list[str]:
    page.evaluate(AXE)
    return list(page.evaluate(AUDIT))


def picture_of(page: Any, name: str) -> None:
    """Keep a screenshot, for people to look at, where ``HMER_SCREENSHOTS`` names a folder."""
    if folder := os.environ.get("HMER_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


@pytest.mark.parametrize(("size", "scheme"), LOOKS)
def test_the_pad_has_no_violations(browser: Any, size: Any, scheme: str) -> None:
    look = f"{size['width']}-{scheme}"
    backend = FakeBackend()
    with serving(backend) as url:
        for page in opened(browser, url, viewport=size, color_scheme=scheme):
            assert violations(page) == []
            write(page, LINES[:2])
            latex_is(page, "x^{2}")
            page.locator("#choices label").first.wait_for()
            page.locator("#tokens button").first.focus()
            page.wait_for_timeout(150)
            picture_of(page, f"pad-{look}")
            assert violations(page) == []
            backend.error = BlankImage("The picture is blank: no ink stands out.")
            write(page, LINES[2:])
            page.locator("#problem").wait_for(state="visible")
            picture_of(page, f"pad-problem-{look}")
            assert violations(page) == []


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    page = Report(path, Style("latex", 0.5))
    other = Alternative(r"\frac{a}{b}", (r"\frac", "{", "a", "}", "{", "b", "}"), 0.125)
    names = ("average.png", "quadratic.jpg", "limit.inkml")
    answers = [
        Recognition(r"\frac{a+b}{2}", ("a",), 0.9, (other,), 0.875, {"request": 21.0}),
        BlankImage("The picture is blank: no ink stands out from its background."),
        Recognition(
            r"\lim_{x\rightarrow0}\frac{\sin x}{x}=1", ("x",), 0.3, (), 0.25, {"request": 5.0}
        ),
    ]
    for name, answer in zip(names, answers, strict=True):
        page.add(name, (SAMPLES / name).read_bytes(), answer)
    page.write(len(names))
    return path.as_uri()


@pytest.mark.parametrize(("size", "scheme"), LOOKS)
def test_the_report_has_no_violations(browser: Any, report: str, size: Any, scheme: str) -> None:
    for page in opened(browser, report, viewport=size, color_scheme=scheme):
        picture_of(page, f"report-{size['width']}-{scheme}")
        assert violations(page) == []
        wide = page.locator("html").evaluate("e => e.scrollWidth - e.clientWidth")
        assert wide <= 0


def test_the_report_is_sorted_by_keyboard(browser: Any, report: str) -> None:
    for page in opened(browser, report, viewport=WIDE):
        for _ in range(3):  # input, formula, confidence
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        head = page.locator("th", has_text="Confidence")
        assert head.get_attribute("aria-sort") == "ascending"
        first = page.locator("tbody tr").first.inner_text()
        assert "blank" in first  # unknown comes before the least sure
        page.keyboard.press("Space")
        assert head.get_attribute("aria-sort") == "descending"
        assert "average" in page.locator("tbody tr").first.inner_text()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    with serving(FakeBackend()) as url:
        yield from opened(browser, url, permissions=["clipboard-read", "clipboard-write"])


def tab_to(page: Any, wanted: str) -> None:
    """Press Tab until the element ``wanted`` has the focus, which is to be seen."""
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("wanted => document.activeElement.matches(wanted)", wanted):
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none"
            return
    raise AssertionError(f"Tab never reaches {wanted}")


def test_by_keyboard_alone(page: Any) -> None:
    write(page, LINES)  # writing itself needs a pointer; a picture can be opened instead
    latex_is(page, "x^{3}")
    page.evaluate("document.activeElement.blur()")
    tab_to(page, "#undo")
    page.keyboard.press("Enter")
    latex_is(page, "x^{2}")
    tab_to(page, "#open")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files(str(SAMPLES / "average.png"))
    latex_is(page, "a+b")
    page.locator("#choices label").first.wait_for()
    tab_to(page, "#copy")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('#state').textContent === 'Copied.'")
    assert page.evaluate("navigator.clipboard.readText()") == "a+b"
    tab_to(page, "#choices input")
    page.keyboard.press("ArrowDown")
    latex_is(page, "y")
    page.keyboard.press("Shift+Tab")
    page.evaluate("document.activeElement.blur()")
    tab_to(page, "#clear")
    page.keyboard.press("Space")
    page.locator("#found").wait_for(state="hidden")


def test_the_answer_is_announced(page: Any) -> None:
    """What a screen reader gets: a live region that is there before, with the formula in words."""
    live = page.locator("#formula")
    assert live.get_attribute("aria-live") == "polite"
    page.evaluate(
        "window.told = []; new MutationObserver(() => told.push("
        "document.querySelector('#formula').textContent))"
        ".observe(document.querySelector('#formula'), {childList: true, subtree: true})"
    )
    write(page, LINES[:2])
    latex_is(page, "x^{2}")
    assert "x2" in [text.strip() for text in page.evaluate("told")]
    assert page.locator("#formula math").count() == 1
    assert "Nothing" not in (page.locator("#ink").get_attribute("aria-label") or "")
    assert page.locator("#problem").get_attribute("role") == "alert"
