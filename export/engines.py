"""All engines of a bundle, in a folder that appears whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.output import GRAPH_FILES, draft
from export.tensorrt_api import load
from export.tensorrt_build import EngineOptions, build_plan, check_gpu, write_plan
from hmer import contract
from hmer.bundle import GRAPHS, Bundle, load_bundle
from hmer.engine import PLAN_SUFFIX, SIDECAR_SUFFIX, TENSORRT, EngineInfo
from hmer.errors import ExportError
from hmer.gpu import Gpu, find_gpu

Say = Callable[[str], None]


@dataclass(frozen=True)
class Built:
    """A plan on disk and its sidecar's content."""

    plan: Path
    info: EngineInfo

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"plan": str(self.plan), **self.info.to_dict()}


def graphs_of(bundle: Bundle) -> tuple[str, ...]:
    """The bundle's graphs by their names in the contract, in the order of the road."""
    return tuple(name for name in GRAPH_FILES if name in contract.models(bundle.sizes))


def build_engines(
    bundle_folder: str | Path,
    output: str | Path,
    options: EngineOptions,
    *,
    cache: Path | None = None,
    force: bool = False,
    say: Say = lambda line: None,
) -> tuple[Built, ...]:
    """Build ``GRAPH.plan`` and its sidecar for every graph of the bundle.

    ``force`` replaces a folder of engines, and nothing else. Raises ``BundleError``,
    ``MissingDependency``, ``ExportError``; then nothing is left at ``output``.
    """
    bundle = load_bundle(bundle_folder, GRAPHS)
    output = Path(output)
    _check_output(output, force)
    trt = load(options.flavour)
    gpu = _gpu(bundle, options)
    names = graphs_of(bundle)
    built = []
    with draft(output) as folder:
        for number, name in enumerate(names, 1):
            say(
                f"[{number}/{len(names)}] {options.flavour} {trt.__version__} builds {name} in "
                f"{bundle.precision} for {gpu.name if gpu else ', '.join(options.sm_names)} ..."
            )
            plan = build_plan(trt, bundle, name, options, gpu, cache)
            built.append(Built(output / write_plan(plan, folder).name, plan.info))
    return tuple(built)


def _gpu(bundle: Bundle, options: EngineOptions) -> Gpu | None:
    if options.flavour != TENSORRT:  # it compiles without one
        return None
    gpu = find_gpu()
    if gpu is None:
        raise ExportError(
            "There is no NVIDIA GPU here (nvidia-smi is missing or shows none): TensorRT builds "
            "only on the GPU that will serve. Run this command there; --flavour tensorrt_rtx "
            "--compute-capability 8.9 compiles for a named GPU without one."
        )
    check_gpu(bundle.precision, gpu)
    return gpu


def _check_output(output: Path, force: bool) -> None:
    if not output.exists():
        return
    if not output.is_dir():
        raise ExportError(f"{output} is a file. Give a folder with --output.")
    names = sorted(entry.name for entry in output.iterdir())
    if not names:
        return
    if not force:
        raise ExportError(
            f"{output} is not empty. Give a new folder, or --force to replace the engines in it."
        )
    foreign = [n for n in names if not n.endswith((PLAN_SUFFIX, PLAN_SUFFIX + SIDECAR_SUFFIX))]
    if foreign:
        raise ExportError(
            f"{output} holds more than engines ({', '.join(foreign[:3])}), so --force does not "
            "replace it. Give another folder."
        )
