"""The first call of a graph with new shapes is slow: it is made before anybody waits for it."""

from __future__ import annotations

import numpy as np

from hmer.contract import Sizes
from hmer.decode import BeamStep, EncodedImage, Move, StepFn
from hmer.slots import LADDER
from hmer.vocab import SOS_ID

HEIGHT, WIDTH = 4, 16  # feature positions of a small formula


def warm_up(step: StepFn, beams: BeamStep | None, sizes: Sizes) -> list[int]:
    """Run the steps with every number of rows on the ladder up to their slots, and free them.

    Returns the numbers of rows. Raises ``InferenceFailed`` if a graph fails: better now than later.
    """
    image = EncodedImage(
        np.zeros((HEIGHT, WIDTH, 2 * sizes.features), np.float32),
        np.zeros((HEIGHT, WIDTH, sizes.attention), np.float32),
        np.zeros(sizes.state, np.float32),
    )
    ladder = sorted({min(rows, step.slots) for rows in LADDER})
    for rows in ladder:
        slots = list(range(rows))
        try:
            for slot in slots:
                step.admit(slot, image)
            step.step(slots)
        finally:
            for slot in slots:
                step.release(slot)
    if beams is not None:
        slots = list(range(min(sizes.beam, beams.slots)))
        try:
            beams.admit(slots, image)
            beams.step([Move(slot, SOS_ID, slot) for slot in slots])
        finally:
            beams.release(slots)
    return ladder
