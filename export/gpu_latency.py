"""How long the graphs take in a runner: encoder by size and batch, a step by batch, a formula.

    python -m export.gpu_latency BUNDLE --engines DIR

prints one JSON document. The times are of whole calls with their copies to and from the GPU.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from export.tensorrt_profiles import LINE_GREATEST, LINE_TYPICAL
from hmer import contract
from hmer.bundle import ENCODER_FILE, GRAPHS, STEP_FILE, Bundle, load_bundle
from hmer.console import sentences
from hmer.decode import decode_all
from hmer.engine import TENSORRT
from hmer.errors import MissingDependency
from hmer.preprocess import size_class, to_batch
from hmer.runtime import ONNXRUNTIME, Runner, open_runner
from hmer.slots import LADDER, SlotStep, split_encoded

Array = NDArray[Any]
Images = Mapping[str, NDArray[np.uint8]]

SIZES = ((32, 96), LINE_TYPICAL, LINE_GREATEST, (256, 1024))
TORCH_CUDA = "torch-cuda"
ONNXRUNTIME_CUDA = "onnxruntime-cuda"
RUNNERS = (TENSORRT, TORCH_CUDA, ONNXRUNTIME_CUDA, ONNXRUNTIME)
MAX_TOKENS = 160


def measure(
    encoder: Runner,
    step: Runner,
    bundle: Bundle,
    images: Images,
    *,
    max_batch: int = 16,
    repeats: int = 20,
    sizes: Sequence[tuple[int, int]] = SIZES,
) -> dict[str, Any]:
    """Times in ms of ``encoder`` and ``step``, and of whole formulas one after the other.

    ``answers``: name of the image -> ids, for comparing runners. A shape that fails is reported
    with its error; the others are still measured.
    """
    batches = [rung for rung in LADDER if rung <= max_batch]
    table: dict[str, list[dict[str, Any]]] = {"encoder": [], "step": []}
    for height, width in (size_class(*size) for size in sizes):
        for batch in batches:
            row = {"batch": batch, "height": height, "width": width}
            feeds = encoder_feeds(bundle, batch, height, width)
            table["encoder"].append(row | _timed(partial(encoder.infer, feeds), repeats))
    height, width = (side // bundle.sizes.stride for side in size_class(*LINE_TYPICAL))
    for batch in batches:
        row = {"batch": batch, "feature_height": height, "feature_width": width}
        feeds = step_feeds(bundle, batch, height, width)
        table["step"].append(row | _timed(partial(step.infer, feeds), repeats))
    return {**table, "end_to_end": _end_to_end(encoder, step, bundle, images)}


def encoder_feeds(bundle: Bundle, batch: int, height: int, width: int) -> dict[str, Array]:
    """A batch of noise, as large as its padding."""
    image = np.random.default_rng(0).integers(0, 256, (batch, 1, height, width), np.uint8)
    size = np.tile(np.array([[height, width]], np.int32), (batch, 1))
    return {contract.IMAGE.name: image, contract.SIZE.name: size}


def step_feeds(bundle: Bundle, batch: int, height: int, width: int) -> dict[str, Array]:
    """A step's inputs in the middle of nowhere: noise for features, no coverage yet."""
    rng, axes = np.random.default_rng(0), {"feature_height": height, "feature_width": width}
    feeds: dict[str, Array] = {}
    for tensor in contract.models(bundle.sizes)[contract.DECODER_STEP].inputs:
        shape = (batch, *(axes[d] if isinstance(d, str) else d for d in tensor.dims))
        feeds[tensor.name] = np.zeros(shape, tensor.dtype)
    for name in ("values", "keys"):
        feeds[name] = rng.standard_normal(feeds[name].shape, np.float32)
    feeds["token"] += 3
    feeds["feature_size"] += np.array([height, width], np.int32)
    return feeds


