"""Several looks at one input: the same writing at several sizes, the surest answer wins.

A network that was trained with scale augmentation (Li et al., 2020) answers the same writing at
several sizes, and not always alike: its mistakes hang on how the ink falls on its grid. Recognising
one input ``looks`` times costs that many times the work, and finds a more probable answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from hmer.errors import HmerError
from hmer.recognition import Recognition

# Of the size that the bundle's settings say; the first is what one look sees.
ZOOMS = (1.0, 0.92, 1.08, 0.84, 1.16, 0.88, 1.04, 0.96)
MOST = len(ZOOMS)


def zooms(looks: int) -> tuple[float, ...]:
    """The sizes of so many looks, 1 to ``MOST``, as ``hmer.preprocess.prepare`` takes them."""
    return ZOOMS[:looks]


def surest(scores: Sequence[float], lengths: Sequence[int]) -> int:
    """Which answer is the most probable by token.

    ``scores``: probabilities of whole answers; ``lengths``: their tokens, <eos> not counted.
    """
    means = [
        math.log(max(score, 1e-300)) / (length + 1)
        for score, length in zip(scores, lengths, strict=True)
    ]
    return means.index(max(means))


def surest_of(answers: Sequence[Recognition | HmerError]) -> Recognition | HmerError:
    """The surest answer to the looks at one input, or the first error if there is none.

    It has no confidence if there was more than one: the calibration is that of a single look.
    """
    good = [answer for answer in answers if isinstance(answer, Recognition)]
    if not good or len(answers) == 1:
        return (good or answers)[0]
    best = good[surest([a.score for a in good], [len(a.tokens) for a in good])]
    return replace(best, confidence=None)
