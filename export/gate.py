"""What a precision costs, measured before its bundle is written, and refused if it is too much."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from export.emulate import emulate
from export.output import GRAPH_FILES
from export.precision import HALVES
from export.selection import Selection
from export.verify_checks import answer_all
from export.verify_runners import PYTORCH, open_graphs
from export.verify_types import Answer
from hmer.bundle import Bundle
from hmer.errors import ExportError
from hmer.runtime import ONNXRUNTIME
from hmer.score import compare, summarise
from hmer.vocab import EOS_ID, Vocabulary
from training.network import Recogniser

ALLOWED = 0.3  # points of ExpRate, 0..100, that a precision may lose unasked


@dataclass(frozen=True)
class Loss:
    """Answers in a precision against the float32 checkpoint's, on selection data.

    ``differing``: images with another answer. ``reference`` and ``found``: ExpRates, 0..1;
    ``None`` where no labels are known. ``emulated``: by ``export.emulate``, for want of a CPU
    runtime that rounds as the hardware would.
    """

    precision: str
    source: str
    images: int
    differing: int
    reference: float | None
    found: float | None
    emulated: bool

    @property
    def points(self) -> float:
        """Points of ExpRate lost, 0..100; without labels its upper bound, all that differ."""
        if self.reference is None or self.found is None:
            return 100.0 * self.differing / max(self.images, 1)
        return 100.0 * (self.reference - self.found)

    def __str__(self) -> str:
        """For a person: what was measured, on what."""
        emulated = ", emulated on this CPU" if self.emulated else ""
        answers = f"{self.differing} of {self.images} answers differ from float32{emulated}"
        if self.reference is None or self.found is None:
            return f"{self.precision} on {self.source}: {answers}; no labels, so no ExpRate"
        return (
            f"{self.precision} on {self.source}: ExpRate {100 * self.found:.2f} % instead of "
            f"{100 * self.reference:.2f} %; {answers}"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON and a bundle's details."""
        return asdict(self) | {"points": round(self.points, 4)}


def measure_loss(model: Recogniser, bundle: Bundle, selection: Selection) -> Loss:
    """Answer ``selection`` with the checkpoint's network and with ``bundle``'s graphs.

    Raises ``ExportError`` if there is nothing to judge on.
    """
    images = selection.images
    if not images:
        raise ExportError(
            f"There is nothing to judge {bundle.precision} on ({selection.source}). "
            "Give training data that has a held-out part."
        )
    with open_graphs(PYTORCH, replace(bundle, precision="fp32"), model) as graphs:
        expected = answer_all(graphs, images)
    with computable(bundle) as runnable, open_graphs(ONNXRUNTIME, runnable, model) as graphs:
        found = answer_all(graphs, images)
    differing = sum(expected[name].ids != found[name].ids for name in images)
    known = bool(selection.truths)

    def rate(answers: Mapping[str, Answer]) -> float | None:
        return exprate(answers, selection.truths, bundle.vocabulary) if known else None

    return Loss(
        precision=bundle.precision,
        source=selection.source,
        images=len(images),
        differing=differing,
        reference=rate(expected),
        found=rate(found),
        emulated=bundle.precision in HALVES,
    )


def refuse_loss(loss: Loss, accept: bool, say: Callable[[str], None] = lambda line: None) -> None:
    """Raise ``ExportError`` if ``loss`` is above ``ALLOWED`` points, unless it is accepted."""
    say(f"Measured {loss}.")
    if loss.points <= ALLOWED or accept:
        return
    least = " at most" if loss.found is None else ""
    hint = " Give training data with labels to measure it." if loss.found is None else ""
    raise ExportError(
        f"{loss.precision} loses{least} {loss.points:.2f} points of ExpRate, and {ALLOWED} are "
        f"allowed: {loss}.{hint} Choose another precision, or take this one with --accept-loss."
    )


@contextmanager
def computable(bundle: Bundle) -> Iterator[Bundle]:
    """``bundle``, or for fp16 and bf16 its emulated copy, which ONNX Runtime answers exactly.

    The copy lives as long as the block.
    """
    if bundle.precision not in HALVES:
        yield bundle
        return
    with tempfile.TemporaryDirectory(prefix="hmer-") as folder:
        for file in present_graphs(bundle):
            graph = emulate(onnx.load(bundle.file(file)), bundle.precision)
            onnx.save(graph, Path(folder, file))
        yield replace(bundle, folder=Path(folder))


def present_graphs(bundle: Bundle) -> Sequence[str]:
    """The files of the graphs that ``bundle`` has."""
    return [file for file in GRAPH_FILES.values() if bundle.file(file).is_file()]


def exprate(
    answers: Mapping[str, Answer], truths: Mapping[str, Sequence[str]], vocabulary: Vocabulary
) -> float:
    """The ExpRate, 0..1, of ``answers`` by name."""
    return summarise(
        compare(name, truths[name], vocabulary.decode([i for i in answer.ids if i != EOS_ID]))
        for name, answer in answers.items()
    ).exprate
