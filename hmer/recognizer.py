"""Pictures or ink in, LaTeX out: the answer's form, and the pipeline within this process.

::

    with LocalRecognizer("bundle") as recognizer:
        print(recognizer.recognize(Path("formula.png").read_bytes()).latex)

The served models and the client give the same ``Recognition``: what a caller sees does not
depend on where the network runs.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

from hmer import contract
from hmer.bundle import ENCODER_FILE, GRAPHS, STEP_FILE, load_bundle
from hmer.decode import EncodedImage, Outcome, decode_all
from hmer.errors import BadParameter, HmerError, InferenceFailed
from hmer.latex import to_latex
from hmer.preprocess import Gray, load, size_class, to_batch
from hmer.runtime import ONNXRUNTIME, open_runner
from hmer.slots import SlotStep, lanes_for, split_encoded
from hmer.vocab import Vocabulary

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Alternative:
    """One of the n best answers; ``score`` is its probability, 0 to 1."""

    latex: str
    tokens: tuple[str, ...]
    score: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; also the form in the served ``alternatives``."""
        return {"latex": self.latex, "tokens": list(self.tokens), "score": self.score}


@dataclass(frozen=True)
class Recognition(Alternative):
    """An answer. ``alternatives`` are the next best, best first, without the answer itself.

    ``timings`` are milliseconds by stage, as far as they are known: "preprocess", "encode",
    "queue", "decode", or, of a served answer, "request".
    """

    alternatives: tuple[Alternative, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return super().to_dict() | {
            "alternatives": [other.to_dict() for other in self.alternatives],
            "timings": {stage: round(ms, 3) for stage, ms in self.timings.items()},
        }


class Recognizer(Protocol):
    """Whatever turns a picture or ink into LaTeX: in this process, or a server's client."""

    def recognize(self, data: bytes) -> Recognition:
        """The formula in ``data`` (PNG, JPEG, WebP, TIFF, BMP, InkML or JSON strokes).

        Raises an ``HmerError``.
        """


def answer(vocabulary: Vocabulary, outcome: Outcome) -> Recognition:
    """What an outcome of the decoder says. Raises the outcome's error, if it is one.

    The score is the product of the tokens' probabilities, <eos> included.
    """
    if outcome.error is not None:
        raise outcome.error
    if unknown := [index for index in outcome.ids if index >= len(vocabulary)]:
        raise InferenceFailed(
            f"The decoder gave the token {unknown[0]}, and the vocabulary has {len(vocabulary)}. "
            "Graphs and vocabulary are not of one bundle."
        )
    tokens = tuple(vocabulary.decode(outcome.ids))
    return Recognition(
        latex=to_latex(tokens),
        tokens=tokens,
        score=math.exp(min(0.0, math.fsum(outcome.scores))),
        timings={"queue": outcome.queued_s * 1e3, "decode": outcome.decode_s * 1e3},
    )


@dataclass(eq=False)
class _Item:
    """One input on its way through the pipeline."""

    image: Gray
    timings: dict[str, float]
    encoded: EncodedImage | None = None


class LocalRecognizer:
    """The whole road in this process: preprocess, encoder, decoder.

    Usable by several threads, which take turns. ``slots`` formulas are decoded together, up
    to ``batch`` pictures of one size class are encoded together; neither changes an answer.
    """

    def __init__(
        self,
        bundle_folder: str | Path,
        target: str = ONNXRUNTIME,
        *,
        threads: int = 0,
        precision: str = "fp32",
        slots: int = 16,
        batch: int = 4,
        max_tokens: int = 256,
    ) -> None:
        """Load a bundle of kind "graphs". ``threads`` 0: every CPU; ``precision`` is the encoder's.

        Raises ``BundleError``, ``MissingDependency`` or ``BadParameter``.
        """
        if batch < 1 or max_tokens < 1:
            raise BadParameter(f"batch ({batch}) and max_tokens ({max_tokens}) must be positive.")
        self._bundle = load_bundle(bundle_folder, kind=GRAPHS)
        self._batch, self._max_tokens = batch, max_tokens
        self._window = 4 * slots  # inputs in memory at a time
        self._lock = threading.Lock()
        with ExitStack() as resources:
            self._encoder = resources.enter_context(
                open_runner(target, self._bundle.file(ENCODER_FILE), threads, precision)
            )
            step = resources.enter_context(
                open_runner(target, self._bundle.file(STEP_FILE), threads)
            )
            self._step = SlotStep(step.infer, self._bundle.sizes, slots, lanes=lanes_for(target))
            self._resources = resources.pop_all()

    def recognize(self, data: bytes) -> Recognition:
        """See ``Recognizer``."""
        (result,) = self.recognize_many([data])
        if isinstance(result, HmerError):
            raise result
        return result

    def recognize_many(self, inputs: Sequence[bytes]) -> list[Recognition | HmerError]:
        """The answers in the order of ``inputs``; one that is at fault gets its error there."""
        results: list[Recognition | HmerError] = []
        with self._lock:
            for first in range(0, len(inputs), self._window):
                results += self._recognize_window(inputs[first : first + self._window])
        return results

    def _recognize_window(self, inputs: Sequence[bytes]) -> list[Recognition | HmerError]:
        results: dict[int, Recognition | HmerError] = {}
        items: dict[int, _Item] = {}
        for index, data in enumerate(inputs):
            began = time.perf_counter()
            image = _attempt(load, data, self._bundle.preprocess)
            if isinstance(image, HmerError):
                results[index] = image
            else:
                items[index] = _Item(image, {"preprocess": _since(began)})

        for indices in self._batches(items):
            error = _attempt(self._encode, [items[index] for index in indices])
            if error is not None:
                results.update((index, type(error)(str(error))) for index in indices)

        encoded = {index: i.encoded for index, i in items.items() if i.encoded is not None}
        outcomes = decode_all(self._step, list(encoded.values()), self._max_tokens)
        for index, outcome in zip(encoded, outcomes, strict=True):
            result = _attempt(answer, self._bundle.vocabulary, outcome)
            if isinstance(result, Recognition):
                result = replace(result, timings=items[index].timings | dict(result.timings))
            results[index] = result
        return [results[index] for index in range(len(inputs))]

    def _batches(self, items: Mapping[int, _Item]) -> list[list[int]]:
        """Indices of pictures to encode together: a picture's own size decides its padding."""
        classes: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for index, item in items.items():
            classes[size_class(*item.image.shape)].append(index)
        return [
            members[first : first + self._batch]
            for members in classes.values()
            for first in range(0, len(members), self._batch)
        ]

    def _encode(self, items: Sequence[_Item]) -> None:
        began = time.perf_counter()
        image, size = to_batch([item.image for item in items])
        outputs = self._encoder.infer({contract.IMAGE.name: image, contract.SIZE.name: size})
        took = _since(began)
        for item, encoded in zip(items, split_encoded(outputs), strict=True):
            item.encoded = encoded
            item.timings["encode"] = took

    def close(self) -> None:
        """Free the graphs; more calls do nothing."""
        with self._lock:
            self._resources.close()

    def __enter__(self) -> LocalRecognizer:
        """The recogniser itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


def _attempt(function: Callable[..., T], *arguments: object) -> T | HmerError:
    """The result, or the error as a value: one input's fault must not reach the others."""
    try:
        return function(*arguments)
    except HmerError as error:
        return error
    except Exception as error:
        _log.exception("An input could not be processed.")
        return InferenceFailed(
            f"The input could not be processed ({type(error).__name__}: {error})."
        )


def _since(began: float) -> float:
    """Milliseconds since ``began``."""
    return (time.perf_counter() - began) * 1e3
