"""A running server's own metrics page: counters between two moments, gauges under load.

The product's models publish theirs once a second (``model_repository.decode.metrics``). A counter
is exact once a second has passed; a gauge is a glance, and of a load that lasts only seconds there
are few.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from client.transport import parse_url
from hmer.errors import MissingDependency, ServerUnavailable

PUBLISHED_S = 1.2  # after so long what has happened is on the page
_EVERY_S = 0.5
_TIMEOUT_S = 5.0
# Names for a report -> gauges of the page.
GAUGES = {
    "slots_in_use": "hmer_decode_slots_in_use",
    "waiting_for_a_slot": "hmer_decode_queue_length",
    "workers_in_use": "hmer_recognize_workers_in_use",
    "waiting_for_a_worker": "hmer_recognize_queue_length",
}
_SIZES = {"slots": "hmer_decode_slots", "workers": "hmer_recognize_workers"}
# Labels of the models whose metrics count: the stream's twin is never asked.
_MODELS = ("recognize", "decode")

Values = dict[str, float]


def metrics_address(url: str) -> str:
    """Where a server that is asked at ``url`` has its metrics, by Triton's usual order of ports.

    HTTP, gRPC, metrics: one above another. Raises ``BadParameter`` for what is no address.
    """
    address = parse_url(url)
    port = address.port + (1 if address.scheme == "grpc" else 2)
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"http://{host}:{port}/metrics"


def read_metrics(address: str) -> Values:
    """The values by name without "_total"; histograms by their sums and counts alone.

    Of a name that several versions have, the sum. Raises ``ServerUnavailable`` where there is no
    such page, and ``MissingDependency``.
    """
    parser = _parser()
    try:
        with urllib.request.urlopen(address, timeout=_TIMEOUT_S) as page:
            text = page.read().decode("utf-8")
        families = list(parser.text_string_to_metric_families(text))
    except (OSError, ValueError) as error:  # URLError is an OSError
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise ServerUnavailable(f"There are no metrics at {address}: {reason}.") from None
    found: Values = {}
    for family in families:
        for sample in family.samples:
            if sample.labels.get("model", _MODELS[0]) in _MODELS and "le" not in sample.labels:
                name = sample.name.removesuffix("_total")  # the parser adds it to counters
                found[name] = found.get(name, 0.0) + float(sample.value)
    return found


def between(before: Mapping[str, float], after: Mapping[str, float]) -> Values:
    """By how much every value grew."""
    return {name: value - before.get(name, 0.0) for name, value in after.items()}


def mean_ms(grown: Mapping[str, float], histogram: str) -> float | None:
    """The mean of what a histogram of seconds took in, in milliseconds; ``None`` of nothing."""
    count = grown.get(f"{histogram}_count", 0.0)
    return grown[f"{histogram}_sum"] / count * 1e3 if count > 0 else None


@dataclass
class Watched:
    """Glances at a server under load, and its counters before and after."""

    address: str
    glances: list[Values] = field(default_factory=list)
    before: Values = field(default_factory=dict)
    after: Values = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: gauges as mean and most of the glances, and what the counters say exactly.

        ``rows_a_step``: slots that were occupied in the mean step. ``wasted``: share of the
        tokens that were computed after their formula's end.
        """
        found: dict[str, Any] = {"glances": len(self.glances)}
        for name, metric in _SIZES.items():
            found[name] = self.after.get(metric)
        for name, metric in GAUGES.items():
            values = [glance[metric] for glance in self.glances if metric in glance]
            found[name] = (
                {"mean": statistics.fmean(values), "most": max(values)} if values else None
            )
        grown = between(self.before, self.after)
        steps, tokens = (grown.get(f"hmer_decode_{n}", 0.0) for n in ("steps", "tokens"))
        wasted = grown.get("hmer_decode_wasted", 0.0)
        found["rows_a_step"] = grown.get("hmer_decode_rows", 0.0) / steps if steps else None
        found["wasted"] = wasted / (tokens + wasted) if tokens + wasted else None
        found["queue_ms"] = mean_ms(grown, "hmer_decode_queue_seconds")
        found["refused"] = sum(
            grown.get(f"hmer_{part}_rejected", 0.0) for part in ("decode", "recognize")
        )
        return found


@asynccontextmanager
async def watching(address: str | None) -> AsyncIterator[Watched | None]:
    """Look at the page every half second while the body runs; ``None`` for no ``address``.

    The first look is once the server has published what it has under way: a body that is shorter
    has none.

    Afterwards it waits until the server has published what happened.
    """
    if address is None:
        yield None
        return
    await asyncio.sleep(PUBLISHED_S)  # what was before it, such as a warm-up, is published first
    watched = Watched(address, before=await asyncio.to_thread(read_metrics, address))

    async def look() -> None:
        await asyncio.sleep(PUBLISHED_S - _EVERY_S)  # until then gauges are those of before
        while True:
            await asyncio.sleep(_EVERY_S)
            with contextlib.suppress(ServerUnavailable):  # one that is too busy for it
                watched.glances.append(await asyncio.to_thread(read_metrics, address))

    task = asyncio.create_task(look())
    try:
        yield watched
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    await asyncio.sleep(PUBLISHED_S)
    watched.after = await asyncio.to_thread(read_metrics, address)


def settled(address: str) -> Values:
    """The values once all that has happened is on the page."""
    time.sleep(PUBLISHED_S)
    return read_metrics(address)


def _parser() -> Any:
    try:
        return import_module("prometheus_client.parser")
    except ImportError as error:
        raise MissingDependency(
            "A server's metrics are read with prometheus-client. Install it with: "
            "pip install 'hmer[bench]'"
        ) from error
