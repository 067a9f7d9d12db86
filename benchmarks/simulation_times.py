"""How long each part of a request takes: what a simulation of servers is calibrated by.

One JSON document (``hmer-bench simulate --output``, its part ``service``), or one that was
written by hand for a machine that is not here, such as one with a GPU::

    {"benchmark": "service", "version": 1, "device": "a name", "cpus": 2, "ready_s": 3.0,
     "slots": 16, "max_queue": 256, "k": 4, "server_ms": 4.0,
     "encoder": {"workers": 1, "batch_pixels": 24000,
                 "points": [{"threads": 2, "batch": 1, "height": 64, "width": 256, "ms": 9.5}]},
     "step": {"join_ms": 0.1, "points": [{"rows": 1, "positions": 64, "ms": 1.5}]},
     "requests": [{"height": 64, "width": 256, "positions": 64, "tokens": 12, "front_ms": 3.0}]}

``positions``: of features, of all rows of a call, or of a request; without them a step's time
depends on the number of its rows alone. ``cpus`` 0: a device of its own, whose calls do not compete
with the rest of the server for CPUs.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmer.errors import BadParameter, MissingInput

KIND, VERSION = "service", 1


@dataclass(frozen=True)
class Kind:
    """One real request: its padded picture in pixels, tokens with ``<eos>``, and reading it.

    ``positions``: of its features, 0 where they were not measured.
    """

    height: int
    width: int
    tokens: int
    front_s: float
    positions: int = 0

    @property
    def pixels(self) -> int:
        """Of the padded picture."""
        return self.height * self.width


@dataclass(frozen=True)
class EncoderPoint:
    """A measured call: with so many threads, so many pictures of one padded size."""

    threads: int
    batch: int
    height: int
    width: int
    ms: float


@dataclass(frozen=True)
class ServiceTimes:
    """Measured times of one replica's parts, and the settings that they were measured with.

    ``server_s``: CPU seconds that a served request costs beyond its parts (transport, hops,
    copies). ``join_s``: added to a step's call for each formula that joins it. ``shared_speed``:
    see ``benchmarks.simulation_cpu``; 1 unless it was fitted to a server that is full.
    ``max_wait_s``: of ``hmer-export repository --max-wait``; 0 lets everybody wait.
    """

    device: str
    cpus: int
    ready_s: float
    slots: int
    max_queue: int
    k: int
    server_s: float
    workers: int
    batch_pixels: int
    points: tuple[EncoderPoint, ...]
    steps: tuple[tuple[int, int, float], ...]  # rows, feature positions, seconds a call
    join_s: float
    kinds: tuple[Kind, ...]
    shared_speed: float = 1.0
    max_wait_s: float = 0.0
    about: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def _lines(self) -> dict[int, dict[int, tuple[float, float]]]:
        """Threads -> batch -> seconds of a call as ``a + b * pixels of one picture``."""
        groups: defaultdict[tuple[int, int], list[EncoderPoint]] = defaultdict(list)
        for point in self.points:
            groups[point.threads, point.batch].append(point)
        lines: defaultdict[int, dict[int, tuple[float, float]]] = defaultdict(dict)
        for (threads, batch), points in sorted(groups.items()):
            lines[threads][batch] = _line(
                [p.height * p.width for p in points], [p.ms / 1e3 for p in points]
            )
        return dict(lines)

    @cached_property
    def threads(self) -> int:
        """The most threads of one call of the encoder."""
        return max(self._lines)

    def encode_s(self, pixels: int, batch: int, cpus: float | None = None) -> float:
        """Seconds of a call for ``batch`` pictures of ``pixels`` each on ``cpus`` CPUs.

        ``cpus`` (default: as many as a call has threads) need not be whole: a share of the
        machine. The speed is interpolated between the measured numbers of threads, and below one
        it is that share of one's.
        """
        return _encode_s(self, pixels, batch, self.threads if cpus is None else cpus)

    @cached_property
    def _step_line(self) -> NDArray[np.float64] | None:
        """``a, b, c >= 0`` of a call's seconds ``a + b * rows + c * positions``, if measured."""
        if not all(positions for _, positions, _ in self.steps):
            return None
        design = np.array([(1, rows, positions) for rows, positions, _ in self.steps], np.float64)
        seconds = np.array([found for _, _, found in self.steps])
        if not seconds.min() > 0:
            return None
        line, used = np.zeros(3), [0, 1, 2]
        while used:  # each call by its own size; a term that would be negative is left out
            weighed = design[:, used] / seconds[:, None]
            found, *_ = np.linalg.lstsq(weighed, np.ones(len(seconds)), rcond=None)
            if found.min() >= 0:
                line[used] = found
                break
            del used[int(found.argmin())]
        return line

    def step_s(self, rows: int, joins: int = 0, positions: int = 0) -> float:
        """Seconds of a call of the step with ``rows`` formulas, of which ``joins`` are new.

        ``positions``: of the features of all rows; of use where calls of several were measured.
        """
        if positions and (line := self._step_line) is not None:
            return float(line @ (1, rows, positions)) + joins * self.join_s
        known, _, seconds = zip(*self.steps, strict=True)
        if rows > known[-1]:  # the last two points' slope, or proportional to one point
            before = (known[-2], seconds[-2]) if len(known) > 1 else (0, 0.0)
            slope: float = (seconds[-1] - before[1]) / max(1, known[-1] - before[0])
            found = float(seconds[-1]) + max(0.0, slope) * (rows - known[-1])
        else:
            found = float(np.interp(rows, known, seconds))
        return float(found + joins * self.join_s)

    def __hash__(self) -> int:
        """By identity: the document never changes."""
        return id(self)

    def __eq__(self, other: object) -> bool:
        """By identity."""
        return self is other

    @classmethod
    def from_dict(cls, found: Any, name: str = "the document") -> ServiceTimes:
        """Check a document of this kind. Raises ``BadParameter`` naming what is wrong with it."""
        _check_kind(found, name)
        try:
            encoder, step = found["encoder"], found["step"]
            times = cls(
                str(found["device"]),
                int(found["cpus"]),
                float(found["ready_s"]),
                int(found["slots"]),
                int(found["max_queue"]),
                int(found["k"]),
                float(found["server_ms"]) / 1e3,
                int(encoder["workers"]),
                int(encoder["batch_pixels"]),
                tuple(EncoderPoint(**point) for point in encoder["points"]),
                tuple(
                    sorted(
                        (int(p["rows"]), int(p.get("positions", 0)), float(p["ms"]) / 1e3)
                        for p in step["points"]
                    )
                ),
                float(step["join_ms"]) / 1e3,
                tuple(
                    Kind(
                        int(r["height"]),
                        int(r["width"]),
                        int(r["tokens"]),
                        float(r["front_ms"]) / 1e3,
                        int(r.get("positions", 0)),
                    )
                    for r in found["requests"]
                ),
                float(found.get("shared_speed", 1.0)),
                float(found.get("max_wait_ms", 0.0)) / 1e3,
                found,
            )
        except KeyError as error:
            raise BadParameter(f"{name} has no field {error}; see hmer-bench simulate.") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise BadParameter(f"{name} cannot be used: {error}.") from None
        times._check(name)
        return times

    def _check(self, name: str) -> None:
        for what, there in (
            ("measured calls of the encoder", self.points),
            ("measured calls of the step", self.steps),
            ("requests", self.kinds),
        ):
            if not there:
                raise BadParameter(f"{name} has no {what}.")
        figures = [
            *(p.ms for p in self.points),
            *(s for _, _, s in self.steps),
            *(k.front_s for k in self.kinds),
            *(self.server_s, self.join_s, self.ready_s, self.max_wait_s),
        ]
        if not all(math.isfinite(f) and f >= 0 for f in figures):
            raise BadParameter(f"{name} has a time that is negative or no number.")
        if not 0 < self.shared_speed < math.inf:
            raise BadParameter(f"{name} has a shared_speed that is no positive number.")
        whole = [
            *(self.slots, self.max_queue, self.k, self.workers, self.cpus + 1, self.batch_pixels),
            *(min(p.threads, p.batch, p.height, p.width) for p in self.points),
            *(rows for rows, _, _ in self.steps),
            *(min(k.height, k.width, k.tokens) for k in self.kinds),
        ]
        if min(whole) < 1:
            raise BadParameter(f"{name} has a size or a number of threads or rows below 1.")


