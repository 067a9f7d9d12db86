"""A few ratios, measured side by side in one run: what a change to the code may have cost.

Never absolute times: those are the machine's. Every ratio is taken in several rounds, within a
round both sides take turns, and its median and quartiles are held against those of a baseline.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.compare import Result, Settings, rounds
from benchmarks.contenders import OURS, Plan, prepare, start
from benchmarks.crohme import Expression
from benchmarks.figures import ratios, spread
from benchmarks.in_process import InProcess
from benchmarks.repositories import NAIVE, Chosen
from hmer import contract
from hmer.bundle import ENCODER_FILE, STEP_FILE, Bundle
from hmer.errors import BadParameter, HmerError
from hmer.preprocess import load, to_batch
from hmer.runtime import ONNXRUNTIME, OPENVINO, open_runner, thread_count
from hmer.slots import SlotStep, batches_for, split_encoded
from hmer.tables import Table

KIND, VERSION = "quick", 1
# How far a median may lie outside the baseline's quartiles: the distance between them, or this
# part of the baseline if they are nearer.
LEAST = 0.05
_ROWS = 4  # formulas that a step advances
_CALLS = 5  # of a round, of which the median counts

Say = Callable[[str], None]


@dataclass(frozen=True)
class Ratio:
    """What is divided by what, and whether more or less of it is better."""

    title: str
    more_is_better: bool


RATIOS = {
    "served / in process, p50": Ratio("latency alone: served by the bare runtimes", False),
    "served / naive, throughput": Ratio("throughput: ours by the naive loop", True),
    "k / k=1, throughput": Ratio("throughput: ours by ours with one token a call", True),
    "encoder, openvino / onnxruntime": Ratio("encoder's time: OpenVINO by ONNX Runtime", False),
    "step / eager step": Ratio("a token's time: exported step by PyTorch's", False),
}
Found = dict[str, list["float | None"]]


def served(
    plan: Plan, expressions: Sequence[Expression], settings: Settings, stack: ExitStack, say: Say
) -> tuple[Found, dict[str, str], Chosen]:
    """The ratios of servers by round, why some are missing, and what ours runs."""
    folders, missing, chosen = prepare(plan, say)
    contenders = start(folders, 1, stack, say)
    bare = InProcess(plan.bundle, chosen, [e.data for e in expressions])
    stack.callback(bare.close)
    return of_result(rounds(contenders, bare, expressions, settings, [], say)), missing, chosen


def of_result(result: Result) -> Found:
    """The ratios of a comparison, round by round."""
    ours = result.contenders[OURS]
    found: Found = {
        "served / in process, p50": ratios(
            ours.column("alone", "p50"), [row["p50"] for row in result.bare.alone]
        )
    }
    for name, other in (("served / naive, throughput", NAIVE), ("k / k=1, throughput", "k=1")):
        if other in result.contenders:
            found[name] = ratios(ours.throughput, result.contenders[other].throughput)
    return found


def encoders(bundle: Bundle, data: Sequence[bytes], count: int) -> list[float | None]:
    """OpenVINO's time by ONNX Runtime's for the same pictures, on all CPUs, by round.

    Raises the error of a runtime that is missing.
    """
    feeds = [to_batch([load(item, bundle.preprocess)]) for item in data]
    with ExitStack() as stack:
        runners = [
            stack.enter_context(open_runner(target, bundle.file(ENCODER_FILE), thread_count(0)))
            for target in (OPENVINO, ONNXRUNTIME)
        ]
        calls = [
            [
                partial(runner.infer, {contract.IMAGE.name: image, contract.SIZE.name: size})
                for image, size in feeds
            ]
            for runner in runners
        ]
        return side_by_side(calls[0], calls[1], count)


def steps(
    bundle: Bundle, checkpoint: Path, data: Sequence[bytes], chosen: Chosen, count: int
) -> list[float | None]:
    """A token's time in the exported step by that in PyTorch's eager mode, one thread, by round.

    Raises ``BundleError`` without the checkpoint.
    """
    import torch

    from training.checkpoint import load_checkpoint

    torch.set_num_threads(1)
    _, model = load_checkpoint(checkpoint)
    pictures = [load(item, bundle.preprocess) for item in itertools.islice(data, _ROWS)]
    image, size = to_batch(pictures)
    with ExitStack() as stack, torch.inference_mode():
        encoded = model.encode(torch.from_numpy(image), torch.from_numpy(size))
        coverage, token = model.begin(encoded), torch.ones(len(pictures), dtype=torch.long)

        def eager() -> None:
            for _ in range(bundle.k):
                model.step(encoded, token, encoded.state, coverage)

        encoder = stack.enter_context(
            open_runner(chosen.target, bundle.file(ENCODER_FILE), 1, chosen.precision)
        )
        runner = stack.enter_context(open_runner(chosen.step_target, bundle.file(STEP_FILE), 1))
        step = SlotStep(
            runner.infer, bundle.sizes, _ROWS, **batches_for(chosen.step_target, _ROWS, False)
        )
        features = encoder.infer({contract.IMAGE.name: image, contract.SIZE.name: size})
        for slot, one in enumerate(split_encoded(features)):
            step.admit(slot, one)
        return side_by_side([partial(step.step, range(len(pictures)))], [eager], count)


def side_by_side(
    ours: Sequence[Callable[[], object]], theirs: Sequence[Callable[[], object]], count: int
) -> list[float | None]:
    """``count`` rounds: the sum of the medians of ``ours`` by that of ``theirs``, in turn."""
    for call in (*ours, *theirs):
        call()
    found: list[float | None] = []
    for turn in range(count):
        sides = [ours, theirs] if turn % 2 == 0 else [theirs, ours]
        seconds = {id(side): sum(_median_s(call) for call in side) for side in sides}
        found.append(seconds[id(ours)] / seconds[id(theirs)])
    return found


def _median_s(call: Callable[[], object]) -> float:
    took = []
    for _ in range(_CALLS):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def measure(
    bundle: Bundle,
    plan: Plan,
    expressions: Sequence[Expression],
    settings: Settings,
    say: Say,
) -> tuple[Found, dict[str, str]]:
    """All ratios by round, and why some are missing. Raises the errors of ours."""
    with ExitStack() as stack:
        found, left_out, chosen = served(plan, expressions, settings, stack, say)
    missing = {}
    for name, contender in (("served / naive, throughput", NAIVE), ("k / k=1, throughput", "k=1")):
        if name not in found:
            missing[name] = left_out.get(contender, "it was not asked for")
    data = [e.data for e in expressions]
    bare: dict[str, tuple[str, Callable[[], list[float | None]]]] = {
        "encoder, openvino / onnxruntime": (
            "openvino",
            lambda: encoders(bundle, data[:_ROWS], settings.rounds),
        ),
        "step / eager step": (
            "torch",
            lambda: steps(bundle, plan.checkpoint, data, chosen, settings.rounds),
        ),
    }
    for name, (library, take) in bare.items():
        say(f"{name} ...")
        if find_spec(library) is None:
            missing[name] = f"{library} is not installed"
            continue
        try:
            found[name] = take()
        except HmerError as error:
            missing[name] = str(error)
    return found, missing


def report(found: Found) -> dict[str, dict[str, float]]:
    """Median and quartiles of each ratio, for JSON."""
    seen = {name: spread(found[name]) for name in RATIOS if name in found}
    return {name: one.to_dict() for name, one in seen.items() if one is not None}


def read_baseline(path: Path) -> dict[str, Any] | None:
    """An earlier result; ``None`` if there is no file. Raises ``BadParameter``."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadParameter(f"{path} is not a JSON file ({error}).") from None
    if not isinstance(found, dict) or found.get("benchmark") != KIND:
        raise BadParameter(f"{path} is no baseline. Write one with: hmer-bench quick --update")
    if found.get("version") != VERSION:
        raise BadParameter(
            f"{path} is of version {found.get('version')}, and this is version {VERSION}. Write "
            "it anew with: hmer-bench quick --update"
        )
    for name, one in dict(found.get("ratios") or {}).items():
        if not isinstance(one, dict) or not {"median", "q1", "q3"} <= one.keys():
            raise BadParameter(f"{path} lacks the quartiles of {name!r}. Write it anew.")
    return found


