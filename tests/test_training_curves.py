"""Profile, curves and TensorBoard of a run."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from hmer.errors import BadParameter, DatasetError
from tests.training_fixtures import settings, trainer
from training.curves import command, draw, read_metrics
from training.profile import PARTS, profile


def lines(folder: Path, *rows: dict[str, object]) -> Path:
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text + '{"kind": "st', encoding="utf-8")
    return folder


def a_run(folder: Path) -> Path:
    return lines(
        folder,
        {"kind": "step", "step": 1, "loss": 3.0, "rate": 0.1},
        {"kind": "step", "step": 2, "loss": 9.0, "rate": 0.1},
        {"kind": "held_out", "step": 2, "exprate": 0.25},
        {"kind": "step", "step": 2, "loss": 2.0, "rate": 0.1},
    )


def test_the_later_line_of_a_step_counts(tmp_path: Path) -> None:
    metrics = read_metrics(a_run(tmp_path) / "metrics.jsonl")
    assert {step: row["loss"] for step, row in metrics.steps.items()} == {1: 3.0, 2: 2.0}
    assert metrics.held_out[2]["exprate"] == 0.25


def test_curves_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "curves.svg"
    result = CliRunner().invoke(command, [str(a_run(tmp_path)), "--output", str(out), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"output": str(out), "steps": 2, "best_exprate": 0.25}
    assert ElementTree.parse(out).getroot().tag.endswith("svg")


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no training step"):
        draw(read_metrics(tmp_path / "metrics.jsonl"), tmp_path / "x.svg")
    with pytest.raises(BadParameter, match=r"\.svg"):
        draw(read_metrics(a_run(tmp_path) / "metrics.jsonl"), tmp_path / "x.doc")
    result = CliRunner().invoke(command, [str(tmp_path / "no"), "--output", "x.svg"])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")


def test_tensorboard_gets_every_report(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer(tmp_path / "run", settings(steps=4, tensorboard=True)).run()
    log = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    log.Reload()
    assert [event.step for event in log.Scalars("step/loss")] == [1, 2, 3, 4]
    assert [event.step for event in log.Scalars("held_out/exprate")] == [4]


def test_a_profile_covers_a_step_and_leaves_no_trace(tmp_path: Path) -> None:
    run = trainer(tmp_path / "run", settings(workers=0))
    found = profile(run, steps=3, warm=1)
    assert run.progress.step == 4
    assert list((tmp_path / "run").iterdir()) == []
    assert set(found.seconds) == set(PARTS)
    assert all(value > 0 for value in found.seconds.values())
    assert sum(found.seconds.values()) == pytest.approx(found.total, rel=0.01)
    document = json.loads(json.dumps(found.to_dict()))
    assert document["images"] == found.images > 0
    assert sum(document["shares"].values()) == pytest.approx(1.0, rel=0.01)
    assert "encoder backward" in str(found)