def scaled(document: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """A document of this kind in which all work takes ``factor`` times as long."""

    def slower(entries: Sequence[Mapping[str, Any]], key: str = "ms") -> list[dict[str, Any]]:
        return [{**entry, key: entry[key] * factor} for entry in entries]

    encoder, step = document["encoder"], document["step"]
    return {
        **document,
        "pace": factor * document.get("pace", 1.0),
        "server_ms": document["server_ms"] * factor,
        "encoder": {**encoder, "points": slower(encoder["points"])},
        "step": {"join_ms": step["join_ms"] * factor, "points": slower(step["points"])},
        "requests": slower(document["requests"], "front_ms"),
    }


def read_times(path: Path) -> ServiceTimes:
    """A document of this kind, or the one inside a result of ``hmer-bench simulate``.

    Raises ``MissingInput`` or ``BadParameter``.
    """
    found = read_document(path)
    if isinstance(found, dict) and found.get("benchmark") == "simulate":
        found = found.get("service")
    return ServiceTimes.from_dict(found, str(path))


def read_document(path: Path) -> Any:
    """The JSON in ``path``. Raises ``MissingInput`` or ``BadParameter``."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingInput(f"There is no file {path}.") from None
    except (OSError, ValueError) as error:
        raise BadParameter(f"{path} is not a JSON file ({error}).") from None


def _check_kind(found: Any, name: str) -> None:
    if not isinstance(found, dict) or found.get("benchmark") != KIND:
        raise BadParameter(
            f"{name} holds no service times (there is no benchmark: {KIND} in it). Measure them "
            "with: hmer-bench simulate --output FILE"
        )
    if found.get("version") != VERSION:
        raise BadParameter(
            f"{name} is of version {found.get('version')}, and this is version {VERSION}. "
            "Measure again."
        )


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """``a, b >= 0`` of the line that is nearest to the points, each by its own size."""
    xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if not ys.min() > 0:  # a part that takes no time
        return float(ys.mean()), 0.0
    weights = 1.0 / ys
    if len(set(x)) > 1:
        design = np.stack([np.ones_like(xs), xs], axis=1) * weights[:, None]
        (a, b), *_ = np.linalg.lstsq(design, ys * weights, rcond=None)
        if a >= 0 and b >= 0:
            return float(a), float(b)
        if b < 0:
            return float(ys.mean()), 0.0
    slope = float((weights * xs).sum() / ((weights * xs) ** 2).sum())
    return 0.0, slope


@lru_cache(maxsize=65536)
def _encode_s(times: ServiceTimes, pixels: int, batch: int, cpus: float) -> float:
    counts = sorted(times._lines)
    speeds = [1.0 / max(_call_s(times._lines[count], pixels, batch), 1e-12) for count in counts]
    if cpus < counts[0]:
        return counts[0] / cpus / speeds[0]
    return 1.0 / float(np.interp(cpus, counts, speeds))


def _call_s(lines: Mapping[int, tuple[float, float]], pixels: int, batch: int) -> float:
    known = sorted(lines)
    seconds = [lines[b][0] + lines[b][1] * pixels for b in known]
    if batch > known[-1]:
        return seconds[-1] * batch / known[-1]
    return float(np.interp(batch, known, seconds))
