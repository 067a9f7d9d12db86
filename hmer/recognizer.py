"""Pictures or ink in, LaTeX out: the answer's form, and the pipeline within this process.

::

    with LocalRecognizer("bundle") as recognizer:
        print(recognizer.recognize(Path("formula.png").read_bytes()).latex)

The served models and the client give the same ``Recognition``: what a caller sees does not
depend on where the network runs.
"""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Protocol

from hmer import contract
from hmer.attempts import attempt, streamed
from hmer.bundle import BEAM_FILE, ENCODER_FILE, GRAPHS, STEP_FILE, load_bundle
from hmer.calibration import Calibration
from hmer.decode import (
    LENGTH_PENALTY,
    NO_BEAMS,
    EncodedImage,
    Guards,
    Outcome,
    SearchOptions,
    decode_all,
)
from hmer.errors import BadParameter, HmerError, InferenceFailed
from hmer.looks import surest_of, zooms
from hmer.preprocess import Gray, load, load_at, size_class, to_batch
from hmer.recognition import Alternative, Partial, Recognition, answer
from hmer.runtime import ONNXRUNTIME, open_runner
from hmer.serving import from_request
from hmer.slots import BeamSlots, SlotStep, lanes_for, split_encoded

__all__ = ["Alternative", "LocalRecognizer", "Partial", "Recognition", "Recognizer", "answer"]


class Recognizer(Protocol):
    """Whatever turns a picture or ink into LaTeX: in this process, or a server's client."""

    def recognize(self, data: bytes) -> Recognition:
        """The formula in ``data`` (PNG, JPEG, WebP, TIFF, BMP, InkML or JSON strokes).

        Raises an ``HmerError``.
        """


@dataclass(eq=False)
class _Item:
    """One input on its way through the pipeline."""

    image: Gray
    timings: dict[str, float]
    encoded: EncodedImage | None = None


