"""``hmer-bench rivals``: stand-ins for the rivals, which nobody has to install for the tests."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from benchmarks import rival_process
from benchmarks.asking import Reply
from benchmarks.cli import main
from benchmarks.crohme import Expression
from benchmarks.in_process import Timed
from benchmarks.rival_process import IMAGE, STROKES, Rival, RivalProcess, as_input
from benchmarks.rivals import measure, table, within
from hmer.bundle import Bundle
from hmer.errors import BlankImage, InferenceFailed, MissingDependency

INK = json.dumps({"strokes": [[[0, 0], [30, 40], [60, 0]], [[80, 10], [80, 50]]]}).encode()
RIVAL = Rival("pmsh-ocr", IMAGE, ("--no-deps pmsh-ocr",), "a stand-in")
# Speaks the worker's protocol: reads "x + y" in everything, but fails on its second input.
STAND_IN = """\
import json, sys
ready = {"version": "9", "license": "MIT", "load_s": 0.5, "python": "3.11"}
print(json.dumps({**ready, "tokens": ["x", "y", "+", "\\\\lt", "{", "}"]}), flush=True)
for number, line in enumerate(sys.stdin):
    kind = list(json.loads(line))[0]
    answer = {"latex": "x+ y", "seconds": 0.25} if number != 1 else {"error": "ValueError: no"}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "worker.py"
    path.write_text(STAND_IN, encoding="utf-8")
    monkeypatch.setattr(rival_process, "_WORKER", path)
    return path


def test_a_rival_answers(stand_in: Path) -> None:
    with RivalProcess(RIVAL) as process:
        assert process.ready.tokens == {"x", "y", "+", "<", "{", "}"}
        assert process.read(INK) == (("x", "+", "y"), 0.25)
        assert process.read(INK) == (None, None)
        assert process.read(INK)[0] == ("x", "+", "y")


@pytest.mark.parametrize(
    ("worker", "error", "said"),
    [
        (
            """print('{"error": "ModuleNotFoundError: pmsh", "missing": "pmsh"}')""",
            MissingDependency,
            "is not installed .pmsh is missing.. To have it: pip install --no-deps pmsh-ocr",
        ),
        ("""print('{"error": "OSError: no", "missing": null}')""", InferenceFailed, "OSError: no"),
        ("", InferenceFailed, "ended by itself"),
    ],
)
def test_a_rival_that_does_not_start(
    stand_in: Path, worker: str, error: type[Exception], said: str
) -> None:
    stand_in.write_text(worker, encoding="utf-8")
    with pytest.raises(error, match=said):
        RivalProcess(RIVAL)


def test_an_interpreter_that_is_not_there(stand_in: Path) -> None:
    with pytest.raises(MissingDependency, match="--python"):
        RivalProcess(RIVAL, "/nowhere/python")


def test_a_rival_that_goes_away(stand_in: Path) -> None:
    first = STAND_IN.partition("for number")[0]
    stand_in.write_text(first, encoding="utf-8")
    with RivalProcess(RIVAL) as process:
        process._process.wait()
        with pytest.raises(InferenceFailed, match="ended by itself"):
            process.read(INK)


def test_what_a_rival_gets() -> None:
    strokes = as_input(Rival("x", STROKES, (), ""), INK)
    assert strokes == {"strokes": json.loads(INK)["strokes"]}
    picture = base64.b64decode(as_input(RIVAL, INK)["image"])
    decoded: Any = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert decoded[0, 0] == 255  # black on white
    assert decoded.min() == 0


def test_only_its_own_symbols_count() -> None:
    pack = [Expression(t, tuple(t.split()), b"") for t in ("x + y", "x < y", "x ^ 2", "z")]
    found = within(frozenset({"x", "y", "+", "<", "{", "}", "2"}), pack)
    assert [e.id for e in found] == ["x + y", "x < y"]


