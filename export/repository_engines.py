"""Engines in a repository: are they of this bundle, do they take its batches, which profiles."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from export.config import ModelConfig
from export.tensorrt_profiles import LINE
from hmer import contract
from hmer.bundle import Bundle
from hmer.engine import TENSORRT, EngineInfo, check_bundle, read_sidecar, sidecar_of
from hmer.errors import ExportError
from hmer.slots import GPU_BUCKET, ladder_for


def use_engines(
    configs: Mapping[str, ModelConfig], plans: Mapping[str, Path], bundle: Bundle
) -> None:
    """Check the engines ``plans`` (model -> plan) and name their profiles in ``configs``.

    Raises ``BundleError`` for an engine of another bundle or without its sidecar, ``ExportError``
    for one that Triton cannot load or that takes fewer rows than the repository sends.
    """
    for name, plan in plans.items():
        info = read_sidecar(plan)
        check_bundle(info, plan, bundle)
        if info.graph != name or info.flavour != TENSORRT:
            raise ExportError(
                f"{plan} is {info.graph} for {info.flavour}, and Triton needs {name} for "
                f"{TENSORRT}. Build it with: hmer-export engine {bundle.folder} --output DIR"
            )
        rows, wanted = min(p.axes["batch"][2] for p in info.profiles), configs[name].max_batch_size
        if rows < wanted:
            raise ExportError(
                f"{plan} takes at most {rows} rows, and this repository sends {name} up to "
                f"{wanted}. Build the engine with a larger --max-batch"
                + ("." if name == "encoder" else f", or assemble with --slots {rows}.")
            )
        # Triton uses the first profile alone unless they are named; it then takes, for every
        # batch, the one that is tuned for the nearest size.
        configs[name].instance_group[0].profile.extend(str(i) for i in range(len(info.profiles)))
        if name in (contract.DECODER_STEP, contract.DECODER_BEAM):
            use_cuda_graphs(configs[name], info, bundle)


def use_cuda_graphs(config: ModelConfig, info: EngineInfo, bundle: Bundle) -> None:
    """Let Triton capture the decoder's steps: every rung of the ladder, for formulas of a line.

    A step is a hundred small kernels, whose launches would take longer than they do. A graph
    serves exactly its shape, so ``decode`` pads rows to ``LADDER`` and features to
    ``GPU_BUCKET``; a larger formula runs without a graph. ``graph_lower_bound`` is not used: with
    it Triton replays a graph on padding that nobody has written. The encoder's kernels are large,
    and its shapes many: it has none. Unmeasured: no GPU has run it yet.
    """
    line = next((profile for profile in info.profiles if profile.name == LINE), None)
    if line is None or any(
        line.axes[f"feature_{side}"][2] < size
        for side, size in zip(("height", "width"), GPU_BUCKET, strict=True)
    ):
        return  # an engine of other profiles, or of smaller pictures
    known = dict(zip(("feature_height", "feature_width"), GPU_BUCKET, strict=True))
    cuda = config.optimization.cuda
    cuda.graphs = True
    # Outputs of a call are copied on their own stream while the next one runs.
    cuda.output_copy_stream = True
    for rows in ladder_for(config.max_batch_size):
        graph = cuda.graph_spec.add(batch_size=rows)
        for tensor in contract.models(bundle.sizes)[config.name].inputs:
            dims = [known[dim] if isinstance(dim, str) else dim for dim in tensor.dims]
            graph.input[tensor.name].dim.extend(dims)


def copy_engine(plan: Path, folder: Path) -> None:
    """Copy ``plan`` and its sidecar to a model's version folder."""
    target = folder / "model.plan"
    shutil.copyfile(plan, target)
    shutil.copyfile(sidecar_of(plan), sidecar_of(target))