def _end_to_end(encoder: Runner, step: Runner, bundle: Bundle, images: Images) -> dict[str, Any]:
    answers: dict[str, list[int]] = {}
    times = []
    for name, image in images.items():
        began = time.perf_counter()
        batch, size = to_batch([image])
        outputs = encoder.infer({contract.IMAGE.name: batch, contract.SIZE.name: size})
        slots = SlotStep(step.infer, bundle.sizes, 1, lanes=(), ladder=LADDER)
        (outcome,) = decode_all(slots, split_encoded(outputs), MAX_TOKENS)
        if outcome.error is not None:
            raise outcome.error
        times.append(time.perf_counter() - began)
        answers[name] = list(outcome.ids)
    return {"images": len(times), **_summary(times), "answers": answers}


def _timed(call: Callable[[], Any], repeats: int) -> dict[str, Any]:
    times = []
    try:
        for _ in range(3):  # new shapes are prepared, clocks rise
            call()
        for _ in range(repeats):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
    except Exception as error:
        return {"error": str(error)}
    return _summary(times)


def _summary(times: Sequence[float]) -> dict[str, Any]:
    if not times:
        return {"repeats": 0}
    return {
        "median_ms": round(1e3 * statistics.median(times), 4),
        "p95_ms": round(1e3 * float(np.quantile(times, 0.95)), 4),
        "repeats": len(times),
    }


def open_pair(
    stack: ExitStack, runner: str, bundle: Bundle, engines: Path | None, checkpoint: Path | None
) -> tuple[Runner, Runner]:
    """Encoder and step in ``runner``; ``engines`` for TensorRT, ``checkpoint`` for torch."""
    if runner == TORCH_CUDA:
        if importlib.util.find_spec("torch") is None:
            raise MissingDependency("torch is not installed: pip install 'hmer[export]'.")
        from export.gpu_torch import cuda_runners

        return cuda_runners(checkpoint or bundle.folder, bundle)
    names = (ENCODER_FILE, STEP_FILE)
    if runner == TENSORRT and engines is not None:
        paths = [engines / Path(name).with_suffix(".plan") for name in names]
    else:
        paths = [bundle.file(name) for name in names]
    if runner == ONNXRUNTIME_CUDA:
        from hmer.onnxruntime_cuda import OnnxRuntimeCudaRunner

        cuda = [stack.enter_context(OnnxRuntimeCudaRunner(path)) for path in paths]
        return cuda[0], cuda[1]
    encoder, step = (stack.enter_context(open_runner(runner, path)) for path in paths)
    return encoder, step


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--runner", type=click.Choice(RUNNERS), default=TENSORRT, show_default=True)
@click.option("--engines", type=click.Path(path_type=Path), help="Folder of the engines.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help=f"For {TORCH_CUDA}.")
@click.option("--repeats", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--max-batch", type=click.IntRange(min=1), default=16, show_default=True)
@sentences
def main(
    bundle: Path,
    runner: str,
    engines: Path | None,
    checkpoint: Path | None,
    repeats: int,
    max_batch: int,
) -> None:
    """Measure BUNDLE's graphs in one runner, and print one JSON document."""
    from export.images import gather

    loaded = load_bundle(bundle, GRAPHS)
    pictures = gather(loaded.preprocess, None, None)
    with ExitStack() as stack:
        pair = open_pair(stack, runner, loaded, engines, checkpoint)
        found = measure(*pair, loaded, pictures, max_batch=max_batch, repeats=repeats)
        with (
            open_runner(ONNXRUNTIME, loaded.file(ENCODER_FILE)) as encoder,
            open_runner(ONNXRUNTIME, loaded.file(STEP_FILE)) as step,
        ):
            expected = _end_to_end(encoder, step, loaded, pictures)["answers"]
    differing = sorted(_differing(found["end_to_end"]["answers"], expected))
    document = {"runner": runner, "precision": loaded.precision, "k": loaded.k, **found}
    click.echo(json.dumps({**document, "differing_from_onnxruntime": differing}))


def _differing(left: Mapping[str, Any], right: Mapping[str, Any]) -> Iterator[str]:
    return (name for name in right if left.get(name) != right[name])


if __name__ == "__main__":
    main()
