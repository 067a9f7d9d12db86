"""Explain an ONNX graph of this project."""

from __future__ import annotations

from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.inspect_page import Page, Section
from hmer import contract
from hmer.bundle import BUNDLE_FILE, Bundle, load_bundle
from hmer.errors import ContractMismatch, CorruptBundle, ExportError, MissingDependency

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

PRODUCER = "hmer"
_GRAPHS = (contract.ENCODER, contract.DECODER_STEP, contract.DECODER_BEAM)
# Names of tensors are the same for networks of all sizes.
_SPECS = contract.models(contract.Sizes(1, 1, 1, 1, beam=1))


def graph_page(path: Path) -> Page:
    """The page of one ONNX file, and of the bundle that it lies in, if any.

    Raises ``ExportError`` for a graph that is not this project's, ``ContractMismatch`` for one
    with other tensors, ``CorruptBundle``, ``MissingDependency``.
    """
    model = load_graph(path)
    bundle = load_bundle(path.parent) if (path.parent / BUNDLE_FILE).is_file() else None
    sections = [Section("Graph", facts(model, path, bundle))]
    for title, values in (("Inputs", model.graph.input), ("Outputs", model.graph.output)):
        sections.append(Section(title, {}, [_tensor(value) for value in values]))
    sections.append(Section("Weights", {}, _weights(model)))
    if bundle is None:
        note = "Alone, without the bundle that it came in: nothing vouches for its bytes."
        sections.append(Section("Bundle", {}, note=note))
        commands = ["hmer-export inspect BUNDLE, the folder that hmer-export onnx wrote"]
    else:
        about = {
            "folder": str(bundle.folder),
            "hash_verified": True,
            "vocabulary": len(bundle.vocabulary),
            "vocabulary_sha256": bundle.vocabulary.fingerprint,
        }
        sections.append(Section("Bundle", about))
        commands = [
            f"hmer-export inspect {bundle.folder}",
            f"hmer-export verify CHECKPOINT {bundle.folder}",
        ]
    name = model.graph.name
    return Page("graph", str(path), f"the graph {name}, as ONNX.", sections, commands)


def load_graph(path: Path) -> ModelProto:
    """The ONNX file at ``path``, which must be one of this project's; errors as above."""
    try:
        import onnx

        decode_error = import_module("google.protobuf.message").DecodeError  # without types
    except ImportError as error:
        raise MissingDependency(
            f"Looking into a graph needs {error.name}. Install it with: pip install 'hmer[export]'"
        ) from error
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (decode_error, OSError, ValueError) as error:
        raise CorruptBundle(
            f"{path} is not a whole ONNX file ({error}). Copy the bundle again, or export the "
            "checkpoint again."
        ) from error
    name = model.graph.name
    if model.producer_name != PRODUCER or name not in _GRAPHS:
        made = f"{model.producer_name or 'an unnamed program'} made it"
        inputs = ", ".join(value.name for value in model.graph.input) or "none"
        raise ExportError(
            f"{path} is an ONNX graph, but not one of this project's: {made}, and its inputs are "
            f"{inputs}. Give a graph, or better the whole bundle, that hmer-export onnx wrote."
        )
    found = [value.name for value in (*model.graph.input, *model.graph.output)]
    wanted = [tensor.name for tensor in (*_SPECS[name].inputs, *_SPECS[name].outputs)]
    if found != wanted:
        raise ContractMismatch(
            f"{path} is a {name} of another version of the tensor contract: it has the tensors "
            f"{', '.join(found)} instead of {', '.join(wanted)}. Export the checkpoint again with "
            "this version."
        )
    return model


def facts(model: ModelProto, path: Path, bundle: Bundle | None) -> dict[str, Any]:
    """Size, versions and what a call gives."""
    opset = max(int(e.version) for e in model.opset_import if e.domain in ("", "ai.onnx"))
    found: dict[str, Any] = {
        "model": model.graph.name,
        "bytes": path.stat().st_size,
        "precision": bundle.precision if bundle else None,
        "opset": opset,
        "ir_version": int(model.ir_version),
        "exporter": f"{model.producer_name} {model.producer_version}",
        "nodes": len(model.graph.node),
        "parameters": sum(row["values"] for row in _weights(model)),
        "operators": dict(Counter(node.op_type for node in model.graph.node).most_common()),
    }
    first = model.graph.output[0].type.tensor_type.shape.dim
    if model.graph.name == contract.DECODER_STEP:
        found["k"] = first[1].dim_value
    if model.graph.name == contract.DECODER_BEAM:
        found["beam"] = first[1].dim_value
    return found


def _tensor(value: ValueInfoProto) -> dict[str, Any]:
    import onnx

    kind = value.type.tensor_type
    axes = [axis.dim_param or axis.dim_value for axis in kind.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    return {"name": value.name, "dtype": str(dtype), "axes": axes}


def _weights(model: ModelProto) -> list[dict[str, Any]]:
    """How many constants of each stored type, their values and their bytes."""
    from onnx import TensorProto

    tensors: Counter[str] = Counter()
    values: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        kind = TensorProto.DataType.Name(tensor.data_type).lower()
        count = 1
        for length in tensor.dims:
            count *= length
        tensors[kind] += 1
        values[kind] += count
        sizes[kind] += len(tensor.raw_data) or tensor.ByteSize()
    return [
        {"stored_as": kind, "tensors": n, "values": values[kind], "bytes": sizes[kind]}
        for kind, n in tensors.most_common()
    ]
