"""Checkpoint -> ``encoder.onnx`` and ``decoder_step.onnx``, in a verified bundle.

::

    load the checkpoint -> fold BatchNorm -> torch.onnx -> name the axes -> float16 storage
        -> check the graphs -> compare answers with the checkpoint -> rename into place

The bundle is built in a folder beside the output, so that a failure leaves nothing behind.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import Tensor, nn
from torch.export import Dim

from export.checks import check_graph, name_axes, op_counts, opset_of
from export.graphs import DecoderStepGraph, EncoderGraph, fold_batch_norm
from export.parity import Parity, Progress, check_parity
from export.storage import compress
from hmer import __version__, contract
from hmer.bundle import (
    BUNDLE_FILE,
    ENCODER_FILE,
    GRAPHS,
    STEP_FILE,
    Bundle,
    load_bundle,
    save_bundle,
)
from hmer.contract import ModelSpec
from hmer.errors import BadParameter, BundleError, ExportError, MissingDependency
from training.checkpoint import load_checkpoint
from training.network import Recogniser

OPSET = 20  # TensorRT 10.x and 11.x, ONNX Runtime and OpenVINO all read it
MAX_K = 16
Storage = Literal["float16", "float32"]
STORAGES: tuple[Storage, ...] = ("float16", "float32")
GRAPH_FILES = {contract.ENCODER: ENCODER_FILE, contract.DECODER_STEP: STEP_FILE}


@dataclass(frozen=True)
class GraphSummary:
    """One exported file; ``rounding`` is the greatest error of a stored weight, relative to
    the largest of its tensor (0 where the checkpoint's weights are float16 values)."""

    file: str
    bytes: int
    opset: int
    nodes: int
    operators: dict[str, int]
    rounding: float


@dataclass(frozen=True)
class Exported:
    """What ``export_bundle`` wrote and how it compared."""

    bundle: Bundle
    graphs: tuple[GraphSummary, ...]
    parity: tuple[Parity, ...]

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "bundle": str(self.bundle.folder),
            "k": self.bundle.k,
            "graphs": [asdict(graph) for graph in self.graphs],
            "parity": [parity.to_dict() for parity in self.parity],
        }


