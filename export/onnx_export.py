"""Checkpoint -> ``encoder.onnx`` and ``decoder_step.onnx``, in a verified bundle.

::

    load the checkpoint -> fold BatchNorm -> torch.onnx -> name the axes -> float16 storage
        -> check the graphs -> compare answers with the checkpoint -> rename into place

The bundle is built in a folder beside the output, so that a failure leaves nothing behind.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import nn

from export.checks import check_graph, op_counts, opset_of
from export.graphs import DecoderStepGraph, EncoderGraph, fold_batch_norm
from export.parity import Parity, Progress, check_parity
from export.storage import compress
from export.trace import OPSET, export_graph
from hmer import contract
from hmer.bundle import (
    BUNDLE_FILE,
    ENCODER_FILE,
    GRAPHS,
    STEP_FILE,
    Bundle,
    load_bundle,
    save_bundle,
)
from hmer.errors import BadParameter, ExportError, HmerError
from training.checkpoint import load_checkpoint
from training.network import Recogniser

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
    except HmerError:  # some are OSErrors too
        raise
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
