"""What can be tuned, and a goal in one number."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.tune_search import Score, Settings, Space
from export.config import RepositoryOptions
from export.targets import Candidate
from hmer.errors import BadParameter
from hmer.runtime import ONNXRUNTIME

RUNTIME, THREADS, WORKERS, STEP_THREADS = "runtime", "threads", "encoder_workers", "step_threads"
K, SLOTS, PIXELS, DELAY = "k", "slots", "batch_pixels", "queue_delay_us"
UNORDERED = (RUNTIME,)
_SLOTS = (4, 8, 16, 32)
USUAL = 0  # workers as the server chooses them, which no number stands for (hmer.encoding)
_KS = (1, 2, 4, 8)
_PIXELS = (6_000, 24_000, 96_000)
_DELAYS = (0, 500, 2_000)


def space_of(runtimes: Sequence[Candidate], steps: Sequence[str], cpus: int, ks: bool) -> Space:
    """The values of every setting on a machine with ``cpus`` CPUs.

    ``runtimes`` of the encoder and ``steps`` of the decoder that can run here. ``ks``: whether
    graphs of other numbers of tokens a call can be exported. A setting with one value is left
    out.
    """
    threads = sorted({1, *(n for n in (2, 4, 8, 16, 32) if n < cpus), cpus})
    space: dict[str, Sequence[Any]] = {
        RUNTIME: [[one.target, one.precision, step] for one in runtimes for step in steps],
        THREADS: threads,
        WORKERS: [USUAL, *sorted({1, 2, 4, *(n for n in (8,) if n <= cpus)})],
        K: _KS if ks else (),
        SLOTS: _SLOTS,
        STEP_THREADS: [n for n in threads if n <= max(2, cpus // 2)],
        PIXELS: _PIXELS,
        DELAY: _DELAYS,
    }
    return {name: values for name, values in space.items() if len(values) > 1}


def applies(name: str, settings: Settings) -> bool:
    """Calls of an OpenVINO runner take turns, so workers are of no use there."""
    return bool(name != WORKERS or settings[RUNTIME][0] == ONNXRUNTIME)


def settings_of(options: RepositoryOptions, k: int, cpus: int, pixels: int) -> dict[str, Any]:
    """The settings that resolved ``options`` stand for, with numbers in place of 0.

    ``pixels``: of the encoder's batches by default. The workers may be ``USUAL``.
    """
    threads = options.threads or cpus
    return {
        RUNTIME: [options.target, options.precision, options.step_target or options.target],
        THREADS: threads,
        WORKERS: options.encoder_workers,
        K: k,
        SLOTS: options.slots,
        STEP_THREADS: options.step_threads,
        PIXELS: options.batch_pixels or pixels,
        DELAY: options.queue_delay_us,
    }


def options_of(
    settings: Settings, max_wait_ms: int = RepositoryOptions.max_wait_ms
) -> RepositoryOptions:
    """The repository of these settings. ``k`` is the bundle's, not its."""
    target, precision, step_target = settings[RUNTIME]
    return RepositoryOptions(
        target=target,
        precision="bf16" if precision == "bf16" else "fp32",
        step_target=step_target,
        threads=settings[THREADS],
        encoder_workers=settings[WORKERS] if target == ONNXRUNTIME else 0,
        slots=settings[SLOTS],
        step_threads=settings[STEP_THREADS],
        batch_pixels=settings[PIXELS],
        queue_delay_us=settings[DELAY],
        max_wait_ms=max_wait_ms,
    )


def include(space: Space, start: Settings) -> Space:
    """``space`` with the values of ``start`` among them, in order."""
    found: dict[str, Sequence[Any]] = {}
    for name, values in space.items():
        there = list(values) if start[name] in values else [*values, start[name]]
        found[name] = there if name in UNORDERED else sorted(there)
    return found


def command(settings: Settings, bundle: str, output: str) -> list[str]:
    """``hmer-export repository`` for these settings, from a bundle with their ``k``."""
    options = options_of(settings)
    arguments = {
        "--target": options.target,
        "--step-target": options.step_target,
        "--precision": options.precision if options.precision != "fp32" else None,
        "--threads": options.threads,
        "--encoder-workers": options.encoder_workers or None,
        "--slots": options.slots,
        "--step-threads": options.step_threads,
        "--batch-pixels": options.batch_pixels,
        "--queue-delay": options.queue_delay_us or None,
        "--output": output,
    }
    given = [str(part) for pair in arguments.items() if pair[1] is not None for part in pair]
    return ["hmer-export", "repository", bundle, *given]


@dataclass(frozen=True)
class Goal:
    """What is made large: answers a second, or those with a percentile within a bound."""

    percentile: str | None = None
    bound_ms: float = 0.0

    @classmethod
    def parse(cls, text: str | None) -> Goal:
        """``p95=200ms``; ``None`` for throughput. Raises ``BadParameter``."""
        if text is None:
            return cls()
        match = re.fullmatch(r"(p50|p90|p95|p99) *= *(\d+(?:\.\d+)?) *(ms|s)", text.strip())
        if match is None or float(match[2]) <= 0:
            raise BadParameter(
                f"--bound is {text!r}; write a percentile (p50, p90, p95 or p99) and a time, such "
                "as p95=200ms."
            )
        return cls(match[1], float(match[2]) * (1000 if match[3] == "s" else 1))

    @property
    def name(self) -> str:
        """For tables."""
        if self.percentile is None:
            return "answers a second"
        return f"answers a second at {self.percentile} <= {self.bound_ms:g} ms"

    def levels(self, most: int) -> tuple[int, ...]:
        """Requests under way at which is measured."""
        if self.percentile is None:
            return (most,)
        return (*(n for n in (1, 2, 4, 8, 16, 32, 64) if n < most), most)

    def score(self, levels: Sequence[Mapping[str, Any]]) -> Score:
        """Of what the levels showed, in ascending order: ``concurrency``, ``throughput`` and
        ``latency_ms``.

        With a bound: the most answers a second within it, between two levels by interpolation.
        If one request at a time misses the bound, the score is negative: by how many times.
        """
        if self.percentile is None:
            return Score(float(levels[-1]["throughput"]), {"levels": list(levels)})
        figures = {"levels": list(levels), "met": True}
        value, before = 0.0, None
        for level in levels:
            ms, throughput = float(level["latency_ms"][self.percentile]), level["throughput"]
            if ms > self.bound_ms:
                if before is None:
                    return Score(-ms / self.bound_ms, {**figures, "met": False})
                last, slower = before
                part = (self.bound_ms - slower) / (ms - slower) if ms > slower else 0.0
                return Score(max(value, last + part * (throughput - last)), figures)
            value, before = max(value, throughput), (throughput, ms)
        return Score(value, figures)
