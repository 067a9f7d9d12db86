"""Do the exported graphs answer as the checkpoint does?

The reference is the network as it was trained: PyTorch, float32, BatchNorm unfolded, one
image at a time without padding, one token a step. The graphs run as they are served:
images padded and batched with others, k tokens a call, requests that join and leave. Every
token is compared, and every log-probability within ``SCORE_TOLERANCE``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hmer import contract
from hmer.bundle import ENCODER_FILE, GRAPHS, STEP_FILE, Bundle, load_bundle
from hmer.decode import EncodedImage, decode_all
from hmer.errors import BadParameter, BundleError, ExportError, ParityError, VocabularyMismatch
from hmer.preprocess import to_batch
from hmer.runtime import TARGETS, Runner, open_runner
from hmer.slots import SlotStep
from hmer.vocab import EOS_ID, Vocabulary
from training.checkpoint import load_checkpoint
from training.evaluate import greedy
from training.network import Recogniser

MAX_TOKENS = 160  # an answer's length in the comparison, <eos> included
BATCH = 8  # images a batch, and slots of the decode loop
# Of a log-probability in nats. Float32 in another order gives about 1e-5 after 100 steps.
SCORE_TOLERANCE = 1e-3
SHOWN = 5  # mismatches in an error's text

Progress = Callable[[int, int], None]  # images done, images in all
Images = Mapping[str, NDArray[np.uint8]]


@dataclass(frozen=True)
class Answer:
    """A greedy answer: ids with the final ``<eos>`` if there is one, and their log-probs."""

    ids: tuple[int, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Mismatch:
    """The first step (from 0) where an image's answers part, and what each side says."""

    image: str
    step: int
    expected: str
    found: str

    def __str__(self) -> str:
        """For the text of an error."""
        return f"{self.image}, step {self.step}: {self.expected} became {self.found}"


@dataclass(frozen=True)
class Parity:
    """How a runtime's answers compare. ``score_difference`` is the largest, in nats."""

    runtime: str
    images: int
    tokens: int
    score_difference: float
    mismatches: tuple[Mismatch, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"mismatches": [asdict(m) for m in self.mismatches]}


def installed_runtimes() -> tuple[str, ...]:
    """Those of ``hmer.runtime.TARGETS`` that can be imported."""
    return tuple(name for name in TARGETS if importlib.util.find_spec(name) is not None)


def load_pair(checkpoint: str | Path, bundle: str | Path) -> tuple[Recogniser, Bundle]:
    """The network of ``checkpoint`` and the exported ``bundle``, which must belong together.

    Raises ``BundleError``; ``VocabularyMismatch`` where the vocabularies differ.
    """
    source, model = load_checkpoint(checkpoint)
    exported = load_bundle(bundle, kind=GRAPHS)
    if source.vocabulary.fingerprint != exported.vocabulary.fingerprint:
        raise VocabularyMismatch(
            f"{checkpoint} and {bundle} have different vocabularies: the one was not exported "
            "from the other. Export the checkpoint again."
        )
    for what, ours, theirs in (
        ("networks", source.network, exported.network),
        ("preprocess settings", source.preprocess, exported.preprocess),
    ):
        if ours != theirs:
            raise BundleError(
                f"{checkpoint} and {bundle} have different {what}: the one was not exported from "
                "the other. Export the checkpoint again."
            )
    return model, exported


