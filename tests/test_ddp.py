"""Two processes train as one does: same losses, same weights, one set of files, one end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.ddp_worker import THIRD, shared_run
from tests.handwriting import write_pack
from tests.training_fixtures import curve


def torchrun(*call: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", *call,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, check=False
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``one`` (a process alone) and ``shared`` (two of them), after equal steps."""
    folder = tmp_path_factory.mktemp("ddp")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as torchrun's processes have
    shared_run(folder / "one")
    torch.set_num_threads(threads)
    done = torchrun("tests.ddp_worker", str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_two_processes_make_the_steps_of_one(runs: Path) -> None:
    alone, shared = runs / "one", runs / "shared"
    assert len(curve(alone)) == 5
    for value in ("loss", "attention", "symbols", "accuracy"):
        assert curve(shared, value) == pytest.approx(curve(alone, value), rel=1e-4, abs=1e-5)
    # Sums are made in another order, and what a ReLU at its kink or Adam's division by a tiny
    # moment make of that grows: gradients and weights are compared as far as rounding explains.
    norms = {step: norm for step, norm in curve(alone, "norm").items() if step <= 3}
    found = {step: norm for step, norm in curve(shared, "norm").items() if step <= 3}
    assert found == pytest.approx(norms, rel=1e-4, abs=1e-5)
    assert curve(shared, "images") == curve(alone, "images")
    weights, wanted = (load_file(path / THIRD) for path in (shared, alone))
    assert weights.keys() == wanted.keys()
    for name, value in wanted.items():
        if name.startswith(("model/", "head/", "average/")):
            torch.testing.assert_close(weights[name], value, atol=2e-5, rtol=1e-3, msg=name)


def test_a_process_may_get_no_row_of_a_batch(runs: Path) -> None:
    """What the test above relies on to cover that case."""
    assert 0 in json.loads((runs / "rank1.json").read_text(encoding="utf-8"))["rows"]


def test_all_processes_end_together(runs: Path) -> None:
    first, second = (
        json.loads((runs / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)
    )
    for found in (first, second):
        assert found["stopped"] == 4
        assert found["patient"] == 6
    assert first["score"] == second["score"]


def test_torchrun_needs_no_change_of_the_command(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "train.jsonl", 16)
    folder = tmp_path / "run"
    done = torchrun(
        "training", "train", "--data", str(pack), "--save-dir", str(folder), "--steps", "2",
        "--widths", "4,4,8,8", "--held-out", "0.3", "--device", "cpu", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["step"] == 2  # one process speaks
    assert sorted(curve(folder)) == [1, 2]
