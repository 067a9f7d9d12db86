"""Engines in a repository: are they of this bundle, do they take its batches, which profiles."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from export.config import ModelConfig
from hmer.bundle import Bundle
from hmer.engine import TENSORRT, check_bundle, read_sidecar, sidecar_of
from hmer.errors import ExportError


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


def copy_engine(plan: Path, folder: Path) -> None:
    """Copy ``plan`` and its sidecar to a model's version folder."""
    target = folder / "model.plan"
    shutil.copyfile(plan, target)
    shutil.copyfile(sidecar_of(plan), sidecar_of(target))
