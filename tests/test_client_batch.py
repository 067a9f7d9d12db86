"""``hmer-client recognize``: outputs, marks, pictures, pages."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from tests.batch_fixtures import Fake, fake, files, picture, run
from tests.client_fixtures import locked_pdf, pages
from tests.fake_server import Refusal

__all__ = ["fake", "files"]


def test_csv(fake: Fake, files: Path) -> None:
    fake.script.alternatives = '[{"latex": "q,r", "tokens": ["q"], "score": 0.125}]'
    fake.script.refusals[b"b"] = Refusal("INTERNAL", "[blank_image] Blank.")
    result = run("a.png", "b.png", "--csv", "--min-confidence", "0.95", "--url", fake.url)
    assert result.exit_code == 1
    a, other, b = csv.DictReader(io.StringIO(result.stdout))
    assert (a["input"], a["rank"], a["formula"], a["score"]) == ("a.png", "1", "a", "0.5")
    assert (a["confidence"], a["low_confidence"], a["error"]) == ("0.9", "yes", "")
    assert (other["rank"], other["formula"], other["score"]) == ("2", "q,r", "0.125")
    assert b["error"] == "blank_image: Blank."


def test_formats(fake: Fake, files: Path) -> None:
    fake.script.answers[b"a"] = r"\frac { x ^ { 2 } } { 2 }"
    assert run("a.png", "--format", "text", "--url", fake.url).stdout == "x²/2\n"
    mathml = run("a.png", "--format", "mathml", "--url", fake.url).stdout
    assert mathml.startswith("<math")
    assert "<mfrac>" in mathml
    line = json.loads(run("a.png", "--format", "text", "--json", "--url", fake.url).stdout)
    assert (line["text"], line["latex"]) == ("x²/2", "\\frac{x^{2}}{2}")


def test_an_answer_that_is_no_formula_has_no_mathml(fake: Fake, files: Path) -> None:
    fake.script.answers[b"a"] = "x ^ y ^ z"
    fake.script.alternatives = '[{"latex": "y^y^y", "tokens": ["y"], "score": 0.125}]'
    result = run("a.png", "b.png", "--format", "mathml", "--url", fake.url)
    assert result.exit_code == 1
    assert result.stdout.count("<math") == 1
    assert "cannot be written in MathML" in result.stderr
    assert "\t0.125\ty^y^y\n" in result.stdout  # an alternative's LaTeX will do


def test_low_confidence_is_marked_with_an_exit_code_of_its_own(fake: Fake, files: Path) -> None:
    result = run("a.png", "b.png", "--min-confidence", "0.9", "--url", fake.url)
    assert (result.exit_code, result.stdout) == (0, "a.png\ta\nb.png\tb\n")
    result = run("a.png", "b.png", "--min-confidence", "0.91", "--url", fake.url)
    assert result.exit_code == 3
    assert result.stdout == ("a.png\ta\tlow confidence: 0.90\nb.png\tb\tlow confidence: 0.90\n")
    assert result.stderr == "2 of 2 answers have a confidence below 0.91.\n"
    one = run("a.png", "--min-confidence", "0.91", "--url", fake.url)
    assert (one.exit_code, one.stdout, one.stderr) == (3, "a\n", "low confidence: 0.90\n")
    line = run("a.png", "--min-confidence", "0.91", "--json", "--url", fake.url)
    assert (line.exit_code, json.loads(line.stdout)["low_confidence"]) == (3, True)
    table = run("a.png", "--min-confidence", "0.91", "--table", "--url", fake.url)
    assert (table.exit_code, "(low confidence: 0.90)" in table.stdout) == (3, True)
    fake.script.confidence = float("nan")
    assert run("a.png", "--min-confidence", "0", "--url", fake.url).exit_code == 3  # unknown
    failed = run("a.png", "none.png", "--min-confidence", "0.5", "--url", fake.url)
    assert failed.exit_code == 1  # a failure weighs more


def test_beams_and_their_options(fake: Fake, files: Path) -> None:
    options = ("--beam", "4", "--n-best", "2", "--length-penalty", "0.5", "--max-tokens", "9")
    assert run("a.png", *options, "--url", fake.url).exit_code == 0
    assert fake.script.asked[0].parameters == {
        "beam": 4,
        "n_best": 2,
        "length_penalty": "0.5",
        "max_tokens": 9,
    }


def test_attention_is_a_picture_for_each_formula(fake: Fake, files: Path) -> None:
    data = picture(files / "x.png")
    os.mkdir("sub")
    (files / "sub" / "x.png").write_bytes(data)
    fake.script.answers[data] = "x y"
    result = run("x.png", "sub/x.png", "--attention", "maps/deep", "--url", fake.url)
    assert (result.exit_code, result.stderr) == (0, "")
    made = sorted(path.name for path in (files / "maps" / "deep").iterdir())
    assert made == ["x.png-2.png", "x.png.png"]
    with Image.open(files / "maps" / "deep" / "x.png.png") as sheet:
        colours = sheet.convert("RGB").getcolors(1 << 20)
        assert colours is not None
        assert any(red > 150 > blue for _, (red, _, blue) in colours)
    assert fake.script.asked[0].parameters == {"attention": True}
    (files / "taken").write_bytes(b"")
    result = run("x.png", "--attention", "taken", "--url", fake.url)
    assert (result.exit_code, "taken" in result.stderr) == (2, True)


class Page(HTMLParser):
    """What a page refers to, and its tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def test_html_is_one_self_contained_page(fake: Fake, files: Path) -> None:
    data = picture(files / "<x>.png")
    fake.script.answers[data] = "a < b ^ { 2 }"
    fake.script.alternatives = '[{"latex": "<script>", "tokens": ["q"], "score": 0.125}]'
    names = ("<x>.png", "none.png")
    result = run(*names, "--html", "r.html", "--min-confidence", "0.95", "--url", fake.url)
    assert result.exit_code == 1
    text = (files / "r.html").read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.links) == 1
    assert page.links[0].startswith("data:image/png;base64,")
    assert page.tags.count("math") >= 1
    assert page.tags.count("script") == 1  # the page's own: an answer's is text
    assert "1 of 2 inputs were answered, 1 of them with low confidence; 1 failed." in text
    assert "There is no file none.png." in text
    assert "&lt;x&gt;.png" in text
    assert "90.0 % (low)" in text
    assert not re.search(r"https?://(?!www\.w3\.org)", text)
    result = run("a.png", "--html", "none/r.html", "--url", fake.url)
    assert (result.exit_code, "no folder none" in result.stderr) == (1, True)


