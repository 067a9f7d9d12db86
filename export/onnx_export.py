"""Checkpoint -> ``encoder.onnx``, ``decoder_step.onnx`` and ``decoder_beam.onnx``, in a bundle.

::

    load the checkpoint -> fold BatchNorm -> torch.onnx -> name the axes -> float16 storage
        -> check the graphs -> compare answers with the checkpoint -> rename into place

The bundle is built in a folder beside the output, so that a failure leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import nn

from export.beam_graph import DecoderBeamGraph
from export.checks import check_graph, op_counts, opset_of
from export.gate import measure_loss, refuse_loss
from export.graphs import DecoderStepGraph, EncoderGraph, fold_batch_norm
from export.output import GRAPH_FILES, draft
from export.parity import Parity, Progress, check_parity, compare, installed_runtimes
from export.precision import check_precision, lower
from export.precision_checks import graph_precision
from export.quantise import Images, quantise
from export.selection import selections
from export.storage import compress
from export.trace import OPSET, OPSETS, export_graph
from hmer import contract
from hmer.bundle import BUNDLE_FILE, GRAPHS, Bundle, load_bundle, save_bundle
from hmer.errors import BadParameter, ExportError
from hmer.runtime import ONNXRUNTIME
from training.checkpoint import load_checkpoint
from training.network import Recogniser

MAX_K = 16
MAX_BEAM = 64
Storage = Literal["float16", "float32"]
STORAGES: tuple[Storage, ...] = ("float16", "float32")


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
            "beam": self.bundle.beam,
            "precision": self.bundle.precision,
            "loss": self.bundle.details["export"].get("loss"),
            "graphs": [asdict(graph) for graph in self.graphs],
            "parity": [parity.to_dict() for parity in self.parity],
        }


def export_bundle(
    checkpoint: str | Path,
    output: str | Path,
    *,
    k: int = 4,
    beam: int = 8,
    precision: str = "fp32",
    data: Path | None = None,
    accept_loss: bool = False,
    images: Mapping[str, NDArray[np.uint8]],
    storage: Storage = "float16",
    runtimes: Sequence[str] | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress | None = None,
) -> Exported:
    """Export the bundle ``checkpoint`` to the folder ``output``, which must be new or empty.

    ``k`` tokens a call of ``decoder_step``; ``beam`` candidates a call of ``decoder_beam``, 0
    leaves that graph out. ``images`` (name -> preprocessed uint8 (H, W)) are what the answers
    are compared on, by every one of ``runtimes`` (default: those installed). ``force`` replaces
    an earlier exported bundle, and nothing else.

    ``precision`` other than fp32: float32 in and out, see ``export.precision`` and
    ``export.quantise``. It is judged on the held-out part of the training writings in ``data``
    (int8 is calibrated on the rest; ``None``: on the samples), and refused if it loses more
    than ``export.gate.ALLOWED`` points of ExpRate, unless ``accept_loss``. Parity is reported
    for it; for fp32 a differing token is an error.

    Raises ``BundleError`` for a checkpoint that cannot be used, ``ParityError`` if any
    token differs, ``ExportError`` for the rest; then nothing is left in ``output``.
    """
    if not 1 <= k <= MAX_K:
        raise BadParameter(f"k is {k}; give a number of tokens from 1 to {MAX_K}.")
    if not 0 <= beam <= MAX_BEAM:
        raise BadParameter(f"beam is {beam}; give 0 to {MAX_BEAM} candidates a step.")
    if storage not in STORAGES:
        raise BadParameter(f"The storage {storage!r} is unknown; give float16 or float32.")
    check_precision(precision)
    output = Path(output)
    _check_output(output, force)
    source, model = load_checkpoint(checkpoint)
    say(f"Loaded {checkpoint}.")
    with draft(output) as folder:
        bundle = Bundle(
            folder=folder,
            kind=GRAPHS,
            vocabulary=source.vocabulary,
            preprocess=source.preprocess,
            network=source.network,
            k=k,
            beam=beam,
            precision=precision,
        )
        chosen = None if precision == "fp32" else selections(bundle.preprocess, data)
        calibration = chosen.calibration.images if chosen else {}
        summaries = write_graphs(model, bundle, storage, calibration, say)
        details: dict[str, Any] = {
            "storage": storage,
            "opset": OPSETS.get(precision, OPSET),
            "torch": str(torch.__version__),
        }
        if chosen is None:
            parity = check_parity(model, bundle, images, runtimes=runtimes, progress=progress)
        else:
            loss = measure_loss(model, bundle, chosen.judged)
            refuse_loss(loss, accept_loss, say)
            details["loss"] = loss.to_dict()
            if precision == "int8":
                details["calibration"] = chosen.calibration.source
            able = _able(precision) if runtimes is None else runtimes
            parity = (
                compare(model, bundle, images, runtimes=able, progress=progress) if able else []
            )
        details["parity"] = [result.to_dict() for result in parity]
        bundle.details = {**source.details, "export": details}
        save_bundle(bundle, [summary.file for summary in summaries])
    return Exported(load_bundle(output, kind=GRAPHS), tuple(summaries), tuple(parity))


def write_graphs(
    model: Recogniser,
    bundle: Bundle,
    storage: Storage,
    calibration: Images,
    say: Callable[[str], None] = lambda line: None,
) -> list[GraphSummary]:
    """Write the graphs of ``export_graphs`` to the files of ``bundle``'s folder."""
    summaries = []
    for graph, rounding in export_graphs(model, bundle, storage, calibration):
        path = bundle.file(GRAPH_FILES[str(graph.graph.name)])
        path.write_bytes(graph.SerializeToString(deterministic=True))
        summaries.append(_summary(graph, path, rounding))
        say(f"Made {path.name}.")
    return summaries


def export_graphs(
    model: Recogniser, bundle: Bundle, storage: Storage, calibration: Images
) -> Iterator[tuple[ModelProto, float]]:
    """The checked graphs, named as in the contract, and the greatest relative rounding of a
    stored float32 weight. ``calibration``: images for int8. Raises ``ExportError``."""
    specs = contract.models(bundle.sizes)
    folded, scales = fold_batch_norm(model)
    encoder, decoder = lower(folded, bundle.precision), lower(model, bundle.precision)
    modules: dict[str, nn.Module] = {
        contract.ENCODER: EncoderGraph(encoder),
        contract.DECODER_STEP: DecoderStepGraph(decoder, bundle.k),
    }
    if bundle.beam:
        modules[contract.DECODER_BEAM] = DecoderBeamGraph(decoder, bundle.beam)
    factors = {name: scale.numpy() for name, scale in scales.items()}
    for name, module in modules.items():
        precision = graph_precision(name, bundle.precision)
        graph = export_graph(module.eval(), specs[name], bundle.sizes.stride, precision)
        if precision == "int8":
            graph = quantise(graph, calibration)
        rounding = compress(graph, factors).rounding if storage == "float16" else 0.0
        check_graph(graph, specs[name], precision)
        yield graph, rounding


def _able(precision: str) -> tuple[str, ...]:
    """The installed runtimes that compute graphs of ``precision``."""
    return tuple(n for n in installed_runtimes() if n != ONNXRUNTIME or precision != "bf16")


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