def export_bundle(
    checkpoint: str | Path,
    output: str | Path,
    *,
    k: int = 4,
    images: Mapping[str, NDArray[np.uint8]],
    storage: Storage = "float16",
    runtimes: Sequence[str] | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress | None = None,
) -> Exported:
    """Export the bundle ``checkpoint`` to the folder ``output``, which must be new or empty.

    ``k`` tokens a call of ``decoder_step``. ``images`` (name -> preprocessed uint8 (H, W))
    are what the answers are compared on, by every one of ``runtimes`` (default: those
    installed). ``force`` replaces an earlier exported bundle, and nothing else.

    Raises ``BundleError`` for a checkpoint that cannot be used, ``ParityError`` if any
    token differs, ``ExportError`` for the rest; then nothing is left in ``output``.
    """
    if not 1 <= k <= MAX_K:
        raise BadParameter(f"k is {k}; give a number of tokens from 1 to {MAX_K}.")
    if storage not in STORAGES:
        raise BadParameter(f"The storage {storage!r} is unknown; give float16 or float32.")
    output = Path(output)
    _check_output(output, force)
    source, model = load_checkpoint(checkpoint)
    say(f"Loaded {checkpoint}.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise ExportError(f"{output} cannot be made: {error.strerror}.") from error
    try:
        bundle = Bundle(
            folder=draft,
            kind=GRAPHS,
            vocabulary=source.vocabulary,
            preprocess=source.preprocess,
            network=source.network,
            k=k,
        )
        summaries = []
        for graph, rounding in export_graphs(model, bundle, storage):
            name = str(graph.graph.name)
            path = bundle.file(GRAPH_FILES[name])
            path.write_bytes(graph.SerializeToString(deterministic=True))
            summaries.append(_summary(graph, path, rounding))
            say(f"Made {path.name}.")
        parity = check_parity(model, bundle, images, runtimes=runtimes, progress=progress)
        bundle.details = {
            **source.details,
            "export": {
                "storage": storage,
                "opset": OPSET,
                "torch": str(torch.__version__),
                "parity": [result.to_dict() for result in parity],
            },
        }
        save_bundle(bundle, [summary.file for summary in summaries])
        _move(draft, output)
    except OSError as error:
        raise ExportError(f"{output} cannot be written: {error.strerror}.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Exported(load_bundle(output, kind=GRAPHS), tuple(summaries), tuple(parity))


def export_graphs(
    model: Recogniser, bundle: Bundle, storage: Storage
) -> Iterator[tuple[ModelProto, float]]:
    """The encoder's and the step's checked graphs, named as in the contract, and the greatest
    relative rounding of a stored weight. Raises ``ExportError``."""
    specs = contract.models(bundle.sizes)
    stride = bundle.sizes.stride
    folded, scales = fold_batch_norm(model)
    modules: dict[str, nn.Module] = {
        contract.ENCODER: EncoderGraph(folded),
        contract.DECODER_STEP: DecoderStepGraph(model, bundle.k),
    }
    factors = {name: scale.numpy() for name, scale in scales.items()}
    for name, module in modules.items():
        graph = export_graph(module.eval(), specs[name], stride)
        rounding = compress(graph, factors).rounding if storage == "float16" else 0.0
        check_graph(graph, specs[name])
        yield graph, rounding


def export_graph(module: nn.Module, spec: ModelSpec, stride: int) -> ModelProto:
    """``module``, whose ``forward`` takes ``spec``'s inputs in order, as an ONNX graph.

    Open axes stay open and are named as in ``spec``; ``height`` and ``width`` are
    multiples of ``stride``. Raises ``ExportError``.
    """
    batch = Dim("batch", min=1, max=1 << 16)
    axes: dict[str, Any] = {
        name: Dim(name, min=1, max=1 << 12) for name in ("feature_height", "feature_width")
    }
    for axis in ("height", "width"):
        axes[axis] = stride * axes[f"feature_{axis}"]
    # Sizes that are unlike each other and unlike 0 and 1, which the exporter would take
    # for constants.
    lengths = {"feature_height": 3, "feature_width": 5}
    lengths |= {axis: stride * lengths[f"feature_{axis}"] for axis in ("height", "width")}
    example, dynamic = [], []
    for tensor in spec.inputs:
        shape = [2, *(lengths[d] if isinstance(d, str) else d for d in tensor.dims)]
        example.append(torch.from_numpy(np.zeros(shape, tensor.dtype)))
        named = {i: axes[d] for i, d in enumerate(tensor.dims, 1) if isinstance(d, str)}
        dynamic.append({0: batch, **named})
    model = _onnx(module, tuple(example), tuple(dynamic), spec)
    _clean(model, spec.name)
    name_axes(model, spec)
    return model


def _onnx(
    module: nn.Module, example: tuple[Tensor, ...], dynamic: tuple[Any, ...], spec: ModelSpec
) -> ModelProto:
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                module,
                example,
                dynamo=True,
                opset_version=OPSET,
                input_names=[tensor.name for tensor in spec.inputs],
                output_names=[tensor.name for tensor in spec.outputs],
                dynamic_shapes=dynamic,
                verbose=False,
            )
            if program is None:
                raise ExportError(f"The {spec.name} graph came out empty.")
            return program.model_proto
    except ImportError as error:
        raise MissingDependency(
            f"The export needs {error.name}. Install it with: pip install 'hmer[export]'"
        ) from error
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(f"The {spec.name} graph cannot be exported: {reason[0]}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter talks about optional packages and about its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _clean(model: ModelProto, name: str) -> None:
    """Drop what the exporter noted for debugging (source lines with their paths, shapes)."""
    graph = model.graph
    del graph.value_info[:], graph.metadata_props[:], model.metadata_props[:]
    for item in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    model.doc_string = graph.doc_string = ""
    model.producer_name, model.producer_version = "hmer", __version__
    graph.name = name
    shorter = {i.name: i.name.removeprefix("model.") for i in graph.initializer}
    for tensor in graph.initializer:
        tensor.name = shorter[tensor.name]
    for node in graph.node:
        node.input[:] = [shorter.get(value, value) for value in node.input]


def _summary(model: ModelProto, path: Path, rounding: float) -> GraphSummary:
    counts = op_counts(model)
    return GraphSummary(
        file=path.name,
        bytes=path.stat().st_size,
        opset=opset_of(model),
        nodes=counts.total(),
        operators=dict(counts.most_common()),
        rounding=rounding,
    )


def _check_output(output: Path, force: bool) -> None:
    if not output.exists():
        return
    if not output.is_dir():
        raise ExportError(f"{output} is a file. Give a folder with --output.")
    names = {entry.name for entry in output.iterdir()}
    if not names:
        return
    if not force:
        raise ExportError(
            f"{output} is not empty. Give a new folder, or --force to replace the bundle in it."
        )
    foreign = names - {BUNDLE_FILE, *GRAPH_FILES.values()}
    if BUNDLE_FILE not in names or foreign:
        raise ExportError(
            f"{output} holds more than an exported bundle ({', '.join(sorted(foreign)[:3])}), so "
            "--force does not replace it. Give another folder."
            if foreign
            else f"{output} holds no {BUNDLE_FILE}, so --force does not replace it."
        )


def _move(draft: Path, output: Path) -> None:
    """Rename ``draft`` to ``output``; a bundle that is there stays until the new one is whole."""
    draft.chmod(0o755)  # mkdtemp made it private
    if not output.exists():
        draft.rename(output)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{output.name}.old.", dir=output.parent))
    output.rename(old / "bundle")
    try:
        draft.rename(output)
    except OSError:
        (old / "bundle").rename(output)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