def test_both_take_turns_over_the_same_expressions(stand_in: Path) -> None:
    replies: list[Reply] = [("x", "+", "y"), ("x",), BlankImage("Blank.")]
    asked: list[Sequence[int]] = []

    def ours(order: Sequence[int]) -> Timed:
        asked.append(order)
        return Timed([0.1, 0.1, 0.1], 0.3, replies, [])

    pack = [Expression(n, ("x", "+", "y"), INK) for n in "abc"]
    with RivalProcess(RIVAL) as process:
        found = measure(process, ours, pack, 2, lambda line: None)
    assert asked == [[0, 1, 2]] * 3  # one of them does not count
    assert found["n"] == 3
    assert (found["theirs"]["exprate"], found["theirs"]["failed"]) == (1.0, 0)  # the last round's
    assert found["ours"]["exprate"] == pytest.approx(1 / 3)
    assert found["ours"]["failed"] == 1
    assert found["time_ratio"]["median"] == pytest.approx(2.5)
    assert found["theirs"]["ms"]["n"] == 2
    low, high = found["theirs"]["exprate_95"]
    assert low < 1.0 == high
    shown = table({"pmsh-ocr": found}, ["mathnote-ocr"]).markdown()
    assert "| pmsh-ocr 9 | image | 3 | 100.0 |" in shown
    assert "x 2.50 | MIT |" in shown
    assert "| mathnote-ocr | missing |" in shown


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["rivals", *map(str, arguments)])


def test_the_command(stand_in: Path, pack: Path, tiny_graphs: Bundle, tmp_path: Path) -> None:
    output = tmp_path / "rivals.json"
    result = run(
        *("--data", pack, "--rivals", "pmsh-ocr", "--bundle", tiny_graphs.folder),
        *("--rounds", "2", "--output", output, "--json"),
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert json.loads(output.read_text("utf-8")) == report
    found = report["rivals"]["pmsh-ocr"]
    assert (found["n"], found["in_pack"], found["of"]) == (1, 1, 4)  # of the pack only x + y
    assert found["theirs"]["exprate"] == 1.0
    assert "trained on CROHME" in report["notes"]


def test_a_rival_that_is_not_installed_is_a_row(
    stand_in: Path, pack: Path, tiny_graphs: Bundle
) -> None:
    stand_in.write_text("""print('{"error": "x", "missing": "mathnote_ocr"}')""", "utf-8")
    result = run("--data", pack, "--bundle", tiny_graphs.folder)
    assert result.exit_code == 0, result.output
    assert "missing" in result.output
    assert "pip install --no-deps mathnote-ocr" in result.output


def test_sentences(pack: Path, tiny_graphs: Bundle) -> None:
    result = run("--data", pack, "--rivals", "pix2tex")
    assert result.exit_code == 1
    assert "no rival 'pix2tex'; there are pmsh-ocr, mathnote-ocr" in result.stderr
    result = run("--data", "nowhere.jsonl.gz", "--bundle", tiny_graphs.folder)
    assert "There is no file nowhere.jsonl.gz" in result.stderr


def worker(setup: str, *lines: dict[str, Any]) -> list[dict[str, Any]]:
    """What the real worker says, over a rival that ``setup`` defines as ``Fake``."""
    code = (
        "import sys\nfrom benchmarks import rival_worker as w\n"
        f"{setup}\nw.RIVALS['numpy'] = Fake\nsys.argv = ['w', 'numpy']\nw.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input="".join(json.dumps(line) + "\n" for line in lines),
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[1],
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


FAKE = """
class Fake:
    tokens = ["x"]
    def prepare(self, item):
        print("chatter")
        return item["strokes"]
    def read(self, prepared):
        return "x" * (4 // len(prepared))
"""


def test_the_worker() -> None:
    ready, answer, failed, again = worker(
        FAKE, {"strokes": [1]}, {"strokes": []}, {"strokes": [1, 2]}
    )
    assert ready["version"] == np.__version__  # the distribution's own
    assert ready["tokens"] == ["x"]
    assert answer["latex"] == "xxxx"
    assert answer["seconds"] >= 0
    assert failed == {"error": "ZeroDivisionError: integer division or modulo by zero"}
    assert again["latex"] == "xx"


def test_the_worker_without_its_rival() -> None:
    missing = "class Fake:\n    def __init__(self):\n        import nothing_like_it\n"
    (said,) = worker(missing)
    assert said["missing"] == "nothing_like_it"