def test_unreadable_files_among_good_ones(fake: Fake, files: Path) -> None:
    (files / "locked.pdf").write_bytes(locked_pdf())
    (files / "nan.json").write_text("[[[0, NaN], [1, 1]]]", encoding="utf-8")
    (files / "gone.png").symlink_to("nowhere.png")
    (files / "two.tiff").write_bytes(pages("TIFF", 2))
    fake.script.refusals[b"[[[0, NaN], [1, 1]]]"] = Refusal("INTERNAL", "[bad_ink] Not finite.")
    for number in (1, 2):  # the pages as they travel
        fake.script.answers[_page(files / "two.tiff", number)] = f"p {number}"
    result = run(".", "gone.png", "--json", "--url", fake.url)
    assert result.exit_code == 1
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    codes = {line["input"]: line.get("error", {}).get("code", line.get("latex")) for line in lines}
    assert codes == {
        **{f"{letter}.png": letter for letter in "abcde"},
        "locked.pdf": "unreadable_image",
        "nan.json": "bad_ink",
        "two.tiff#page=1": "p1",
        "two.tiff#page=2": "p2",
        "gone.png": "missing_input",
    }


def _page(path: Path, number: int) -> bytes:
    from client.inputs import read

    return read(f"{path}#page={number}")


@pytest.mark.parametrize(
    "arguments",
    [
        ("a.png", "--csv", "--json"),
        ("a.png", "--min-confidence", "1.5"),
        ("a.png", "--format", "word"),
        ("a.png", "--header", "nocolon"),
    ],
)
def test_usage_errors(arguments: tuple[str, ...], files: Path) -> None:
    result = run(*arguments)
    assert (result.exit_code, "Usage:" in result.stderr) == (2, True)
