"""A small bundle of graphs without weights, and engines of it that a fake TensorRT "built"."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from export.tensorrt_build import EngineOptions, build_plan, write_plan
from hmer import contract
from hmer.bundle import GRAPHS, Bundle, load_bundle, save_bundle
from hmer.gpu import Gpu
from hmer.preprocess import PreprocessSettings
from hmer.vocab import Vocabulary
from tests.fake_tensorrt import make

L4 = Gpu("0", "GPU-1234", "NVIDIA L4", "8.9", 23034, "610.43")
NETWORK = {"strides": [2, 2, 2, 1, 1], "widths": [2, 3, 4, 6], "attention": 5, "hidden": 7}
TYPES = {
    "uint8": TensorProto.UINT8,
    "int32": TensorProto.INT32,
    "float32": TensorProto.FLOAT,
}


def graph_of(spec: contract.ModelSpec) -> onnx.ModelProto:
    """An ONNX file with ``spec``'s inputs and outputs, and nothing between them."""

    def values(tensors: tuple[contract.TensorSpec, ...]) -> list[Any]:
        return [
            helper.make_tensor_value_info(t.name, TYPES[t.dtype], ["batch", *t.dims])
            for t in tensors
        ]

    graph = helper.make_graph([], spec.name, values(spec.inputs), values(spec.outputs))
    return helper.make_model(graph)


def make_bundle(folder: Path, **changes: Any) -> Bundle:
    """A graphs bundle in ``folder``; ``changes`` are fields of ``Bundle``."""
    folder.mkdir(parents=True)
    bundle = Bundle(folder, GRAPHS, Vocabulary("xy"), PreprocessSettings(), NETWORK, k=3)
    bundle = replace(bundle, **changes)
    specs = contract.models(bundle.sizes)
    names = [contract.ENCODER, contract.DECODER_STEP]
    names += [contract.DECODER_BEAM] if bundle.beam else []
    for name in names:
        bundle.file(f"{name}.onnx").write_bytes(graph_of(specs[name]).SerializeToString())
    save_bundle(bundle, [f"{name}.onnx" for name in names])
    return load_bundle(folder)


def make_engines(
    folder: Path, bundle: Bundle, version: str = "tensorrt-11.1.0", **changes: Any
) -> Path:
    """Engines of ``bundle`` by the fake TensorRT; ``changes`` are fields of their sidecars."""
    folder.mkdir(parents=True, exist_ok=True)
    trt = make(version)
    for path in sorted(bundle.folder.glob("*.onnx")):
        plan = build_plan(trt, bundle, path.stem, EngineOptions(), L4, folder / "cache")
        write_plan(replace(plan, info=replace(plan.info, **changes)), folder)
    return folder
