"""``hmer-client recognize``: outputs, marks, pictures, pages; and batches that are broken off."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image, ImageDraw

from client.cli import main
from tests.client_fixtures import locked_pdf, pages
from tests.fake_server import SERVERS, Asked, Refusal, Script

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Fake:
    url: str
    script: Script


@pytest.fixture
def fake() -> Iterator[Fake]:
    script = Script(confidence=0.9)
    with SERVERS["http"](script) as url:
        yield Fake(url, script)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder with a.png ... e.png, their letters as content."""
    for letter in "abcde":
        (tmp_path / f"{letter}.png").write_bytes(letter.encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, data: bytes = b"") -> Result:
    return CliRunner().invoke(main, ["recognize", *arguments], input=data)


def picture(path: Path) -> bytes:
    """A picture with a cross, written to ``path``."""
    image = Image.new("L", (96, 64), 255)
    pen = ImageDraw.Draw(image)
    pen.line((20, 10, 76, 54), 0, 4)
    pen.line((76, 10, 20, 54), 0, 4)
    image.save(path)
    return path.read_bytes()


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


def test_resume_asks_only_for_what_is_missing(fake: Fake, files: Path) -> None:
    fake.script.refusals[b"b"] = Refusal("INTERNAL", "[inference_failed] Not today.")
    first = run("a.png", "b.png", "--resume", "kept.jsonl", "--url", fake.url)
    assert (first.exit_code, first.stdout) == (1, "a.png\ta\n")
    kept = [json.loads(line) for line in Path("kept.jsonl").read_text("utf-8").splitlines()]
    assert [line["input"] for line in kept] == ["a.png"]
    del fake.script.refusals[b"b"]
    fake.script.asked.clear()
    again = run("a.png", "b.png", "--resume", "kept.jsonl", "--url", fake.url)
    assert (again.exit_code, again.stdout) == (0, "a.png\ta\nb.png\tb\n")
    assert [asked.data for asked in fake.script.asked] == [b"b"]
    with Path("kept.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"input": "c.png", "lat')  # killed while writing
    third = run("a.png", "c.png", "--json", "--resume", "kept.jsonl", "--url", fake.url)
    assert [json.loads(line)["latex"] for line in third.stdout.splitlines()] == ["a", "c"]
    assert len(Path("kept.jsonl").read_text("utf-8").splitlines()) == 3


def test_resume_asks_again_for_another_question_or_file(fake: Fake, files: Path) -> None:
    options = ("--resume", "kept.jsonl", "--url", fake.url)
    run("a.png", *options)
    run("a.png", "--beam", "3", *options)
    assert len(fake.script.asked) == 2
    (files / "a.png").write_bytes(b"new")
    assert run("a.png", "--beam", "3", *options).stdout == "new\n"
    assert run("-", *options, data=b"x").stdout == "x\n"
    assert run("-", *options, data=b"y").stdout == "y\n"


def test_resume_from_the_output_of_json(fake: Fake, files: Path) -> None:
    out = run("a.png", "none.png", "--json", "--url", fake.url).stdout
    Path("out.jsonl").write_text(out, encoding="utf-8")
    fake.script.asked.clear()
    assert run("a.png", "b.png", "--resume", "out.jsonl", "--url", fake.url).exit_code == 0
    assert [asked.data for asked in fake.script.asked] == [b"b"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_a_sentence(
    fake: Fake, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.journal.Journal._read", lambda self: None)  # it has no end
    result = run("a.png", "b.png", "--resume", "/dev/full", "--url", fake.url)
    assert result.exit_code == 1
    assert "error: /dev/full cannot be written (No space left on device)." in result.stderr
    assert result.exception is None or isinstance(result.exception, SystemExit)


def test_kept_answers_without_a_picture_of_their_attention_are_counted(
    fake: Fake, files: Path
) -> None:
    data = picture(files / "a.png")
    fake.script.answers[data] = "x y"
    options = ("--attention", "maps", "--resume", "kept.jsonl", "--url", fake.url)
    assert run("a.png", *options).stderr == ""
    assert run("a.png", *options).stderr == ""
    again = run("a.png", *options[2:], "--attention", "elsewhere")
    assert "1 answers of kept.jsonl have no picture of their attention there" in again.stderr


@pytest.mark.parametrize("command", ["recognize", "stream"])
def test_ctrl_c_before_anything_is_asked(
    command: str, fake: Fake, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(arguments: object) -> list[object]:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"client.{command}_cli.items_of", interrupted)
    result = CliRunner().invoke(main, [command, "a.png", "--url", fake.url])
    assert (result.exit_code, result.stderr.startswith("error: Interrupted before")) == (130, True)


@pytest.mark.parametrize("content", ["hello\n", "[1]\n", '{"input": "a.png"}\n', "\xff\n"])
def test_a_file_that_nothing_can_go_on_from(fake: Fake, files: Path, content: str) -> None:
    Path("kept.jsonl").write_text(content, encoding="latin-1")
    result = run("a.png", "--resume", "kept.jsonl", "--url", fake.url)
    assert result.exit_code == 1
    assert "Line 1 of kept.jsonl is not an answer" in result.stderr
    assert Path("kept.jsonl").read_text(encoding="latin-1") == content
    assert run("a.png", "--resume", ".", "--url", fake.url).exit_code == 2


def test_a_server_that_dies_in_the_middle(files: Path) -> None:
    script = Script()
    died = threading.Event()

    def die(asked: Asked) -> None:
        if asked.data == b"c":
            died.set()
            raise Refusal("UNAVAILABLE", "gone")
        if died.is_set():
            raise Refusal("UNAVAILABLE", "gone")

    script.hold = die
    options = ("--concurrency", "1", "--resume", "kept.jsonl")
    names = [f"{letter}.png" for letter in "abcde"]
    with SERVERS["grpc"](script) as url:
        result = run(*names, *options, "--url", url, "--timeout", "3")
        assert result.exit_code == 1
        assert result.stdout == "a.png\ta\nb.png\tb\n"
        for name in ("c.png", "d.png", "e.png"):
            assert f"error: {name}: No server answers at {url}" in result.stderr
        assert result.stderr.endswith(
            "error: 3 of 5 inputs failed. The same command goes on from kept.jsonl.\n"
        )
        script.hold = lambda asked: None
        script.asked.clear()
        result = run(*names, *options, "--url", url)
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 5)
    assert [asked.data for asked in script.asked] == [b"c", b"d", b"e"]


@pytest.mark.parametrize("wire", ["grpc", "http"])
def test_ctrl_c_leaves_what_was_done(wire: str, files: Path) -> None:
    script = Script()
    held, release = threading.Event(), threading.Event()

    def hold(asked: Asked) -> None:
        if asked.data == b"c":
            held.set()
            release.wait(30.0)

    script.hold = hold
    # A shell's background job ignores Ctrl-C, and so would what it starts.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"sys.path.insert(0, {str(ROOT)!r}); from client.cli import main; main()"
    )
    names = [f"{letter}.png" for letter in "abcde"]
    with SERVERS[wire](script) as url:
        command = [sys.executable, "-c", code, "recognize", *names, "--resume", "kept.jsonl"]
        with subprocess.Popen(
            [*command, "--concurrency", "1", "--url", url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        ) as process:
            assert held.wait(60.0)
            deadline = time.monotonic() + 30.0
            while not _lines("kept.jsonl", 2) and time.monotonic() < deadline:
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            out, error = process.communicate(timeout=60)
            release.set()
    assert (process.returncode, out) == (130, "a.png\ta\nb.png\tb\n")
    assert error == (
        "error: Interrupted: 2 of 5 were answered. The same command goes on from kept.jsonl.\n"
    )


def _lines(name: str, count: int) -> bool:
    path = Path(name)
    return path.exists() and path.read_text("utf-8").count("\n") >= count


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
