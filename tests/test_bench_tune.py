"""``hmer-bench tune``: the search by a fake measurement, and its parts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.cli import main
from benchmarks.tune_cli import tables
from benchmarks.tune_search import (
    INTERRUPTED,
    LOSSES,
    WINS,
    Duel,
    Log,
    Score,
    Settings,
    fight,
    search,
)
from benchmarks.tune_space import (
    DELAY,
    PIXELS,
    RUNTIME,
    SLOTS,
    STEP_THREADS,
    THREADS,
    WORKERS,
    Goal,
    K,
    applies,
    command,
    include,
    options_of,
    settings_of,
    space_of,
)
from export.config import RepositoryOptions
from export.targets import Candidate
from hmer.errors import BadParameter, ServerSetupError

SPACE: dict[str, list[Any]] = {
    "colour": ["red", "green", "blue"],
    "threads": [1, 2, 4, 8],
    "slots": [4, 8, 16],
}
START = {"colour": "red", "threads": 1, "slots": 8}
COLOURS = {"red": 0.0, "green": -5.0, "blue": 4.0}


def truth(settings: Settings) -> float:
    """Best at blue, four threads; slots do nothing."""
    return 50.0 + COLOURS[settings["colour"]] - 6.0 * abs(np.log2(settings["threads"]) - 2)


class Machine:
    """Measures ``truth`` on a machine that drifts much and jitters a little."""

    def __init__(self, seed: int, jitter: float = 0.005) -> None:
        self.random = np.random.default_rng(seed)
        self.jitter, self.pairs_measured = jitter, 0

    def pairs(self, incumbent: Settings, challenger: Settings) -> Iterator[tuple[Score, Score]]:
        while True:
            self.pairs_measured += 1
            drift = self.random.uniform(0.4, 1.6)
            a, b = (
                Score(float(truth(s) * drift * self.random.normal(1.0, self.jitter)))
                for s in (incumbent, challenger)
            )
            yield a, b


@pytest.mark.parametrize("seed", range(5))
def test_the_best_is_found_on_a_machine_that_drifts(seed: int) -> None:
    found = search(SPACE, START, Machine(seed).pairs, unordered=("colour",))
    assert found.best["colour"] == "blue"
    assert found.best["threads"] == 4
    assert "none is better" in found.ended
    kept = [duel for duel in found.duels if duel.kept]
    assert all(duel.wins >= WINS for duel in kept)


def test_what_makes_no_difference_is_rarely_changed() -> None:
    changed = sum(
        bool(duel := fight(START, {**START, "slots": 16}, "slots", Machine(seed, 0.05).pairs))
        and duel.kept
        for seed in range(200)
    )
    assert changed / 200 < 0.12  # 1 of 16 by chance, were there no least gain


def test_a_duel_ends_as_soon_as_it_is_decided() -> None:
    machine = Machine(1)
    lost = fight(START, {**START, "colour": "green"}, "colour", machine.pairs)
    assert lost is not None
    assert not lost.kept
    assert len(lost.pairs) == machine.pairs_measured == LOSSES + 1
    won = fight(START, {**START, "threads": 2}, "threads", machine.pairs)
    assert won is not None
    assert won.kept
    assert len(won.pairs) == WINS


def test_a_win_that_is_worth_nothing_is_not_kept() -> None:
    def pairs(a: Settings, b: Settings) -> Iterator[tuple[Score, Score]]:
        while True:
            yield Score(100.0), Score(100.2)

    duel = fight(START, {**START, "slots": 16}, "slots", pairs)
    assert duel is not None
    assert duel.wins == WINS
    assert not duel.kept


def test_a_bound_that_is_missed_by_less_is_a_gain() -> None:
    def pairs(a: Settings, b: Settings) -> Iterator[tuple[Score, Score]]:
        while True:
            yield Score(-2.0), Score(-1.5)

    duel = fight(START, {**START, "slots": 16}, "slots", pairs)
    assert duel is not None
    assert duel.kept
    assert duel.gain == pytest.approx(0.25)


def test_settings_that_cannot_run_lose() -> None:
    def pairs(a: Settings, b: Settings) -> Iterator[tuple[Score, Score]]:
        if b["colour"] == "blue":
            raise ServerSetupError("There is no blue here.")
        yield from Machine(0).pairs(a, b)

    found = search(SPACE, START, pairs, unordered=("colour",))
    assert found.best["colour"] == "red"
    (blue,) = [d for d in found.duels if d.reason and d.challenger["threads"] == 1]
    assert blue.reason == "There is no blue here."


def test_the_time_ends_a_search_and_the_log_continues_it(tmp_path: Path) -> None:
    path = tmp_path / "duels.json"
    machine = Machine(3)
    first = search(
        SPACE,
        START,
        machine.pairs,
        unordered=("colour",),
        expired=lambda: machine.pairs_measured >= 12,
        log=Log(path),
    )
    assert first.ended == "the time was up"
    assert machine.pairs_measured == 12
    assert 0 < len(first.duels) < 12
    other = Machine(4)
    second = search(SPACE, START, other.pairs, unordered=("colour",), log=Log(path))
    assert second.best["threads"] == 4
    assert [d.to_dict() for d in second.duels[: len(first.duels)]] == [
        d.to_dict() for d in first.duels
    ]
    third = Machine(5)
    again = search(SPACE, START, third.pairs, unordered=("colour",), log=Log(path))
    assert third.pairs_measured == 0  # everything is known
    assert again.best == second.best


@pytest.mark.parametrize("content", ["no json", "[1]", '[{"kept": true}]', "{}"])
def test_a_broken_log_is_begun_anew(content: str, tmp_path: Path) -> None:
    path = tmp_path / "duels.json"
    path.write_text(content, encoding="utf-8")
    assert Log(path).duels == []


def test_ctrl_c_leaves_the_best_so_far() -> None:
    machine = Machine(0)

    def pairs(a: Settings, b: Settings) -> Iterator[tuple[Score, Score]]:
        if b["threads"] == 4:
            raise KeyboardInterrupt
        yield from machine.pairs(a, b)

    found = search(SPACE, START, pairs, unordered=("colour",))
    assert found.ended == INTERRUPTED
    assert found.best == {"colour": "blue", "threads": 2, "slots": 8}


def test_settings_without_an_effect_are_left_out() -> None:
    found = search(SPACE, START, Machine(0).pairs, applies=lambda name, s: name == "threads")
    assert {duel.changed for duel in found.duels} == {"threads"}


# What is tuned


ORT, VINO = Candidate("onnxruntime", "fp32"), Candidate("openvino", "bf16")


def test_the_space_of_a_machine() -> None:
    space = space_of([ORT, VINO], ["onnxruntime", "openvino"], 6, ks=True)
    assert space[THREADS] == [1, 2, 4, 6]
    assert len(space[RUNTIME]) == 4
    assert K not in space_of([ORT], ["onnxruntime"], 1, ks=False)
    assert RUNTIME not in space_of([ORT], ["onnxruntime"], 1, ks=False)
    assert not applies(WORKERS, {RUNTIME: ["openvino", "fp32", "openvino"]})
    assert applies(WORKERS, {RUNTIME: ["onnxruntime", "fp32", "openvino"]})


def test_settings_are_a_repositorys_options() -> None:
    options = RepositoryOptions(target="openvino", precision="bf16", step_target="onnxruntime")
    settings = settings_of(options, 4, 2, 24_000)
    again = options_of(settings)
    assert (again.target, again.precision, again.step_target) == ("openvino", "bf16", "onnxruntime")
    assert (again.threads, again.slots, again.batch_pixels) == (2, options.slots, 24_000)
    space = include({SLOTS: [4, 32], RUNTIME: []}, settings)
    assert space[SLOTS] == [4, 16, 32]
    assert space[RUNTIME] == [settings[RUNTIME]]
    changed = options_of({**settings, STEP_THREADS: 2, PIXELS: 6_000, DELAY: 500, SLOTS: 8})
    assert (changed.step_threads, changed.batch_pixels) == (2, 6_000)
    assert (changed.queue_delay_us, changed.slots) == (500, 8)


def test_the_command_is_one_that_the_exporter_takes(tmp_path: Path) -> None:
    from export.repository_cli import repository

    settings = settings_of(RepositoryOptions(step_target="openvino"), 4, 2, 24_000)
    line = command(settings, "bundle", str(tmp_path / "out"))
    assert line[:3] == ["hmer-export", "repository", "bundle"]
    parsed = repository.make_context("repository", line[2:]).params
    assert parsed["step_target"] == "openvino"
    assert (parsed["threads"], parsed["batch_pixels"]) == (2, 24_000)
    assert parsed["encoder_workers"] == 0  # as the server that is compared with chooses them
    wide = command({**settings, WORKERS: 4}, "bundle", str(tmp_path / "out"))
    assert wide[wide.index("--encoder-workers") + 1] == "4"


@pytest.mark.parametrize(
    ("text", "goal"),
    [(None, Goal()), ("p95=200ms", Goal("p95", 200.0)), ("p99 = 1.5 s", Goal("p99", 1500.0))],
)
def test_goals(text: str | None, goal: Goal) -> None:
    assert Goal.parse(text) == goal


@pytest.mark.parametrize("text", ["", "200", "p95=0ms", "p42=200ms", "p95<200ms"])
def test_bad_goals(text: str) -> None:
    with pytest.raises(BadParameter, match="--bound is"):
        Goal.parse(text)


def level(concurrency: int, throughput: float, ms: float) -> dict[str, Any]:
    return {"concurrency": concurrency, "throughput": throughput, "latency_ms": {"p95": ms}}


def test_the_score_of_a_bound_lies_between_the_levels() -> None:
    goal = Goal("p95", 200.0)
    assert goal.levels(16) == (1, 2, 4, 8, 16)
    assert Goal().levels(16) == (16,)
    levels = [level(1, 10, 100), level(2, 18, 150), level(4, 22, 250)]
    assert goal.score(levels).value == pytest.approx(20.0)
    assert goal.score(levels[:2]).value == 18
    missed = goal.score([level(1, 10, 300)])
    assert missed.value == pytest.approx(-1.5)
    assert not missed.figures["met"]
    assert Goal().score(levels).value == 22


def test_the_tables_name_what_was_tried() -> None:
    settings = settings_of(RepositoryOptions(), 4, 2, 24_000)
    duel = Duel(settings, {**settings, SLOTS: 32}, SLOTS, [(Score(10.0), Score(11.0))] * 6, True)
    report: Mapping[str, Any] = {
        "start": settings,
        "best": duel.challenger,
        "space": {SLOTS: [16, 32]},
        "goal": {"name": Goal().name},
        "duels": [json.loads(json.dumps(duel.to_dict()))],
    }
    chosen, tried = tables(report)
    assert ("slots", "16", "32") in chosen.rows
    assert tried.rows == (("slots", "16", "32", "6 of 6", "+10.0", "kept"),)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--bound", "fast"], "--bound is 'fast'"),
        (["--bundle", "nowhere"], "nowhere"),
        (["--output", "/nowhere/at/all.json"], "there is no such folder"),
        (["--repository", "hmer"], "hmer is not empty"),
    ],
)
def test_sentences(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(main, ["tune", *arguments])
    assert result.exit_code == 1
    assert said in result.stderr
    assert "Traceback" not in result.output
