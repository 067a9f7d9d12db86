"""A run: resumed to the step, extended, bounded in time, on any device and with any workers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from hmer.errors import BadParameter, DatasetError
from tests.training_fixtures import NETWORK, SHORT, curve, settings, trainer
from training import schedule
from training.device import autocast_type, find_device
from training.network import NetworkConfig
from training.train import Report, Trainer, TrainSettings, learning_rate


class Killed(Exception):
    """Instead of a signal: leaves the run where it is."""


def killed_at(step: int, run: Trainer) -> None:
    def listen(report: Report) -> None:
        if run.progress.step == step:
            raise Killed

    run.listener = listen
    with pytest.raises(Killed):
        run.run()


@pytest.mark.parametrize(
    "options",
    [{}, {"workers": 1}, {"precision": "bf16"}],
    ids=["thread", "worker", "bf16"],
)
def test_a_killed_run_goes_on_with_the_same_curve(
    tmp_path: Path, options: dict[str, object]
) -> None:
    chosen = settings(**options)
    whole = trainer(tmp_path / "whole", chosen)
    whole.run()
    killed_at(6, trainer(tmp_path / "broken", chosen))  # two steps after the state was saved
    resumed = trainer(tmp_path / "broken", chosen)
    assert resumed.progress.step == 4
    resumed.run()
    assert curve(tmp_path / "broken") == pytest.approx(curve(tmp_path / "whole"), abs=1e-6)
    for name, value in whole.average.values.items():
        torch.testing.assert_close(resumed.average.values[name], value, atol=1e-6, rtol=1e-5)


def test_workers_change_nothing(tmp_path: Path) -> None:
    curves = []
    for workers in (0, 2):
        trainer(tmp_path / str(workers), settings(workers=workers)).run()
        curves.append(curve(tmp_path / str(workers)))
    assert curves[0] == curves[1]


def test_a_workers_error_is_the_sentence_alone(tmp_path: Path) -> None:
    run = trainer(tmp_path / "run", settings(workers=1))
    run.renderer.vocabulary = type(run.vocabulary)(["?"])
    with pytest.raises(DatasetError) as found:
        run.run()
    assert "Traceback" not in str(found.value)


def test_bf16_differs_little_but_does(tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        trainer(tmp_path / precision, settings(precision=precision)).run()
    exact, rounded = (curve(tmp_path / precision) for precision in ("fp32", "bf16"))
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.05)
    state = trainer(tmp_path / "bf16", settings(precision="bf16"))
    assert {value.dtype for value in state.model.parameters()} == {torch.float32}


def test_state_of_a_run_is_resumed_in_another_layout(tmp_path: Path) -> None:
    """Moments follow their parameter's memory layout, which fused optimisers rely on."""
    trainer(tmp_path / "run").run()
    resumed = trainer(tmp_path / "run", settings(steps=10))
    for parameter, state in resumed.engine.optimiser.state.items():
        assert state["exp_avg"].stride() == parameter.stride()
    assert any(
        p.ndim == 4 and not p.is_contiguous() for p in resumed.engine.optimiser.state
    )  # channels last, so the layouts could differ


def test_a_gradient_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    run = trainer(tmp_path / "run")
    before = {name: value.clone() for name, value in run.model.named_parameters()}
    poison = run.model.output.weight.register_hook(lambda gradient: gradient * math.nan)
    with run.stream() as made:
        run.advance(*next(made))
        for name, value in run.model.named_parameters():
            assert torch.equal(value, before[name]), name
        poison.remove()
        run.advance(*next(made))
    assert not torch.equal(run.model.output.weight, before["output.weight"])


def test_a_diverged_run_stops_and_keeps_its_state(tmp_path: Path) -> None:
    run = trainer(tmp_path / "run", settings(steps=100, save_every=5, evaluate_every=1000))
    held_back: list[Report] = []

    def poison(report: Report) -> None:
        held_back.append(report)
        if report.step == 7:
            run.model.output.weight.register_hook(lambda gradient: gradient * math.nan)

    run.listener = poison
    with pytest.raises(DatasetError, match="--learning-rate"):
        run.run()
    assert trainer(tmp_path / "run", settings(steps=100)).progress.step == 5


def test_learning_rate_rises_stays_and_falls() -> None:
    chosen = TrainSettings(steps=100, learning_rate=1.0, warmup=10, decay_share=0.3)
    rates = [learning_rate(step, chosen) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:70] == [1.0] * 60
    assert rates[70:] == sorted(rates[70:], reverse=True)
    assert rates[-1] < 0.05


def shares(chosen: TrainSettings, first: int, before: float) -> list[float]:
    found = []
    for step in range(first, chosen.steps):
        before = schedule.rise(schedule.fall(step, chosen), before, chosen)
        found.append(before)
    return found


