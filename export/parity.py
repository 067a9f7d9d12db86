"""Do the exported graphs answer as the checkpoint does?

The reference is the network as it was trained: PyTorch, float32, BatchNorm unfolded, one
image at a time without padding, one token a step. The graphs run as they are served:
images padded and batched with others, k tokens a call, requests that join and leave. Every
token is compared, and every log-probability within the precision's tolerance
(``export.verify_types``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from export.images import spread
from export.verify_checks import WITHIN, answer_all, within
from export.verify_reference import MAX_TOKENS, margins, reference
from export.verify_runners import (
    PYTORCH,
    TENSORRT,
    installed_runtimes,
    open_graphs,
    runners_at_hand,
)
from export.verify_types import (
    ANSWERS,
    BEAM,
    Answer,
    Images,
    Mismatch,
    Parity,
    Progress,
    compare_answers,
    refuse_mismatches,
)
from hmer.bundle import GRAPHS, Bundle, load_bundle
from hmer.errors import (
    BadParameter,
    BundleError,
    ExportError,
    MissingDependency,
    VocabularyMismatch,
)
from hmer.runtime import thread_count
from training.checkpoint import load_checkpoint
from training.network import Recogniser

__all__ = [
    "MAX_TOKENS",
    "Answer",
    "Mismatch",
    "Parity",
    "Progress",
    "Verified",
    "check_parity",
    "compare",
    "installed_runtimes",
    "load_pair",
    "reference",
    "refuse_mismatches",
    "verify",
]

SAMPLE = 32  # images of the checks within a runner: one whole batch


@dataclass(frozen=True)
class Verified:
    """All results of ``verify``, and why a runner at hand could not be asked."""

    results: tuple[Parity, ...]
    skipped: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "parity": [result.to_dict() for result in self.results],
            "skipped": self.skipped,
            "passed": not any(result.refused for result in self.results),
        }


def load_pair(checkpoint: str | Path, bundle: str | Path) -> tuple[Recogniser, Bundle]:
    """The network of ``checkpoint`` and the exported ``bundle``, which must belong together.

    Raises ``BundleError``; ``VocabularyMismatch`` where the vocabularies differ.
    """
    for path in (Path(checkpoint), Path(bundle)):
        if path.is_file():
            raise BundleError(
                f"{path} is a file. Give the folder that hmer-train or hmer-export wrote, with "
                "its bundle.json."
            )
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
    """``compare``, and ``ParityError`` with the first differences if it fails."""
    results = compare(model, bundle, images, runtimes=runtimes, progress=progress)
    refuse_mismatches(results)
    return results


def compare(
    model: Recogniser,
    bundle: Bundle,
    images: Images,
    *,
    runtimes: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> list[Parity]:
    """Compare ``bundle``'s graphs with ``model`` on ``images``, in every one of ``runtimes``.

    A result a runtime for ``encoder`` and ``decoder_step``, and, if there is a ``decoder_beam``,
    one for that against ``decoder_step``, on ``SAMPLE`` of the images.
    ``images``: name -> preprocessed uint8 (H, W), sides multiples of the stride. Raises
    ``ExportError`` if there is nothing to compare.
    """
    runtimes = installed_runtimes() if runtimes is None else runtimes
    if not runtimes:
        raise ExportError(
            "No runtime is installed to compare the graphs in. Install one with: "
            "pip install 'hmer[export]'"
        )
    return list(
        verify(model, bundle, images, runners=runtimes, checks=(BEAM,), progress=progress).results
    )


def verify(
    model: Recogniser,
    bundle: Bundle,
    images: Images,
    *,
    runners: Sequence[str] | None = None,
    sample: int = SAMPLE,
    checks: Collection[str] = WITHIN,
    threads: int = 1,
    allowed: float | None = None,
    engines: Path | None = None,
    progress: Progress | None = None,
) -> Verified:
    """Every check of ``export.verify_checks``, in every one of ``runners``.

    ``runners`` default to those at hand; one of them that cannot load the graphs (ONNX Runtime
    has no bfloat16 convolution, for one) is skipped with its reason, unless it was asked for
    by name. ``sample`` of the images, evenly over their order, are used for the checks within a
    runner (0: none), of which ``checks`` are made. ``allowed`` replaces the share of images that
    may differ in a precision other than fp32. Raises ``ExportError`` if there is nothing to
    compare.
    """
    asked = runners is not None
    runners = runners_at_hand(bundle, engines) if runners is None else runners
    _check_images(bundle, images)
    part = {name: images[name] for name in spread(list(images), sample)} if sample else {}
    total = len(images) * (1 + len(runners)) + 4 * len(part) * len(runners)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    expected: dict[str, Answer] = {}
    with _torch_threads(threads):
        for name, image in images.items():
            expected[name] = reference(model, image)
            advance(1)
        compared = partial(
            compare_answers,
            vocabulary=bundle.vocabulary,
            allowed=allowed,
            margin=margins(model, images),
        )
        results: list[Parity] = []
        skipped: dict[str, str] = {}
        for runner in runners:
            begun = done
            try:
                with open_graphs(runner, bundle, model, threads=threads, engines=engines) as graphs:
                    pairs = [(ANSWERS, expected, answer_all(graphs, images, advance=advance))]
                    if part:
                        pairs += within(graphs, part, advance, checks)
                    results += [
                        compared(
                            ours,
                            theirs,
                            check=check,
                            runtime=graphs.runner,
                            precision=graphs.precision,
                        )
                        for check, ours, theirs in pairs
                    ]
            except (BundleError, MissingDependency) as error:
                if asked or runner in (PYTORCH, TENSORRT):
                    raise
                skipped[runner] = str(error)
            advance(begun + len(images) + 4 * len(part) - done)
    if all(result.runtime == PYTORCH for result in results) and skipped:
        raise ExportError(f"No runtime here can run these graphs: {' '.join(skipped.values())}")
    return Verified(tuple(results), skipped)


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(thread_count(threads))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_images(bundle: Bundle, images: Images) -> None:
    if not images:
        raise ExportError(
            "There are no images to compare the graphs on. Give a folder of pictures with "
            "--images, or the folder of the stroke packs with --data."
        )
    for name, image in images.items():
        if any(side % bundle.sizes.stride for side in image.shape):
            raise BadParameter(
                f"{name} has {image.shape[1]} x {image.shape[0]} pixels, not multiples of "
                f"{bundle.sizes.stride}; preprocess it with the bundle's settings."
            )
