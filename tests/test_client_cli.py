"""``hmer-client``: what is printed where, and the exit codes."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from client.cli import main
from hmer.tables import render_table
from tests.fake_server import SERVERS, Refusal, Script


@dataclass
class Fake:
    url: str
    script: Script


@pytest.fixture(params=["grpc", "http"])
def fake(request: pytest.FixtureRequest) -> Iterator[Fake]:
    script = Script(refusals={b"blank": Refusal("INTERNAL", "[blank_image] The picture is blank.")})
    with SERVERS[request.param](script) as url:
        yield Fake(url, script)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder with a.png, b.png (their LaTeX as content), blank.png and empty.png."""
    for name in ("a", "b", "blank"):
        (tmp_path / f"{name}.png").write_bytes(name.encode())
    (tmp_path / "empty.png").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, data: bytes = b"") -> Result:
    return CliRunner().invoke(main, arguments, input=data)


def test_a_single_file_gives_only_its_latex(fake: Fake, files: Path) -> None:
    result = run("recognize", "a.png", "--url", fake.url)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "a\n", "")


def test_several_files_give_a_line_each(fake: Fake, files: Path) -> None:
    result = run("recognize", "b.png", "a.png", "--url", fake.url)
    assert (result.exit_code, result.stdout) == (0, "b.png\tb\na.png\ta\n")


def test_standard_input(fake: Fake) -> None:
    result = run("recognize", "-", "--url", fake.url, data=b"xyz")
    assert (result.exit_code, result.stdout) == (0, "xyz\n")


