"""``hmer-bench accuracy``: the report, and what counts as a failure of the set-up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.accuracy import Run, agreement
from benchmarks.cli import main
from benchmarks.crohme import STROKES, WAP_IMAGES, read_pack
from hmer.bundle import Bundle
from hmer.errors import BlankImage, ImageTooLarge
from hmer.recognizer import LocalRecognizer, Recognition
from hmer.score import compare
from model_repository.server import EmbeddedServer
from tests.bench_fixtures import Fake, run, write_pack


def test_the_report(fake: Fake, pack: Path, tmp_path: Path) -> None:
    out = tmp_path / "predictions.json"
    result = run("--data", pack, "--url", fake.url, "--json", "--predictions", out)
    assert (result.exit_code, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert (report["data"], report["label_set"], report["n"]) == ("test_x.jsonl.gz", "norm", 4)
    assert report["limits"] == "dropped by the canonical form"
    server = report["server"]
    assert (server["correct"], server["exprate"], server["within_1"]) == (2, 0.5, 0.75)
    assert server["token_error_rate"] == pytest.approx((1 + 1) / (3 + 7 + 5 + 1))
    assert (server["missing"], server["errors"]) == (1, {"blank_image": 1})
    assert server["by_structure"]["fraction"]["exprate"] == 0.0
    assert server["by_length"]["1-5"]["n"] == 3
    assert [(c["truth"], c["prediction"], c["kind"]) for c in server["confusions"]] == [
        ("b", "6", "look-alike")
    ]
    assert server["faults"]["no prediction"] == {"any": 1, "only": 1}
    assert (report["decoding"], report["beam"], report["ensemble_size"]) == ("greedy", 1, 1)
    assert report["selection"] == "not told"  # a server does not tell

    entries = json.loads(out.read_text(encoding="utf-8"))
    assert [(e["id"], e["correct"]) for e in entries] == [
        ("a", True), ("b", False), ("c", True), ("d", False),
    ]  # fmt: skip
    assert entries[1]["gt"] == r"\frac { a } { b }"
    assert entries[1]["pred"] == r"\frac { a } { 6 }"
    assert entries[2]["pred"] == "x ^ { 2 }"
    assert entries[3]["pred"] is None
    assert entries[3]["error"]["code"] == "blank_image"


def test_the_table_names_what_was_measured(fake: Fake, pack: Path) -> None:
    result = run("--data", pack, "--url", fake.url)
    assert result.exit_code == 0
    head = result.stdout.splitlines()[0]
    for words in ("n = 4", "label set norm,", "\\limits dropped", "input strokes", "greedy"):
        assert words in head
    rows = {line.split()[0]: line.split() for line in result.stdout.splitlines() if line.strip()}
    assert rows["all"][1:6] == ["4", "50.00", "15.0-85.0", "75.00", "75.00"]
    assert "1 blank_image" in result.stdout


def test_the_other_label_set(fake: Fake, pack: Path) -> None:
    result = run("--data", pack, "--url", fake.url, "--label", "norm_wap", "--json")
    assert json.loads(result.stdout)["server"]["correct"] == 1


def test_limit_and_ids(fake: Fake, pack: Path) -> None:
    arguments = ("--data", pack, "--url", fake.url, "--json")
    assert json.loads(run(*arguments, "--limit", "1").stdout)["server"]["exprate"] == 1.0
    assert json.loads(run(*arguments, "--ids", "b, d").stdout)["n"] == 2
    result = run(*arguments, "--ids", "z")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: The pack has no expression z")


def test_a_server_that_is_down_gives_no_score(pack: Path) -> None:
    result = run("--data", pack, "--url", "127.0.0.1:9", "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: No server answers at 127.0.0.1:9")


def test_something_to_score_is_needed(pack: Path) -> None:
    result = run("--data", pack)
    assert result.exit_code == 2
    assert "--url, --bundle, or both" in result.stderr


def test_a_bundle_that_is_missing(pack: Path, tmp_path: Path) -> None:
    result = run("--data", pack, "--bundle", tmp_path)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: There is no bundle.json")


def test_predictions_that_cannot_be_written(fake: Fake, pack: Path, tmp_path: Path) -> None:
    result = run("--data", pack, "--url", fake.url, "--predictions", tmp_path / "no" / "p.json")
    assert result.exit_code == 1
    assert "cannot be written" in result.stderr


def test_agreement_is_of_tokens_and_of_errors() -> None:
    def made(*outcomes: Recognition | BlankImage | ImageTooLarge) -> Run:
        scored = [compare(str(i), ["x"], ["x"]) for i in range(len(outcomes))]
        return Run("server", "here", list(outcomes), scored, 1.0)

    x, y = Recognition("x", ("x",), 0.5), Recognition("y", ("y",), 0.5)
    close = Recognition("x", ("x",), 0.4999)
    a = made(x, x, BlankImage("1"), BlankImage("1"), x)
    b = made(close, y, BlankImage("2"), ImageTooLarge("2"), BlankImage("1"))
    assert agreement(a, b) == {"equal": 2, "n": 5, "differing": ["1", "3", "4"]}


def test_help_has_an_example() -> None:
    assert "hmer-bench accuracy --data" in CliRunner().invoke(main, ["accuracy", "--help"]).stdout


@pytest.fixture
def ink_pack(tmp_path: Path) -> Path:
    """Strokes that the tiny network answers."""
    records = []
    for index in range(6):
        zigzag = [[40 * x, 60 * (x * (index + 2) % 3)] for x in range(5 + index)]
        records.append({"id": f"e{index}", "norm": "x", "strokes": [zigzag, [[0, 0], [90, 110]]]})
    return write_pack(tmp_path, records)


def test_in_process(tiny_graphs: Bundle, ink_pack: Path, tmp_path: Path) -> None:
    out = tmp_path / "predictions.json"
    with LocalRecognizer(tiny_graphs.folder) as recognizer:
        expected = [recognizer.recognize(e.data).tokens for e in read_pack(ink_pack)]
    records = [
        {"id": e.id, "norm": " ".join(tokens), "strokes": json.loads(e.data)["strokes"]}
        for e, tokens in zip(read_pack(ink_pack), expected, strict=True)
    ]
    truths = write_pack(tmp_path, records)  # the network's own answers as truth
    result = run("--data", truths, "--bundle", tiny_graphs.folder, "--json", "--predictions", out)
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)["in_process"]
    # its random answers are right wherever they can be parsed
    assert figures["correct"] == figures["n"] - figures["unparsable"]
    assert figures["token_error_rate"] == 0.0
    for entry, tokens in zip(json.loads(out.read_text("utf-8")), expected, strict=True):
        assert entry["gt"].split() == (entry["pred"].split() if entry["correct"] else [*tokens])


@pytest.mark.e2e
@pytest.mark.parametrize("fixture", ["server", "shipped_server"])
@pytest.mark.parametrize(("form", "wire"), [(STROKES, "grpc"), (WAP_IMAGES, "http")])
def test_40_expressions_of_crohme(
    request: pytest.FixtureRequest, crohme: Path, fixture: str, form: str, wire: str
) -> None:
    """Every one is answered, and the server answers as the bundle does in this process."""
    data = crohme / "test_2014.jsonl.gz"
    server: EmbeddedServer = request.getfixturevalue(fixture)
    bundle = server.repository.folder / "bundle"
    url = getattr(server.endpoints, wire)
    result = run(
        "--data", data, "--input", form, "--limit", "40", "--url", url, "--bundle", bundle, "--json"
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["agreement"] == {"equal": 40, "n": 40, "differing": []}
    assert (report["server"]["missing"], report["server"]["errors"]) == (0, {})
    if fixture == "shipped_server":
        assert report["server"]["correct"] > 0


@pytest.mark.e2e
def test_server_and_process_agree(
    server: EmbeddedServer, tiny_graphs: Bundle, ink_pack: Path
) -> None:
    for url in (server.endpoints.grpc, server.endpoints.http):
        result = run("--data", ink_pack, "--url", url, "--bundle", tiny_graphs.folder, "--json")
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        assert report["agreement"] == {"equal": 6, "n": 6, "differing": []}
        assert report["server"]["token_error_rate"] == report["in_process"]["token_error_rate"]
