"""Training: data, split, rendering, losses, and a run that survives being killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from hmer import ink
from hmer.errors import DatasetError
from hmer.preprocess import PreprocessSettings, load, size_class
from hmer.vocab import PAD_ID, Vocabulary
from tests.handwriting import SHAPES, write_pack
from training import losses
from training.augment import AugmentSettings, augment
from training.checkpoint import load_checkpoint
from training.cli import main
from training.data import (
    Example,
    Renderer,
    collate,
    estimate_size,
    plan_epoch,
    read_pack,
    split_by_writer_and_label,
)
from training.network import NetworkConfig
from training.train import Trainer, TrainSettings, learning_rate

SETTINGS = PreprocessSettings(symbol_height=20, multiple=16)
VOCABULARY = Vocabulary(sorted(SHAPES))
NETWORK = NetworkConfig(
    len(VOCABULARY), (16, 16, 16, 16), (2, 2, 2, 2, 1), attention=8, hidden=12, embedding=4
)
SHORT = TrainSettings(
    steps=8, pixels=40_000, limit=6, evaluate_every=4, save_every=4, warmup=2, curriculum=()
)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pack(tmp_path_factory.mktemp("data") / "train.jsonl", 32)


@pytest.fixture(scope="module")
def examples(pack: Path) -> list[Example]:
    return read_pack(pack)


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(VOCABULARY, SETTINGS, AugmentSettings())


def trainer(folder: Path, examples: list[Example], settings: TrainSettings = SHORT) -> Trainer:
    folder.mkdir(exist_ok=True)
    return Trainer(
        folder, examples[4:], examples[:4], VOCABULARY, NETWORK, SETTINGS, settings,
        AugmentSettings(),
    )  # fmt: skip


def test_training_and_serving_see_the_same_bits(
    examples: list[Example], renderer: Renderer
) -> None:
    for example in examples:
        data = json.dumps([stroke.tolist() for stroke in example.strokes]).encode()
        assert np.array_equal(renderer.plain(example), load(data, SETTINGS))


def test_training_and_serving_see_the_same_bits_of_crohme(crohme: Path) -> None:
    found = read_pack(crohme / "test_2014.jsonl.gz")[:40]
    renderer = Renderer(VOCABULARY, SETTINGS, AugmentSettings())
    for example in found:
        data = json.dumps([stroke.tolist() for stroke in example.strokes]).encode()
        assert np.array_equal(renderer.plain(example), load(data, SETTINGS))


def test_held_out_shares_neither_writer_nor_label(crohme: Path) -> None:
    examples = read_pack(crohme / "train.jsonl.gz")
    split = split_by_writer_and_label(examples)
    assert 100 < len(split.held_out) < 600
    assert len(split.train) > 0.9 * len(examples)
    assert not {e.writer for e in split.train} & {e.writer for e in split.held_out}
    assert not {e.tokens for e in split.train} & {e.tokens for e in split.held_out}
    again = split_by_writer_and_label(list(reversed(examples)))
    assert {e.name for e in again.held_out} == {e.name for e in split.held_out}


def test_augmentation_is_seeded_and_keeps_strokes(examples: list[Example]) -> None:
    placed = ink.place(examples[0].strokes)
    one, same, other = (
        augment(placed, AugmentSettings(), np.random.default_rng(seed), 48.0) for seed in (1, 1, 2)
    )
    assert [len(s) for s in one.strokes] == [len(s) for s in placed]
    assert all(np.array_equal(a, b) for a, b in zip(one.strokes, same.strokes, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(one.strokes, other.strokes, strict=True))


def test_cells_lie_where_the_ink_is(examples: list[Example], renderer: Renderer) -> None:
    for index, example in enumerate(examples):
        sample = renderer.render(example, np.random.default_rng(index))
        ids = set(VOCABULARY.encode(example.tokens))
        assert set(sample.cells[:, 0].tolist()) == ids
        inked = np.zeros(tuple(n // 16 for n in sample.image.shape), bool)
        inked[sample.cells[:, 1], sample.cells[:, 2]] = True
        blocks = sample.image.reshape(inked.shape[0], 16, inked.shape[1], 16).max(axis=(1, 3))
        # A line's own width may reach into a neighbouring cell, no further.
        near = np.zeros_like(np.pad(inked, 1))
        for down in range(3):
            for right in range(3):
                near[down : down + inked.shape[0], right : right + inked.shape[1]] |= inked
        assert not ((blocks > 100) & ~near[1:-1, 1:-1]).any()
        assert (inked & (blocks < 30)).mean() < 0.1


def test_unknown_token_names_the_example(examples: list[Example]) -> None:
    renderer = Renderer(Vocabulary(["?"]), SETTINGS, AugmentSettings())
    with pytest.raises(DatasetError, match=examples[0].name):
        renderer.render(examples[0], np.random.default_rng(0))


@pytest.mark.parametrize(
    ("line", "word"),
    [("{", "line 2"), ('{"id": "a"}', "line 2"), ('{"id": 1, "norm": "", "strokes": [[[1,2]]]}',
      "no label")],
)  # fmt: skip
def test_broken_pack_names_the_line(tmp_path: Path, pack: Path, line: str, word: str) -> None:
    path = tmp_path / "broken.jsonl"
    first = pack.read_text(encoding="utf-8").splitlines()[0]
    path.write_text(f"{first}\n{line}\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=word):
        read_pack(path)


def test_epoch_visits_every_example_once(examples: list[Example]) -> None:
    sizes = [estimate_size(example, SETTINGS) for example in examples]
    plans = plan_epoch(sizes, (0.7, 1.2), 30_000, 5, np.random.default_rng(0))
    assert Counter(i for plan in plans for i in plan.indices) == Counter(range(len(examples)))
    for plan in plans:
        assert len(plan.indices) <= 5
        assert 0.7 <= plan.zoom <= 1.2
        if len(plan.indices) > 1:
            height = max(int(sizes[i][0] * plan.zoom) for i in plan.indices)
            width = max(int(sizes[i][1] * plan.zoom) for i in plan.indices)
            area = np.prod(size_class(height, width))
            assert area * len(plan.indices) <= 30_000


def test_attention_loss_knows_where_to_look(examples: list[Example], renderer: Renderer) -> None:
    samples = [renderer.render(e, np.random.default_rng(0)) for e in examples[:4]]
    batch = collate(samples, len(VOCABULARY), 16)
    matrix = losses.drawn_as_matrix(VOCABULARY)
    places = torch.einsum("btv,bvhw->bthw", matrix[batch.targets], batch.symbols.float())
    right = places / places.sum((2, 3), keepdim=True).clamp_min(1)
    wrong = (places == 0).float()
    wrong = wrong / wrong.sum((2, 3), keepdim=True).clamp_min(1)
    good = losses.attention_loss(right, batch.targets, batch.symbols, matrix)
    bad = losses.attention_loss(wrong, batch.targets, batch.symbols, matrix)
    assert good < 0.01
    assert bad > 5.0


def test_fraction_bars_are_read_from_minus_ink() -> None:
    vocabulary = Vocabulary(["-", "\\frac", "{", "x"])
    matrix = losses.drawn_as_matrix(vocabulary)
    minus, fraction, brace, x = vocabulary.encode(["-", "\\frac", "{", "x"])
    assert matrix[fraction].nonzero().flatten().tolist() == [minus]
    assert matrix[x].nonzero().flatten().tolist() == [x]
    assert not matrix[brace].any()
    assert not matrix[PAD_ID].any()


def test_learning_rate_rises_stays_and_falls() -> None:
    settings = TrainSettings(steps=100, learning_rate=1.0, warmup=10, decay_share=0.3)
    rates = [learning_rate(step, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:70] == [1.0] * 60
    assert rates[70:] == sorted(rates[70:], reverse=True)
    assert rates[-1] < 0.05


def curve(folder: Path) -> dict[int, float]:
    """The loss of each step, of the last time it was made."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return {row["step"]: row["loss"] for row in rows if row["kind"] == "step"}