def check_parity(
    model: Recogniser,
    bundle: Bundle,
    images: Images,
    *,
    runtimes: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> list[Parity]:
    """``compare``, and ``ParityError`` with the first differences if there are any."""
    results = compare(model, bundle, images, runtimes=runtimes, progress=progress)
    refuse_mismatches(results)
    return results


def refuse_mismatches(results: Sequence[Parity]) -> None:
    """Raise ``ParityError`` if any of ``results`` has a mismatch."""
    for result in results:
        if result.mismatches:
            shown = "; ".join(str(mismatch) for mismatch in result.mismatches[:SHOWN])
            more = len(result.mismatches) - SHOWN
            raise ParityError(
                f"The graphs in {result.runtime} answer differently from the checkpoint on "
                f"{len(result.mismatches)} of {result.images} images: {shown}"
                + (f"; and {more} more." if more > 0 else ".")
            )


def compare(
    model: Recogniser,
    bundle: Bundle,
    images: Images,
    *,
    runtimes: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> list[Parity]:
    """Compare ``bundle``'s graphs with ``model`` on ``images``, in every one of ``runtimes``.

    ``images``: name -> preprocessed uint8 (H, W), sides multiples of the stride. Raises
    ``ExportError`` if there is nothing to compare.
    """
    runtimes = installed_runtimes() if runtimes is None else runtimes
    if not images:
        raise ExportError(
            "There are no images to compare the graphs on. Give a folder of pictures with "
            "--images, or the folder of the stroke packs with --data."
        )
    if not runtimes:
        raise ExportError(
            "No runtime is installed to compare the graphs in. Install one with: "
            "pip install 'hmer[export]'"
        )
    for name, image in images.items():
        if any(side % bundle.sizes.stride for side in image.shape):
            raise BadParameter(
                f"{name} has {image.shape[1]} x {image.shape[0]} pixels, not multiples of "
                f"{bundle.sizes.stride}; preprocess it with the bundle's settings."
            )
    total, done = len(images) * (1 + len(runtimes)), 0
    expected = {}
    for name, image in images.items():
        expected[name] = reference(model, image)
        done += 1
        if progress is not None:
            progress(done, total)
    results = []
    for runtime in runtimes:
        found = served(bundle, runtime, images)
        results.append(_compared(runtime, expected, found, bundle.vocabulary))
        done += len(images)
        if progress is not None:
            progress(done, total)
    return results


def reference(model: Recogniser, image: NDArray[np.uint8], limit: int = MAX_TOKENS) -> Answer:
    """``model``'s greedy answer to one preprocessed image (H, W): eager, unpadded, k = 1."""
    size = torch.tensor([image.shape], dtype=torch.int32)
    (found,) = greedy(model, torch.from_numpy(image)[None, None], size, limit)
    ended = len(found.scores) > len(found.ids)  # the last score is that of <eos>
    return Answer((*found.ids, EOS_ID) if ended else tuple(found.ids), tuple(found.scores))


def served(bundle: Bundle, runtime: str, images: Images, limit: int = MAX_TOKENS) -> list[Answer]:
    """The graphs' answers to ``images``, in order, through the product's own decode loop.

    Images of unlike sizes share batches of the encoder and of the step.
    """
    pixels = list(images.values())
    with (
        open_runner(runtime, bundle.file(ENCODER_FILE), threads=1, precision="fp32") as encoder,
        open_runner(runtime, bundle.file(STEP_FILE), threads=1, precision="fp32") as step,
    ):
        encoded: list[EncodedImage] = []
        for start in range(0, len(pixels), BATCH):
            encoded += _encode(encoder, pixels[start : start + BATCH])
        slots = SlotStep(step.infer, bundle.sizes, min(BATCH, len(pixels)))
        outcomes = decode_all(slots, encoded, limit)
    for name, outcome in zip(images, outcomes, strict=True):
        if outcome.error is not None:
            raise ExportError(f"{runtime} failed on {name}: {outcome.error}")
    return [Answer(outcome.ids, outcome.scores) for outcome in outcomes]


def _encode(encoder: Runner, images: Sequence[NDArray[np.uint8]]) -> list[EncodedImage]:
    batch, size = to_batch(images)
    outputs = encoder.infer({contract.IMAGE.name: batch, contract.SIZE.name: size})
    return [
        EncodedImage(values[:h, :w], keys[:h, :w], state)
        for values, keys, (h, w), state in zip(
            outputs["values"],
            outputs["keys"],
            outputs[contract.FEATURE_SIZE.name],
            outputs["state"],
            strict=True,
        )
    ]


def _compared(
    runtime: str, expected: Mapping[str, Answer], found: Sequence[Answer], vocabulary: Vocabulary
) -> Parity:
    mismatches, worst, tokens = [], 0.0, 0
    for (image, wanted), answer in zip(expected.items(), found, strict=True):
        tokens += len(wanted.ids)
        differences = np.abs(np.subtract(*_common(wanted.scores, answer.scores)))
        mismatch = _first_mismatch(image, wanted, answer, differences, vocabulary)
        if mismatch is not None:
            mismatches.append(mismatch)
            # What follows a different token is the answer to another question.
            differences = differences[: mismatch.step + 1]
        worst = max(worst, float(differences.max(initial=0.0)))
    return Parity(runtime, len(expected), tokens, worst, tuple(mismatches))


def _first_mismatch(
    image: str,
    wanted: Answer,
    found: Answer,
    differences: NDArray[np.float64],
    vocabulary: Vocabulary,
) -> Mismatch | None:
    for step in range(max(len(wanted.ids), len(found.ids))):
        pair = wanted.ids[step : step + 1], found.ids[step : step + 1]
        if pair[0] != pair[1]:
            return Mismatch(image, step, *(_token(ids, vocabulary) for ids in pair))
        if not differences[step] <= SCORE_TOLERANCE:  # also if it is not a number
            said = (
                f"{vocabulary.tokens[ids[0]]} with log-probability {answer.scores[step]:.5f}"
                for ids, answer in zip(pair, (wanted, found), strict=True)
            )
            return Mismatch(image, step, *said)
    return None


def _common(
    left: Sequence[float], right: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    length = min(len(left), len(right))
    return np.array(left[:length], np.float64), np.array(right[:length], np.float64)


def _token(ids: Sequence[int], vocabulary: Vocabulary) -> str:
    return repr(vocabulary.tokens[ids[0]]) if ids else "the end"
