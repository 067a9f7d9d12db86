"""Batches that are broken off, and go on: ``--resume``, Ctrl-C, a server that dies, a full disk."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from client.cli import main
from tests.batch_fixtures import Fake, fake, files, picture, run
from tests.fake_server import SERVERS, Asked, Refusal, Script

ROOT = Path(__file__).resolve().parents[1]
__all__ = ["fake", "files"]  # fixtures


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
