"""The decode scheduler: continuous batching of autoregressive decoding over fixed slots.

::

    submit -> queue -> slots --step--step--step--> answer
                         ^ requests join and leave between two steps, first come, first served

A step advances every occupied slot in one call. So a request joins the others at the next step
instead of waiting for them to end, and is answered the moment it ends, whatever its neighbours
still have to do. A greedy request holds one slot and advances by ``k`` tokens a step; one with a
beam holds as many as the beam is wide and advances by one token, in a call of its own kind. Both
share the slots, the queue, the limits and the turns.

This module knows ids, not Triton, files or tensors: what a step is lies behind ``StepFn`` and
``BeamStep`` (``hmer.slots`` has the real ones, tests have mocks of twenty lines), how an answer
grows behind ``hmer.search`` and ``hmer.beam``, who waits for what in ``hmer.admission``, and the
turns in ``hmer.scheduler``.

A turn: cancelled and late requests leave, waiting ones take the free slots, one step is run,
and those that ended are answered. Whatever happens to a request that ``submit`` accepted, its
``on_done`` is called exactly once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from hmer.decode_types import (
    GREEDY,
    LENGTH_PENALTY,
    NO_BEAMS,
    BeamResult,
    BeamStep,
    DecodeRequest,
    EncodedImage,
    Hypothesis,
    Move,
    Outcome,
    Reason,
    SearchOptions,
    Stats,
    StepFn,
    StepResult,
)
from hmer.guards import Guards
from hmer.scheduler import Scheduler

__all__ = [
    "GREEDY",
    "LENGTH_PENALTY",
    "NO_BEAMS",
    "BeamResult",
    "BeamStep",
    "DecodeRequest",
    "EncodedImage",
    "Guards",
    "Hypothesis",
    "Move",
    "Outcome",
    "Reason",
    "Scheduler",
    "SearchOptions",
    "Stats",
    "StepFn",
    "StepResult",
    "decode_all",
]


def decode_all(
    step_fn: StepFn,
    encoded: Sequence[EncodedImage],
    max_tokens: int,
    *,
    beam_step: BeamStep | None = None,
    guards: Guards | None = None,
    search: SearchOptions = GREEDY,
    on_tokens: Callable[[Sequence[int], Sequence[float]], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[Outcome]:
    """Decode ``encoded`` in this thread: outcomes in the same order, with errors inside them.

    ``on_tokens`` and ``cancelled`` are every request's (``DecodeRequest``). The steps' slots must
    all be free, and are free afterwards. Raises ``BadParameter``.
    """
    outcomes: dict[int, Outcome] = {}
    scheduler = Scheduler(step_fn, max_queue=len(encoded), beam_step=beam_step, guards=guards)
    for index, image in enumerate(encoded):
        done = partial(outcomes.__setitem__, index)
        scheduler.submit(
            DecodeRequest(
                image, max_tokens, done, on_tokens=on_tokens, cancelled=cancelled, search=search
            )
        )
    while scheduler.run_once():
        pass
    return [outcomes[index] for index in range(len(encoded))]