def test_the_url_may_come_from_the_environment(
    fake: Fake, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HMER_URL", fake.url)
    assert run("recognize", "a.png").stdout == "a\n"


def test_a_failing_file_among_others(fake: Fake, files: Path) -> None:
    result = run("recognize", "a.png", "blank.png", "none.png", "b.png", "--url", fake.url)
    assert result.exit_code == 1
    assert result.stdout == "a.png\ta\nb.png\tb\n"
    assert result.stderr.splitlines() == [
        "error: blank.png: The picture is blank.",
        "error: There is no file none.png.",
        "error: 2 of 4 inputs failed.",
    ]


def test_a_single_failing_file(fake: Fake, files: Path) -> None:
    result = run("recognize", "empty.png", "--url", fake.url)
    assert result.exit_code == 1
    assert (result.stdout, result.stderr) == ("", "error: empty.png is empty (0 bytes).\n")


def fake_ids(fake: Fake) -> dict[str, str]:
    """The ids that the server saw, by their pictures' bytes."""
    return {asked.data.decode(): asked.id for asked in fake.script.asked}


def test_json_lines(fake: Fake, files: Path) -> None:
    fake.script.alternatives = '[{"latex": "c", "tokens": ["c"], "score": 0.125}]'
    result = run("recognize", "a.png", "blank.png", "b.png", "--json", "--url", fake.url)
    assert result.exit_code == 1
    a, blank, b = (json.loads(line) for line in result.stdout.splitlines())
    assert a.pop("ms") > 0
    assert a.pop("request_id") == fake_ids(fake)["a"]
    assert blank.pop("request_id") == fake_ids(fake)["blank"]
    assert a == {
        "input": "a.png",
        "latex": "a",
        "tokens": ["a"],
        "score": 0.5,
        "confidence": None,
        "alternatives": [{"latex": "c", "tokens": ["c"], "score": 0.125}],
    }
    assert blank == {
        "input": "blank.png",
        "error": {"code": "blank_image", "message": "The picture is blank."},
    }
    assert b["input"] == "b.png"


def test_a_single_file_is_a_json_line_too(fake: Fake, files: Path) -> None:
    result = run("recognize", "a.png", "--json", "--url", fake.url)
    assert (result.exit_code, json.loads(result.stdout)["latex"]) == (0, "a")


def test_json_of_a_server_that_is_down(files: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: refused
        url = f"127.0.0.1:{unused.getsockname()[1]}"
        result = run("recognize", "a.png", "b.png", "--json", "--url", url)
    assert result.exit_code == 1
    for line, name in zip(result.stdout.splitlines(), ("a.png", "b.png"), strict=True):
        document = json.loads(line)
        assert document["input"] == name
        assert document["error"]["code"] == "server_unavailable"
        assert url in document["error"]["message"]


def test_model_and_version(fake: Fake, files: Path) -> None:
    result = run("recognize", "a.png", "--url", fake.url, "--model", "nosuch")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no model 'nosuch'" in result.stderr
    result = run("recognize", "a.png", "--url", fake.url, "--model-version", "7")
    assert "no version 7" in result.stderr
    assert run("recognize", "a.png", "--url", fake.url, "--model-version", "1").exit_code == 0


def test_table(fake: Fake, files: Path) -> None:
    result = run("recognize", "a.png", "blank.png", "--table", "--url", fake.url)
    assert result.exit_code == 1
    titles, _, a, blank = result.stdout.splitlines()
    assert titles.split() == ["picture", "LaTeX", "score", "ms"]
    assert a.split()[:3] == ["a.png", "a", "0.500"]
    assert float(a.split()[3]) > 0
    assert blank.split() == ["blank.png", "(blank_image)"]


def test_table_with_truth(fake: Fake, files: Path) -> None:
    (files / "x.png").write_bytes(rb"x^2")  # another way to write the truth
    (files / "samples.json").write_text(
        json.dumps(
            [
                {"name": "x", "files": ["x.png", "x.inkml"], "latex": "x^{2}"},
                {"name": "b", "files": ["b.png"], "latex": "6"},
            ]
        ),
        encoding="utf-8",
    )
    names = ("x.png", "b.png", "a.png")
    result = run("recognize", *names, "--table", "--expect", "samples.json", "--url", fake.url)
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    assert [row[4:] for row in rows[2:5]] == [["equal"], ["6"], []]
    assert result.stdout.splitlines()[-1] == "1 of 2 equal the truth."


@pytest.mark.parametrize("content", ["{", "[1]", '{"a": 1}', '[{"files": ["a.png"]}]'])
def test_a_file_of_truths_that_is_none(files: Path, content: str) -> None:
    (files / "samples.json").write_text(content, encoding="utf-8")
    result = run("recognize", "a.png", "--table", "--expect", "samples.json", "--url", "x:1")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: samples.json does not tell true LaTeX")


@pytest.mark.parametrize(
    "arguments",
    [
        ("recognize",),
        ("recognize", "a.png", "--json", "--table"),
        ("recognize", "a.png", "--expect", "samples.json"),
        ("recognize", "a.png", "--timeout", "0"),
        ("recognize", "a.png", "--concurrency", "0"),
        ("recognize", "a.png", "--model-version", "0"),
    ],
)
def test_usage_errors(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


def test_a_malformed_url_is_a_sentence(files: Path) -> None:
    result = run("recognize", "a.png", "--url", "ftp://x")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: 'ftp://x' is not the address of a server.")


def test_health(fake: Fake) -> None:
    result = run("health", "--url", fake.url)
    assert result.exit_code == 0
    assert "triton 2.51.0" in result.stdout
    assert ["recognize", "1", "READY"] in [line.split() for line in result.stdout.splitlines()]
    document = json.loads(run("health", "--url", fake.url, "--json").stdout)
    assert document["live"] is document["ready"] is document["serving"] is True
    assert document["models"] == [
        {"name": "recognize", "version": "1", "state": "READY", "reason": ""}
    ]


def test_health_of_a_server_that_is_not_ready(fake: Fake) -> None:
    fake.script.ready = False
    result = run("health", "--url", fake.url)
    assert result.exit_code == 1
    assert "no bundle" in result.stdout
    assert "is not ready" in result.stderr
    result = run("health", "--url", fake.url, "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert (document["live"], document["ready"]) == (True, False)
    assert document["error"]["code"] == "server_unavailable"


def test_health_of_a_missing_model(fake: Fake) -> None:
    result = run("health", "--url", fake.url, "--model", "other")
    assert result.exit_code == 1
    assert "no model 'other' that is ready" in result.stderr


def test_health_of_a_server_that_is_down() -> None:
    result = run("health", "--url", "http://127.0.0.1:9", "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["live"] is False
    assert document["error"]["code"] == "server_unavailable"
    assert result.stderr.startswith("error: No server answers at http://127.0.0.1:9")


@pytest.mark.parametrize("command", ["recognize", "health"])
def test_help_has_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"hmer-client {command}" in result.stdout


def test_a_tables_columns_are_aligned() -> None:
    table = render_table(("name", "n"), [("a", "10"), ("longer", "9")], right={1})
    assert table.splitlines() == ["name     n", "------  --", "a       10", "longer   9"]


def test_beams_and_their_alternatives(fake: Fake, files: Path) -> None:
    fake.script.alternatives = json.dumps([{"latex": "q", "tokens": ["q"], "score": 0.125}])
    options = ("--url", fake.url, "--beam", "4", "--n-best", "2")
    assert run("recognize", "a.png", *options).stdout == "a\n\t0.125\tq\n"
    table = run("recognize", "a.png", "b.png", "--table", *options).stdout.splitlines()
    assert [line.split() for line in table[3:5]] == [
        ["q", "0.125"],
        ["b.png", "b", *table[4].split()[2:]],
    ]
    document = json.loads(run("recognize", "a.png", "--json", *options).stdout)
    assert document["alternatives"] == [{"latex": "q", "tokens": ["q"], "score": 0.125}]
    assert all(asked.parameters == {"beam": 4, "n_best": 2} for asked in fake.script.asked)


def test_more_answers_than_hypotheses_are_refused(fake: Fake, files: Path) -> None:
    for command in ("recognize", "stream"):
        result = run(command, "a.png", "--url", fake.url, "--beam", "2", "--n-best", "3")
        assert (result.exit_code, "needs --beam 3" in result.stderr) == (2, True)
    assert fake.script.asked == []


def test_answers_without_a_beam_are_those_of_one_so_wide(fake: Fake, files: Path) -> None:
    for options in (("--n-best", "3"), ("--n-best", "1"), ()):
        assert run("recognize", "a.png", "--url", fake.url, *options).exit_code == 0
    assert [asked.parameters for asked in fake.script.asked] == [
        {"beam": 3, "n_best": 3},
        {"n_best": 1},
        {},
    ]
