"""``--target auto``: which CPU runtime runs a bundle fastest here, by measurement.

Whether OpenVINO's bfloat16 pays cannot be told from the CPU's name or flags: units that are
emulated, or shared with other guests of a machine, made it three times slower than float32
where the same code was three times faster elsewhere. So everything at hand is timed on the
bundle's own graphs, and the figures are kept with the choice.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

from export.config import RepositoryOptions
from export.timing import ROWS, SIZES, Clock, Feeds, side_by_side, workload
from hmer.bundle import ENCODER_FILE, STEP_FILE, Bundle
from hmer.errors import BundleError, ExportError, HmerError
from hmer.runtime import ONNXRUNTIME, OPENVINO, Runner, open_runner, openvino_core, thread_count
from hmer.tables import render_table

# Another runtime than the simplest must need less than this share of its time. Not just less:
# the times are of sizes that were seen before, and for a new one OpenVINO first prepares its
# operators, which it keeps. After 124 drawings of CROHME, of 95 sizes, its encoder had taken as
# much time as ONNX Runtime's and held 380 MB instead of 100.
GAIN = 0.85

# What opens a graph for a candidate.
Open = Callable[[str, str, str, int], Runner]  # target, file, precision, threads


@dataclass(frozen=True)
class Candidate:
    """A runtime and what it is asked to compute in; ``name`` for tables."""

    target: str
    precision: str

    @property
    def name(self) -> str:
        """For example ``openvino bf16``."""
        return f"{self.target} {self.precision}"


@dataclass(frozen=True)
class Timing:
    """Milliseconds, means over ``SIZES`` of medians: one image through the encoder, one call of
    ``decoder_step`` with ``ROWS`` rows. ``None`` where it was not run, for ``reason`` if it
    cannot be."""

    candidate: Candidate
    encoder_ms: float | None
    step_ms: float | None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **asdict(self.candidate),
            "encoder_ms": self.encoder_ms,
            "step_ms": self.step_ms,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Choice:
    """What was chosen for the encoder and for the step, and the figures it was chosen by."""

    encoder: Candidate
    step: Candidate
    timings: tuple[Timing, ...]
    threads: int

    def to_dict(self) -> dict[str, Any]:
        """For ``repository.json``."""
        return {
            "encoder": asdict(self.encoder),
            "step": asdict(self.step),
            "measured": [timing.to_dict() for timing in self.timings],
            "sizes": [list(size) for size in SIZES],
            "rows": ROWS,
            "threads": self.threads,
            "cpu": {"machine": platform.machine(), "count": os.cpu_count()},
        }


def candidates(bundle: Bundle, has_bf16: Callable[[], bool] | None = None) -> list[Candidate]:
    """What may run ``bundle``'s graphs here; the simplest, which wins a tie, first.

    Graphs compute in the bundle's own precision; OpenVINO may in addition be asked for bf16
    where the CPU has units for it.
    """
    found = []
    if importlib.util.find_spec(ONNXRUNTIME) is not None and bundle.precision != "bf16":
        found.append(Candidate(ONNXRUNTIME, bundle.precision))
    if importlib.util.find_spec(OPENVINO) is not None:
        found.append(Candidate(OPENVINO, bundle.precision))
        if bundle.precision != "bf16" and (has_bf16 or openvino_has_bf16)():
            found.append(Candidate(OPENVINO, "bf16"))
    return found


def choose(
    bundle: Bundle,
    *,
    threads: int = 0,
    clock: Clock = time.perf_counter,
    among: Sequence[Candidate] | None = None,
    open_graph: Open | None = None,
) -> Choice:
    """Time ``bundle``'s encoder and step in all candidates, and choose one for each.

    ``threads`` of the encoder, 0 for every CPU; a step has one. ``clock`` gives seconds. Raises
    ``ExportError`` if no runtime can run the graphs.
    """
    among = candidates(bundle) if among is None else among
    if not among:
        raise ExportError(
            "No CPU runtime is installed that can run this bundle. Install one with: "
            "pip install 'hmer[serve]' or 'hmer[openvino]'"
        )
    threads = thread_count(threads)

    def opened(target: str, file: str, precision: str, count: int) -> Runner:
        return open_runner(target, bundle.file(file), count, precision)

    work, open_graph = workload(bundle), open_graph or opened
    encoder = time_graphs(among, ENCODER_FILE, work.encoder, threads, open_graph, clock)
    # A step is bound by reading its weights: bf16 on request gains nothing there.
    plain = [candidate for candidate in among if candidate.precision == bundle.precision]
    step = time_graphs(plain, STEP_FILE, work.step, 1, open_graph, clock)
    timings = tuple(
        Timing(c, _ms(encoder[c]), _ms(step.get(c)), _reason(encoder[c]) or _reason(step.get(c)))
        for c in among
    )
    return Choice(_best(among, encoder), _best(plain, step), timings, threads)


def resolve(options: RepositoryOptions, choice: Choice) -> RepositoryOptions:
    """``options`` with ``choice`` in place of ``auto``."""
    return replace(
        options,
        target=choice.encoder.target,
        precision="bf16" if choice.encoder.precision == "bf16" else "fp32",
        step_target=options.step_target or choice.step.target,
    )


def table(choice: Choice) -> str:
    """What was measured, and the choice, for a terminal."""
    rows = [
        (t.candidate.name, _shown(t.encoder_ms), _shown(t.step_ms), t.reason)
        for t in choice.timings
    ]
    titles = ("measured", "encoder ms", "step ms", "")
    return (
        f"{render_table(titles, rows, right={1, 2})}\n"
        f"Chosen: {choice.encoder.name} for the encoder, {choice.step.target} for the decoder."
    )


def openvino_has_bf16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this CPU, at whatever speed."""
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


