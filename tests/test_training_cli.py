"""``hmer-train`` as its users type it: the owner's command line, every source, bad options."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.handwriting import write_pack
from tests.test_sources import draw
from training.checkpoint import load_checkpoint
from training.cli import main

TINY = ("--widths", "16,16,16,16", "--steps", "4", "--threads", "1")


def call(arguments: Sequence[str | Path]) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def good(arguments: Sequence[str | Path]) -> Result:
    result = call(arguments)
    assert result.exit_code == 0, result.output
    return result


def document(result: Result) -> dict[str, object]:
    answer = json.loads(result.stdout.splitlines()[-1])
    assert isinstance(answer, dict)
    return answer


@pytest.fixture
def owners(tmp_path: Path) -> Path:
    """The owner's layout, with one entry of each list that cannot be used."""
    data = tmp_path / "data"
    texts = [f"{a}{o}{b}" for a in "01" for o in "+-" for b in "01"]
    for part, count in (("train", 8), ("eval", 3)):
        rows = []
        for index, text in enumerate(texts[:count]):
            draw(data / "png" / f"{part}{index}.png", text, index)
            rows.append({"images": f"{part}{index}.png", "labels": f"${text}$"})
        rows.insert(1, {"images": "gone.png", "labels": "1"})
        (data / f"{part}.json").write_text(json.dumps(rows), encoding="utf-8")
    return data


def owners_line(task: str, data: Path, run: Path, *more: str) -> list[str]:
    return [
        "--task", task, "--data_dir", str(data), "--image_dir", str(data / "png"),
        "--batch_size", "8", "--sequence_length", "20", "--save_dir", str(run),
        "--patience", "10", *more,
    ]  # fmt: skip


def test_the_owners_command_lines(tmp_path: Path, owners: Path) -> None:
    run = tmp_path / "run"
    trained = good(owners_line("train", owners, run, *TINY, "--json"))
    answer = document(trained)
    assert (answer["step"], answer["train"], answer["held_out"]) == (4, 8, 3)
    sources = answer["sources"]
    assert [s["skipped"] for s in sources] == [{"missing image": 1}] * 2  # type: ignore
    assert f"{owners / 'train.json'}, entry 2" in trained.stderr
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [row for row in map(json.loads, lines) if row["kind"] == "step"]
    assert len(steps) == 4
    # Pictures have no segmentation: the auxiliary losses are nothing.
    assert {(row["attention"], row["symbols"]) for row in steps} == {(0.0, 0.0)}

    scored = good(owners_line("eval", owners, run))
    rows = json.loads((run / "predictions.json").read_text(encoding="utf-8"))
    assert [(row["id"], row["gt"]) for row in rows] == [
        ("eval0", "0 + 0"), ("eval1", "0 + 1"), ("eval2", "0 - 0"),
    ]  # fmt: skip
    assert all(set(row) == {"id", "gt", "pred"} for row in rows)
    assert "3 expressions" in scored.stdout
    assert "missing image" in scored.stderr


def test_with_task_patience_counts_epochs(
    tmp_path: Path, owners: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.build.LEAST_BETWEEN", 1)
    line = owners_line("train", owners, tmp_path / "a", *TINY)
    good(line)
    good(["train", *line[2 : -len(TINY) - 4], "--save-dir", str(tmp_path / "b"), *TINY])
    found = [(tmp_path / run / "metrics.jsonl").read_text(encoding="utf-8") for run in "ab"]
    assert [text.count('"held_out"') for text in found][1] == 1
    assert found[0].count('"held_out"') > 1


def test_patience_ends_the_owners_run(tmp_path: Path, owners: Path) -> None:
    more = (*TINY[:2], "--learning_rate", "0", "--evaluate-every", "1", "--patience", "2")
    answer = document(good(owners_line("train", owners, tmp_path / "run", *more, "--json")))
    assert answer["step"] == 3


def test_a_picture_run_is_resumed(tmp_path: Path, owners: Path) -> None:
    good(owners_line("train", owners, tmp_path / "run", *TINY))
    more = owners_line("train", owners, tmp_path / "run", *TINY[:2], "--steps", "6", "--json")
    result = good(more)
    assert "Going on at step 5" in result.stderr
    assert document(result)["step"] == 6


@pytest.mark.parametrize(
    "start",
    [
        ["train"], ["--task", "train"], ["--task=train"], ["train", "--task", "train"],
    ],
)  # fmt: skip
def test_underscores_and_hyphens_are_alike(tmp_path: Path, start: list[str]) -> None:
    pack = write_pack(tmp_path / "train.jsonl", 16)
    run = tmp_path / "run_a"
    options = ["--data-dir", pack, "--save_dir", run, "--held_out", "0.3", "--batch_size=4",
               "--evaluate-every", "1", "--widths", "16,16,16,16", "--steps", "1"]  # fmt: skip
    good([*start, *options])
    assert (run / "best" / "bundle.json").is_file()


def test_the_task_may_stand_last(tmp_path: Path) -> None:
    result = call(["--data", tmp_path, "--save-dir", tmp_path / "run", "--task", "train"])
    assert result.exit_code == 1
    assert "is empty" in result.stderr or "These are understood" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data_dir", "x"], ["train or eval"]),
        (["--task", "test"], ["train or eval", "'test'"]),
        (["--task"], ["train or eval"]),
        (["eval", "--task", "train"], ["Give one of them"]),
        (["trian"], ["trian"]),
        (["train", "--data", "x", "--save-dir", "y", "--steeps", "3"], ["--steeps", "--steps"]),
        (["train", "--data", "x"], ["--save-dir"]),
        (["train", "--data", "x", "--save-dir", "y", "--batch-size", "0"], ["--batch-size"]),
        (["train", "--data", "x", "--save-dir", "y", "--precision", "int3"], ["bf16"]),
    ],
)
def test_mistyped_command_lines(arguments: list[str], words: list[str]) -> None:
    result = call(arguments)
    assert result.exit_code == 2
    assert all(word in result.stderr for word in words), result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--data", "nowhere", "--save-dir", "run"], ["nowhere", "train.json"]),
        (["eval", "--data", "nowhere"], ["CHECKPOINT", "--save-dir"]),
        (["train", "--data", "nowhere", "--save-dir", "run", "--zoom", "2,1"], ["--zoom"]),
        (["train", "--data", "nowhere", "--save-dir", "run", "--zoom", "wide"], ["0.65,1.15"]),
        (["eval", "--data", "x", "--save-dir", "nowhere"], ["bundle.json", "best"]),
    ],
)
def test_errors_are_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert all(word in result.stderr for word in words), result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("command", [[], ["train"], ["eval"]])
def test_help_has_an_example(command: list[str]) -> None:
    result = good([*command, "--help"])
    assert "hmer-train " in result.stdout.partition("Options")[0] + result.stdout[-400:]


