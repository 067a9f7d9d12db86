"""Images that reduced precision is made and judged on: training data, never a test set.

int8 takes its scales from training writings; whether a precision is good enough is judged on
the held-out part. Where no training pack is at hand, the project's samples serve for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from export.images import Images, gather, spread
from hmer import ink
from hmer.preprocess import PreprocessSettings, preprocess
from training.data import pack_of, read_pack, split_by_writer_and_label
from training.examples import Example

CALIBRATION = 64  # writings; scales are extremes, which settle soon
JUDGED = 400  # held-out writings at most


@dataclass(frozen=True)
class Selection:
    """Preprocessed images by name, uint8 (H, W), and what is known about them.

    ``source`` is for people. ``truths``: the labels, canonical tokens; empty if unknown.
    """

    source: str
    images: Images
    truths: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Selections:
    """What to calibrate on, and what to judge on; they share no writer if labels are known."""

    calibration: Selection
    judged: Selection


def selections(settings: PreprocessSettings, data: Path | None) -> Selections:
    """From ``data``, a stroke pack of training writings or the folder that holds one.

    ``None``: the samples, without labels. Raises ``DatasetError`` or ``ExportError``.
    """
    if data is None:
        samples = Selection("the project's samples", gather(settings, None, None))
        return Selections(samples, samples)
    split = split_by_writer_and_label(read_pack(pack_of(data)))
    return Selections(
        _rendered("training writings", split.train, CALIBRATION, settings),
        _rendered("held-out training writings", split.held_out, JUDGED, settings),
    )


def _rendered(
    source: str, examples: Sequence[Example], limit: int, settings: PreprocessSettings
) -> Selection:
    chosen = spread(examples, limit)
    return Selection(
        f"{len(chosen)} {source}",
        {example.name: preprocess(ink.render(example.strokes), settings) for example in chosen},
        {example.name: example.tokens for example in chosen},
    )