Times = dict[Candidate, "float | HmerError"]


def time_graphs(
    among: Sequence[Candidate],
    file: str,
    feeds: Sequence[Feeds],
    threads: int,
    open_graph: Open,
    clock: Clock = time.perf_counter,
) -> Times:
    """The graph ``file`` in all of ``among``, in turns: mean over ``feeds`` of the median
    seconds a call, or the error of a candidate that cannot run it."""
    found: Times = {}
    with ExitStack() as stack:
        runners: dict[Candidate, Runner] = {}
        for candidate in among:
            try:
                runner = open_graph(candidate.target, file, candidate.precision, threads)
                runners[candidate] = stack.enter_context(runner)
                runner.infer(feeds[0])
            except HmerError as error:
                runners.pop(candidate, None)
                found[candidate] = error
        totals = dict.fromkeys(runners, 0.0)
        for feed in feeds:
            calls = {c.name: _call(runner, feed) for c, runner in runners.items()}
            medians = side_by_side(calls, clock=clock)
            for candidate in runners:
                totals[candidate] += medians[candidate.name]
    return found | {candidate: total / len(feeds) for candidate, total in totals.items()}


def _call(runner: Runner, feed: Feeds) -> Callable[[], object]:
    return lambda: runner.infer(feed)


def _best(among: Sequence[Candidate], times: Times) -> Candidate:
    """The fastest; the earlier of two that are as good as equal."""
    best: tuple[Candidate, float] | None = None
    for candidate in among:
        seconds = times[candidate]
        if isinstance(seconds, float) and (best is None or seconds < GAIN * best[1]):
            best = candidate, seconds
    if best is None:
        raise BundleError(
            "No runtime here can run the bundle's graphs: "
            + " ".join(str(times[candidate]) for candidate in among)
        )
    return best[0]


def _ms(value: float | HmerError | None) -> float | None:
    return round(value * 1e3, 3) if isinstance(value, float) else None


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _reason(value: float | HmerError | None) -> str:
    return str(value) if isinstance(value, HmerError) else ""
