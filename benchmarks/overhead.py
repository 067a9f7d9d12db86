"""What the client costs: a request through it beside the same request by tritonclient alone.

Both send one file's bytes to a server that answers at once (``benchmarks.overhead_server``), and
read the same outputs: ``ours`` by ``client.Recognizer``, from a path to a ``Recognition``; ``raw``
by Triton's own client library, from the path to the values of the outputs. They take turns, a round
each, so that what slows the machine for a while slows both.
"""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import ratios, spread
from benchmarks.overhead_server import ANSWER, grpc_instant, http_instant
from client import Recognizer
from hmer.contract import INPUT, RECOGNIZE
from hmer.errors import BadParameter, MissingDependency
from hmer.tables import Table

GRPC, HTTP, SHARED = "gRPC", "HTTP", "shared memory"
WIRES = (GRPC, HTTP, SHARED)
WARM_UP = 20  # requests of each way that are not counted

Send = Callable[[], Sequence[Any]]
"""One request: the values of latex, tokens, score, confidence and alternatives."""


@dataclass(frozen=True)
class Row:
    """One wire's rounds: the median milliseconds of a request in each, of either way."""

    wire: str
    ours: tuple[float, ...]
    raw: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: medians over the rounds, with quartiles. ``ratio``: ours by raw, in a round."""
        extra = [a - b for a, b in zip(self.ours, self.raw, strict=True)]
        found = {
            "ours_ms": spread(self.ours),
            "raw_ms": spread(self.raw),
            "extra_ms": spread(extra),
            "ratio": spread(ratios(self.ours, self.raw)),
        }
        return {"wire": self.wire} | {n: s.to_dict() for n, s in found.items() if s is not None}


def measure(wire: str, path: Path, rounds: int, requests: int) -> Row:
    """``rounds`` of ``requests`` of each way. Raises ``BadParameter`` or ``MissingDependency``."""
    if rounds < 1 or requests < 1:
        raise BadParameter("A measurement needs at least one round of one request.")
    with ExitStack() as stack:
        url = stack.enter_context(http_instant() if wire == HTTP else grpc_instant())
        ways = (
            stack.enter_context(ours(wire, url, path)),
            stack.enter_context(raw(wire, url, path)),
        )
        found: tuple[list[float], list[float]] = ([], [])
        for send in ways:
            check(send())
            for _ in range(WARM_UP):
                send()
        for number in range(rounds):
            for way in (0, 1) if number % 2 == 0 else (1, 0):
                found[way].append(_median_ms(ways[way], requests))
    return Row(wire, tuple(found[0]), tuple(found[1]))


def _median_ms(send: Send, requests: int) -> float:
    taken = []
    for _ in range(requests):
        began = time.perf_counter()
        send()
        taken.append((time.perf_counter() - began) * 1e3)
    return statistics.median(taken)


def check(values: Sequence[Any]) -> None:
    """Raise ``BadParameter`` unless ``values`` are what the server answers."""
    expected = [str(value) for value in ANSWER.values()]
    if [str(value) for value in values] != expected:
        raise BadParameter(f"The answer was read as {list(values)}, not as {expected}.")


@contextmanager
def ours(wire: str, url: str, path: Path) -> Iterator[Send]:
    """``client.Recognizer``."""
    with Recognizer(url, shared_memory=wire == SHARED) as recognizer:

        def send() -> Sequence[Any]:
            found = recognizer.recognize(path)
            tokens = " ".join(found.tokens)
            return found.latex, tokens, found.score, found.confidence, list(found.alternatives)

        yield send


@contextmanager
def raw(wire: str, url: str, path: Path) -> Iterator[Send]:
    """Triton's client library, with the deadline and the id that ours sends, too."""
    library = _library("tritonclient.http" if wire == HTTP else "tritonclient.grpc")
    with ExitStack() as stack:
        client = library.InferenceServerClient(url.removeprefix("http://"))
        stack.callback(client.close)
        place = stack.enter_context(_region(client, path)) if wire == SHARED else None

        def send() -> Sequence[Any]:
            tensor = library.InferInput(INPUT.name, [1, 1], "BYTES")
            value = np.array([[path.read_bytes()]], np.object_)
            if place is None:
                tensor.set_data_from_numpy(value)
            else:
                tensor.set_shared_memory(place[0], place[1](value))
            answer = client.infer(
                RECOGNIZE, [tensor], request_id=uuid.uuid4().hex, timeout=30_000_000
            )
            values = [answer.as_numpy(name).reshape(-1)[0] for name in ANSWER]
            return [v.decode("utf-8") if isinstance(v, bytes) else v for v in values]

        yield send


@contextmanager
def _region(client: Any, path: Path) -> Iterator[tuple[str, Callable[[Any], int]]]:
    """A registered region's name, and what writes a tensor to it and says how long it is."""
    memory = _library("tritonclient.utils.shared_memory")
    utils = _library("tritonclient.utils")
    name = f"hmer-raw-{uuid.uuid4().hex}"
    size = path.stat().st_size + 4
    region = memory.create_shared_memory_region(name, f"/{name}", size)
    try:
        client.register_system_shared_memory(name, f"/{name}", size)

        def write(value: Any) -> int:
            tensor = utils.serialize_byte_tensor(value)
            memory.set_shared_memory_region(region, [tensor])
            return len(tensor.item())

        yield name, write
        client.unregister_system_shared_memory(name)
    finally:
        memory.destroy_shared_memory_region(region)


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingDependency(
            f"The comparison needs all of tritonclient ({error}): pip install 'tritonclient[all]'."
        ) from error


def table(rows: Sequence[Row]) -> Table:
    """The published table."""
    lines = []
    for row in rows:
        found = row.to_dict()
        cells = []
        for name, digits in (("ours_ms", 3), ("raw_ms", 3), ("extra_ms", 3), ("ratio", 2)):
            one = found[name]
            low, middle, high = (f"{one[key]:.{digits}f}" for key in ("q1", "median", "q3"))
            cells.append(f"{middle} ({low} to {high})")
        lines.append((row.wire, *cells))
    header = ("wire", "hmer client, ms", "tritonclient, ms", "difference, ms", "ratio")
    return Table("", header, tuple(lines), figures=1)