def test_an_extended_schedule_rises_again_within_the_warmup() -> None:
    short = TrainSettings(steps=100, learning_rate=1.0, warmup=10, decay_share=0.3)
    first = shares(short, 0, 0.0)
    assert first == pytest.approx([learning_rate(step, short) for step in range(100)])
    longer = TrainSettings(steps=200, learning_rate=1.0, warmup=10, decay_share=0.3)
    second = shares(longer, 100, first[-1])
    assert max(np.diff([first[-1], *second])) <= 0.1 + 1e-9
    assert second[10:40] == [1.0] * 30
    assert second[-1] < 0.05


def test_a_finished_run_can_be_extended(tmp_path: Path) -> None:
    chosen = settings(steps=10, warmup=4, decay_share=0.5)
    trainer(tmp_path / "run", chosen).run()
    longer = settings(steps=20, warmup=4, decay_share=0.5)
    assert trainer(tmp_path / "run", longer).run().step == 20
    rates = curve(tmp_path / "run", "rate")
    peak = chosen.learning_rate
    assert rates[10] == pytest.approx(0.2 * peak)
    assert [rates[step] for step in (11, 12, 13)] == pytest.approx(
        [0.45 * peak, 0.7 * peak, 0.8 * peak]  # then the new fall is already below the rise
    )
    assert trainer(tmp_path / "run", longer).run().step == 20  # nothing left to do


def test_a_state_without_a_rate_finds_it_in_the_metrics(tmp_path: Path) -> None:
    trainer(tmp_path / "run", settings(steps=10, decay_share=1.0)).run()
    rate = curve(tmp_path / "run", "rate")[10]
    run = trainer(tmp_path / "run", settings(steps=30))
    run.progress.share = None  # as a state of version 0.1 has it
    run.save()
    assert trainer(tmp_path / "run", settings(steps=30)).progress.share == pytest.approx(
        rate / SHORT.learning_rate
    )


def test_hours_end_a_run_annealed() -> None:
    chosen = TrainSettings(steps=10**9, max_hours=0.5, decay_share=0.25)
    assert schedule.fall(1000, chosen, 0.70 * 1800) == 1.0
    assert schedule.fall(1000, chosen, 0.875 * 1800) == pytest.approx(0.5)
    assert schedule.fall(1000, chosen, 1801) == 0.0
    few = TrainSettings(steps=1000, max_hours=0.5)  # the steps may end before the hours
    assert schedule.fall(999, few, 1.0) < 0.01


def test_a_run_ends_when_its_hours_do(tmp_path: Path) -> None:
    hours = 4.0 / 3600
    chosen = settings(steps=10**6, max_hours=hours, decay_share=0.9, evaluate_every=10**6)
    ended = trainer(tmp_path / "run", chosen).run()
    rates = curve(tmp_path / "run", "rate")
    assert 1 < ended.step < 10**6
    assert rates[ended.step] == min(rates[step] for step in rates if step >= chosen.warmup)
    assert ended.best_step == ended.step  # evaluated and saved at its end
    assert trainer(tmp_path / "run", chosen).progress.step == ended.step


def test_other_data_does_not_resume(tmp_path: Path) -> None:
    trainer(tmp_path / "run").run()
    with pytest.raises(DatasetError, match="--save-dir"):
        trainer(tmp_path / "run", count=20)


def test_truncated_state_is_explained(tmp_path: Path) -> None:
    trainer(tmp_path / "run").run()
    state = tmp_path / "run" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(DatasetError, match="cannot be resumed"):
        trainer(tmp_path / "run")


def test_patience_stops_early(tmp_path: Path) -> None:
    chosen = settings(steps=500, evaluate_every=2, patience=3, learning_rate=0.0)
    assert trainer(tmp_path / "run", chosen).run().step == 8


def test_devices_and_precisions_are_refused_with_a_sentence() -> None:
    with pytest.raises(BadParameter, match="--device"):
        find_device("tpu")
    with pytest.raises(BadParameter, match="--precision"):
        autocast_type("fp8", torch.device("cpu"))
    if not torch.cuda.is_available():
        assert find_device("auto") == torch.device("cpu")
        with pytest.raises(BadParameter, match="no usable NVIDIA GPU"):
            find_device("cuda")


@pytest.mark.gpu
def test_a_run_moves_to_a_gpu_and_back(tmp_path: Path) -> None:
    exact = NetworkConfig(**{**NETWORK.__dict__, "dropout": 0.0})
    trainer(tmp_path / "cpu", settings(steps=12), exact).run()
    for steps, device in ((4, "cpu"), (8, "cuda"), (12, "cpu")):
        run = trainer(tmp_path / "moved", settings(steps=12), exact, device=device)
        with run.stream() as made:
            while run.progress.step < steps:
                run.advance(*next(made))
        run.save()
    assert curve(tmp_path / "moved") == pytest.approx(curve(tmp_path / "cpu"), rel=2e-2)
