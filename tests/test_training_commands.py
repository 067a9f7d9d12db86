"""hmer-train as a process: killed, stopped, started from a checkpoint, scored."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from tests.handwriting import write_pack
from tests.training_fixtures import curve
from training.checkpoint import load_checkpoint
from training.cli import main


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pack(tmp_path_factory.mktemp("data") / "train.jsonl", 32)


def command(pack: Path, folder: Path, *more: str) -> list[str]:
    return [
        "train", "--data", str(pack), "--save-dir", str(folder), "--widths", "4,4,8,8",
        "--held-out", "0.3", "--batch-size", "6", "--save-every", "2", *more,
    ]  # fmt: skip


def test_a_run_killed_by_signal_9_goes_on(tmp_path: Path, pack: Path) -> None:
    folder = tmp_path / "run"
    call = [sys.executable, "-m", "training", *command(pack, folder, "--steps", "100000")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(call, stdout=subprocess.DEVNULL, env=environment) as process:
        deadline = time.monotonic() + 60
        while not (folder / "state.safetensors").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    state = folder / "state.safetensors"
    assert state.exists()
    before = max(curve(folder))
    result = CliRunner().invoke(
        main, command(pack, folder, "--steps", str(before + 3), "--json"), catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout.splitlines()[-1])
    assert answer["step"] == before + 3
    bundle, _ = load_checkpoint(folder / "best")
    assert bundle.details["training"]["step"] == before + 3


def test_a_run_told_to_stop_saves_its_last_step(tmp_path: Path, pack: Path) -> None:
    folder = tmp_path / "run"
    more = ("--steps", "100000", "--save-every", "100000")
    call = [sys.executable, "-m", "training", *command(pack, folder, *more)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True, env=environment) as process:
        deadline = time.monotonic() + 60
        metrics = folder / "metrics.jsonl"
        while not (metrics.exists() and len(curve(folder)) >= 3) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    last = max(curve(folder))
    assert f"saved at step {last}" in said
    result = CliRunner().invoke(main, command(pack, folder, "--steps", str(last + 1), "--json"))
    assert json.loads(result.stdout.splitlines()[-1])["step"] == last + 1


def test_a_run_starts_from_a_checkpoint(tmp_path: Path, pack: Path) -> None:
    runner = CliRunner()
    first = runner.invoke(main, command(pack, tmp_path / "first", "--steps", "2"))
    assert first.exit_code == 0, first.output
    best = tmp_path / "first" / "best"
    more = ("--steps", "1", "--learning-rate", "0", "--init-from", str(best))
    second = runner.invoke(main, command(pack, tmp_path / "second", *more))
    assert second.exit_code == 0, second.output
    before, after = (load_checkpoint(folder)[1] for folder in (best, tmp_path / "second" / "best"))
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(new, old, atol=1e-3, rtol=1e-3, msg=name)


def test_eval_scores_a_checkpoint(tmp_path: Path, pack: Path) -> None:
    runner = CliRunner()
    made = runner.invoke(main, command(pack, tmp_path / "run", "--steps", "2"))
    assert made.exit_code == 0, made.output
    out = tmp_path / "predictions.json"
    call = ["eval", str(tmp_path / "run" / "best"), "--data", str(pack), "--json"]
    result = runner.invoke(main, [*call, "--predictions", str(out)])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout.splitlines()[-1])
    rows = json.loads(out.read_text(encoding="utf-8"))
    assert answer["n"] == len(rows) == 32
    assert answer["correct"] == sum(row["gt"] == row["pred"] for row in rows)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--widths", "4,4"], "--widths"),
        (["--widths", "4,4,8,9"], "multiple of 4"),
    ],
)
def test_bad_options_are_sentences(
    tmp_path: Path, pack: Path, options: list[str], word: str
) -> None:
    result = CliRunner().invoke(main, [*command(pack, tmp_path / "run"), *options])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert word in result.stderr
    assert "Traceback" not in result.output