def verdict(name: str, now: Mapping[str, float], then: Mapping[str, float] | None) -> str:
    """``better``, ``worse``, ``as before``, or ``new``."""
    if then is None:
        return "new"
    margin = max(then["q3"] - then["q1"], LEAST * then["median"])
    if then["q1"] - margin <= now["median"] <= then["q3"] + margin:
        return "as before"
    more = now["median"] > then["median"]
    return "better" if more == RATIOS[name].more_is_better else "worse"


def table(
    now: Mapping[str, Mapping[str, float]],
    missing: Mapping[str, str],
    baseline: Mapping[str, Any] | None,
) -> Table:
    """One row a ratio."""
    before: Mapping[str, Mapping[str, float]] = baseline["ratios"] if baseline else {}
    rows = []
    for name, ratio in RATIOS.items():
        then, found = before.get(name), now.get(name)
        shown = f"not measured: {missing.get(name, 'no reason')}"
        if found is not None:
            shown = verdict(name, found, then) if baseline else "-"
        better = "more" if ratio.more_is_better else "less"
        rows.append((ratio.title, better, _text(found), _text(then), shown))
    header = ("ratio", "better is", "now", "baseline", "")
    return Table("Ratios, medians and quartiles", header, tuple(rows), 2)


def _text(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "-"
    return f"{found['median']:.2f} ({found['q1']:.2f} to {found['q3']:.2f})"
