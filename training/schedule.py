"""The learning rate: it rises, stays, and falls; a run that is extended rises again, gently.

Two rules make every schedule:

* ``fall``: full until the last ``decay_share`` of the steps (or of the hours, where
  ``max_hours`` gives fewer), then linearly to zero;
* ``rise``: the rate never grows faster than by 1 / ``warmup`` of its peak a step. So a new run
  warms up from zero, and a finished one whose ``steps`` are raised warms up again from
  the low rate that it ended with, instead of jumping.

The rate of a step hangs on the step and on the rate before it, which the state of a run
holds: a killed run goes on with the very same curve. Only ``max_hours`` makes it hang on
the clock.
"""

from __future__ import annotations

from training.settings import TrainSettings


def fall(step: int, settings: TrainSettings, elapsed: float = 0.0) -> float:
    """The planned share, in [0, 1], of the peak rate at this step (from 0).

    ``elapsed`` is the seconds since this invocation began.
    """
    length = max(1.0, settings.steps * settings.decay_share)
    share = (settings.steps - step) / length
    if settings.max_hours > 0:
        budget = settings.max_hours * 3600
        share = min(share, (budget - elapsed) / max(1e-9, budget * settings.decay_share))
    return min(1.0, max(0.0, share))


def rise(planned: float, before: float, settings: TrainSettings) -> float:
    """The share that a step really gets, after a step that had the share ``before``."""
    return min(planned, before + 1.0 / max(1, settings.warmup))


def learning_rate(step: int, settings: TrainSettings) -> float:
    """The rate of the step with this number (from 0) in a run that was never extended."""
    start = min(1.0, (step + 1) / max(1, settings.warmup))
    return settings.learning_rate * min(start, fall(step, settings))