class LocalRecognizer:
    """The whole road in this process: preprocess, encoder, decoder.

    Usable by several threads, which take turns. ``slots`` formulas (or hypotheses of beams) are
    decoded together, up to ``batch`` pictures of one size class are encoded together; neither
    changes an answer.
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
        beam: int = 1,
        n_best: int = 1,
        length_penalty: float = LENGTH_PENALTY,
        guards: bool = True,
        step_target: str | None = None,
    ) -> None:
        """Load a bundle of kind "graphs". ``threads`` 0: every CPU; ``precision`` is the encoder's.
        ``step_target``: the decoder's runtime, else the same. Calls use ``beam``, ``n_best`` and
        ``length_penalty`` (``hmer.decode.SearchOptions``) by default; ``guards`` False lets answers
        be what no formula is. Raises ``BundleError``, ``MissingDependency`` or ``BadParameter``.
        """
        if batch < 1 or max_tokens < 1:
            raise BadParameter(f"batch ({batch}) and max_tokens ({max_tokens}) must be positive.")
        self._search = SearchOptions(beam, n_best, length_penalty)
        self._bundle = load_bundle(bundle_folder, kind=GRAPHS)
        self._calibration = Calibration.from_details(self._bundle.details)
        self._guards = Guards(self._bundle.vocabulary) if guards else None
        if beam > 1 and not self._bundle.beam:
            raise BadParameter(NO_BEAMS)
        self._batch, self._max_tokens = batch, max_tokens
        self._window = 4 * slots  # inputs in memory at a time
        self._lock = threading.Lock()
        with ExitStack() as resources:
            self._encoder = resources.enter_context(
                open_runner(target, self._bundle.file(ENCODER_FILE), threads, precision)
            )
            step = resources.enter_context(
                open_runner(step_target or target, self._bundle.file(STEP_FILE), threads)
            )
            sizes, lanes = self._bundle.sizes, lanes_for(step_target or target)
            self._step = SlotStep(step.infer, sizes, slots, lanes=lanes)
            self._beams = None
            if self._bundle.beam:
                beams = resources.enter_context(
                    open_runner(step_target or target, self._bundle.file(BEAM_FILE), threads)
                )
                self._beams = BeamSlots(beams.infer, sizes, slots, lanes=lanes)
            self._resources = resources.pop_all()

    def recognize(
        self,
        data: bytes,
        *,
        beam: int | None = None,
        n_best: int | None = None,
        length_penalty: float | None = None,
        max_tokens: int | None = None,
        looks: int | None = None,
    ) -> Recognition:
        """See ``Recognizer``; the options, where given, instead of the recogniser's."""
        (result,) = self.recognize_many(
            [data],
            beam=beam,
            n_best=n_best,
            length_penalty=length_penalty,
            max_tokens=max_tokens,
            looks=looks,
        )
        if isinstance(result, HmerError):
            raise result
        return result

    def recognize_many(
        self,
        inputs: Sequence[bytes],
        *,
        beam: int | None = None,
        n_best: int | None = None,
        length_penalty: float | None = None,
        max_tokens: int | None = None,
        looks: int | None = None,
    ) -> list[Recognition | HmerError]:
        """The answers in the order of ``inputs``; one that is at fault gets its error there.

        ``max_tokens``: the longest answer, at most the recogniser's, which is the default.
        ``looks``: sizes at which each input is recognised (``hmer.looks``), 1 by default. Raises
        ``BadParameter`` for options that are out of range or that the bundle cannot do.
        """
        search = self._search.with_(beam, n_best, length_penalty)
        limit = self._limit(max_tokens)
        sizes = zooms(from_request({"looks": 1 if looks is None else looks}, 1).looks)
        step = max(1, self._window // len(sizes))
        results: list[Recognition | HmerError] = []
        with self._lock:
            for first in range(0, len(inputs), step):
                window = inputs[first : first + step]
                found = self._recognize_window(window, sizes, search, limit)
                starts = range(0, len(found), len(sizes))
                results += [surest_of(found[i : i + len(sizes)]) for i in starts]
        return results

    def _limit(self, max_tokens: int | None) -> int:
        wanted = self._max_tokens if max_tokens is None else max_tokens
        if not 1 <= wanted <= self._max_tokens:
            raise BadParameter(
                f"max_tokens is {wanted}; it must be a whole number, 1 to {self._max_tokens}."
            )
        return wanted

    def stream(
        self,
        data: bytes,
        *,
        beam: int | None = None,
        n_best: int | None = None,
        length_penalty: float | None = None,
        max_tokens: int | None = None,
    ) -> Iterator[Partial | Recognition]:
        """The answer as it is decoded: ``Partial``s that grow, then the ``Recognition``.

        A beam's tokens are known at its end only. Other calls wait meanwhile. Ending the iteration
        early ends the decoding. Options and errors as of ``recognize``.
        """
        search, limit = self._search.with_(beam, n_best, length_penalty), self._limit(max_tokens)

        def work(put: Callable[[Partial], None], given_up: Callable[[], bool]) -> Recognition:
            return self._stream_one(data, search, limit, put, given_up)

        yield from streamed(work)

    def _stream_one(
        self,
        data: bytes,
        search: SearchOptions,
        limit: int,
        put: Callable[[Partial], None],
        given_up: Callable[[], bool],
    ) -> Recognition:
        part = Partial((), ())

        def grow(ids: Sequence[int], scores: Sequence[float]) -> None:
            nonlocal part
            for token, score in zip(self._bundle.vocabulary.decode(ids), scores, strict=True):
                part = Partial((*part.tokens, token), (*part.scores, math.exp(min(0.0, score))))
                put(part)

        with self._lock:
            began = time.perf_counter()
            item = _Item(load(data, self._bundle.preprocess), {"preprocess": _since(began)})
            self._encode([item])
            if item.encoded is None:
                raise InferenceFailed("The encoder gave no features.")
            (outcome,) = decode_all(
                self._step,
                [item.encoded],
                limit,
                beam_step=self._beams,
                guards=self._guards,
                search=search,
                on_tokens=grow,
                cancelled=given_up,
            )
        return self._answer(outcome, item, search)

    def _recognize_window(
        self, inputs: Sequence[bytes], sizes: Sequence[float], search: SearchOptions, limit: int
    ) -> list[Recognition | HmerError]:
        results: dict[int, Recognition | HmerError] = {}
        items: dict[int, _Item] = {}
        for place, data in enumerate(inputs):
            began = time.perf_counter()
            prepared = attempt(load_at, data, self._bundle.preprocess, sizes)
            for look in range(len(sizes)):
                index = place * len(sizes) + look
                if isinstance(prepared, HmerError):
                    results[index] = prepared
                    continue
                items[index] = _Item(prepared[look], {"preprocess": _since(began)})

        for indices in self._batches(items):
            error = attempt(self._encode, [items[index] for index in indices])
            if error is not None:
                results.update((index, type(error)(str(error))) for index in indices)

        encoded = {index: i.encoded for index, i in items.items() if i.encoded is not None}
        outcomes = decode_all(
            self._step,
            list(encoded.values()),
            limit,
            beam_step=self._beams,
            guards=self._guards,
            search=search,
        )
        for index, outcome in zip(encoded, outcomes, strict=True):
            results[index] = attempt(self._answer, outcome, items[index], search)
        return [results[index] for index in range(len(inputs) * len(sizes))]

    def _answer(self, outcome: Outcome, item: _Item, search: SearchOptions) -> Recognition:
        known = self._calibration
        calibration = known if known is not None and known.fits(search) else None
        result = answer(self._bundle.vocabulary, outcome, calibration)
        return replace(result, timings=item.timings | dict(result.timings))

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


def _since(began: float) -> float:
    """Milliseconds since ``began``."""
    return (time.perf_counter() - began) * 1e3