def test_strict_stops_at_the_entry(tmp_path: Path, owners: Path) -> None:
    for task in ("train", "eval"):
        if task == "eval":
            good(owners_line("train", owners, tmp_path / "run", *TINY))
        result = call(owners_line(task, owners, tmp_path / "run", "--strict"))
        assert result.exit_code == 1
        assert f"{task}.json, entry 2: there is no picture gone.png" in result.stderr


def test_another_vocabulary(tmp_path: Path, owners: Path) -> None:
    """New tokens: refused where a run goes on, skipped and named where weights are reused."""
    run = tmp_path / "run"
    good(owners_line("train", owners, run, *TINY))
    rows = json.loads((owners / "train.json").read_text(encoding="utf-8"))
    rows[0]["labels"] = "1+\\pi"
    (owners / "train.json").write_text(json.dumps(rows), encoding="utf-8")
    result = call(owners_line("train", owners, run, *TINY))
    assert result.exit_code == 1
    assert "another vocabulary" in result.stderr
    assert f"'\\\\pi' first ({owners / 'train.json'}, entry 1)" in result.stderr

    best = run / "best"
    other = good(owners_line("train", owners, tmp_path / "b", *TINY, "--init-from", str(best)))
    assert "1 unknown token" in other.stderr
    assert f"{owners / 'train.json'}, entry 1" in other.stderr
    bundle, _ = load_checkpoint(tmp_path / "b" / "best")
    assert bundle.vocabulary.fingerprint == load_checkpoint(best)[0].vocabulary.fingerprint

    for row in rows:
        row["labels"] = "\\alpha"
    (owners / "eval.json").write_text(json.dumps(rows), encoding="utf-8")
    result = call(owners_line("eval", owners, run))
    assert result.exit_code == 1
    assert "can write none of the" in result.stderr
    assert "entry 1" in result.stderr


def test_eval_says_when_a_folder_has_no_part_for_it(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "train.jsonl", 16)
    run = tmp_path / "run"
    good(["train", "--data", tmp_path, "--save-dir", run, "--held-out", "0.3", *TINY])
    result = good(["eval", run / "best", "--data", tmp_path, "--sequence-length", "5", "--json"])
    assert "no part for evaluation" in result.stderr
    answer = document(result)
    assert answer["n"] == 16
    assert answer["predictions"] is None
    quiet = good(["eval", run / "best", "--data", pack, "--limit", "3", "--sequence-length", "5"])
    assert "no part for evaluation" not in quiet.stderr
    assert "3 expressions" in quiet.stdout


def test_nothing_held_out_is_said(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "train.jsonl", 4)
    more = ["--save-dir", tmp_path / "run", "--held-out", "0", *TINY[:2], "--steps", "1"]
    assert "Nothing is held out" in good(["train", "--data", pack, *more]).stderr


def test_profile_prints_and_ends(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "train.jsonl", 16)
    run = tmp_path / "run"
    line = ["train", "--data", pack, "--save-dir", run, "--profile", "2", *TINY]
    assert "images/s" in good(line).stdout
    answer = document(good([*line, "--json"]))
    assert answer["steps"] == 2
    assert not (run / "state.safetensors").exists()
