"""What the served models count, on Triton's own metrics page.

``execute`` takes requests off Triton's queue at once, so its queue metrics say nothing about these
models; these do. All carry the labels ``model`` and ``version``. Those of ``decode`` count formulas
(rows), those of ``recognize`` and ``recognize_stream`` requests; durations are histograms
(``_bucket`` with ``le``, ``_sum``, ``_count``).

=============================================  =========  ==========================================
metric                                         kind       what it tells
=============================================  =========  ==========================================
hmer_decode_accepted_total                     counter    formulas taken into the queue
hmer_decode_rejected_total                     counter    formulas refused, the queue was full
hmer_decode_completed_total                    counter    formulas decoded
hmer_decode_cancelled_total                    counter    formulas whose client went away
hmer_decode_deadline_total                     counter    formulas whose time was up
hmer_decode_failed_total                       counter    formulas that failed in the decoder
hmer_decode_steps_total                        counter    calls of the step
hmer_decode_rows_total                         counter    occupied slots, summed over the steps
hmer_decode_tokens_total                       counter    tokens decoded for answers
hmer_decode_wasted_total                       counter    tokens computed after a formula's end
hmer_decode_slots                              gauge      formulas that can be decoded at a time
hmer_decode_slots_in_use                       gauge      formulas being decoded
hmer_decode_queue_length                       gauge      formulas waiting for a slot
hmer_decode_queue_seconds                      histogram  from arrival in the decoder to a slot
hmer_decode_decode_seconds                     histogram  from the slot to the end
hmer_decode_first_token_seconds                histogram  from arrival to the first tokens
hmer_recognize_received_total                  counter    requests that came, without cached ones
hmer_recognize_rejected_total                  counter    requests refused, the queue was full
hmer_recognize_completed_total                 counter    requests answered
hmer_recognize_cancelled_total                 counter    requests whose client went away
hmer_recognize_deadline_total                  counter    requests whose time was up
hmer_recognize_bad_input_total                 counter    requests at fault themselves
hmer_recognize_failed_total                    counter    requests that failed on the server
hmer_recognize_cache_hits_total                counter    requests answered from the cache
hmer_recognize_cache_misses_total              counter    requests that were not in the cache
hmer_recognize_cache_bytes                     gauge      memory that the cache takes
hmer_recognize_workers                         gauge      requests that can be under way
hmer_recognize_workers_in_use                  gauge      requests under way
hmer_recognize_queue_length                    gauge      requests waiting for that
hmer_recognize_pictures                        gauge      pictures under way or waiting
hmer_recognize_full                            gauge      pictures at which requests are refused
hmer_recognize_queue_seconds                   histogram  from arrival to setting out
hmer_recognize_request_seconds                 histogram  from arrival to the answer
hmer_recognize_first_token_seconds             histogram  from arrival to a stream's first token
=============================================  =========  ==========================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from hmer.decode import Outcome, Stats
from model_repository.publisher import PERIOD_S, Histogram, MetricSpec, Publisher, Value


def _specs(prefix: str) -> tuple[MetricSpec, ...]:
    """The rows of this module's table that begin with ``prefix``."""
    rows = re.findall(rf"^{prefix}_(\w+) +(\w+) +(.*)$", __doc__ or "", re.MULTILINE)
    return tuple(MetricSpec(name, text.strip(), kind) for name, kind, text in rows)


DECODE, RECOGNIZE = "hmer_decode", "hmer_recognize"


@dataclass
class Durations:
    """How long formulas took, in seconds."""

    queue: Histogram = field(default_factory=Histogram)
    decode: Histogram = field(default_factory=Histogram)
    first_token: Histogram = field(default_factory=Histogram)

    def ended(self, outcome: Outcome) -> None:
        """Count a formula that was answered."""
        self.queue.observe(outcome.queued_s)
        if outcome.error is None:
            self.decode.observe(outcome.decode_s)


def decode_metrics(
    stats: Callable[[], Stats], durations: Durations, version: str, period: float = PERIOD_S
) -> Publisher:
    """What publishes a scheduler's ``stats`` and ``durations``."""

    def values() -> Mapping[str, Value]:
        counts = asdict(stats())
        found: dict[str, Value] = {
            "queue_seconds": durations.queue,
            "decode_seconds": durations.decode,
            "first_token_seconds": durations.first_token,
        }
        for spec in specs:
            if spec.name not in found:
                found[spec.name] = counts[spec.name.removesuffix("_total")]
        return found

    specs = _specs(DECODE)
    return Publisher(DECODE, {"model": "decode", "version": version}, specs, values, period)


def recognize_metrics(
    values: Callable[[], Mapping[str, Value]], model: str, version: str, period: float = PERIOD_S
) -> Publisher:
    """What publishes a front's ``values``, by the names in the table."""
    labels = {"model": model, "version": version}
    return Publisher(RECOGNIZE, labels, _specs(RECOGNIZE), values, period)