def test_a_stopped_run_goes_on_with_the_same_curve(tmp_path: Path, examples: list[Example]) -> None:
    whole = trainer(tmp_path / "whole", examples)
    whole.run()

    class Killed(Exception):
        pass

    broken = trainer(tmp_path / "broken", examples)

    def kill(report: object) -> None:
        if broken.progress.step == 6:  # two steps after the state was saved
            raise Killed

    broken.listener = kill
    with pytest.raises(Killed):
        broken.run()
    resumed = trainer(tmp_path / "broken", examples)
    assert resumed.progress.step == 4
    resumed.run()
    expected = curve(tmp_path / "whole")
    assert curve(tmp_path / "broken") == pytest.approx(expected, abs=1e-6)
    for name, value in whole.average.values.items():
        torch.testing.assert_close(resumed.average.values[name], value, atol=1e-6, rtol=1e-5)


def test_a_finished_run_can_be_extended(tmp_path: Path, examples: list[Example]) -> None:
    trainer(tmp_path / "run", examples).run()
    longer = TrainSettings(**{**SHORT.__dict__, "steps": 10})
    extended = trainer(tmp_path / "run", examples, longer)
    assert extended.run().step == 10
    assert trainer(tmp_path / "run", examples, longer).run().step == 10  # nothing left to do


def test_other_data_does_not_resume(tmp_path: Path, examples: list[Example]) -> None:
    trainer(tmp_path / "run", examples).run()
    with pytest.raises(DatasetError, match="--save-dir"):
        trainer(tmp_path / "run", examples[:20])


def test_truncated_state_is_explained(tmp_path: Path, examples: list[Example]) -> None:
    trainer(tmp_path / "run", examples).run()
    state = tmp_path / "run" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(DatasetError, match="cannot be resumed"):
        trainer(tmp_path / "run", examples)


def test_patience_stops_early(tmp_path: Path, examples: list[Example]) -> None:
    settings = TrainSettings(
        **{**SHORT.__dict__, "steps": 500, "evaluate_every": 2, "patience": 3, "learning_rate": 0.0}
    )
    assert trainer(tmp_path / "run", examples, settings).run().step == 8


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
