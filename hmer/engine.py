"""The sidecar of a TensorRT plan: what it was built from, by what, for what; and who may load it.

::

    ENGINES/encoder.plan         what TensorRT serialised; it explains nothing by itself
    ENGINES/encoder.plan.json    the sidecar: TensorRT's exact version, GPU, hashes, profiles

A plan loads only in the version of TensorRT that built it and, unless it was built otherwise, on
the kind of GPU that it was built on; of both TensorRT speaks in numbers, at load, in a log. The
checks here need neither TensorRT nor a GPU, and say what to do.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hmer import contract
from hmer.bundle import Bundle, sha256_of
from hmer.contract import CONTRACT_VERSION
from hmer.errors import (
    BundleError,
    ContractMismatch,
    CorruptBundle,
    MissingBundle,
    VocabularyMismatch,
)

SIDECAR_FORMAT = "hmer-engine"
PLAN_SUFFIX, SIDECAR_SUFFIX = ".plan", ".json"
TENSORRT, TENSORRT_RTX = "tensorrt", "tensorrt_rtx"
FLAVOURS = (TENSORRT, TENSORRT_RTX)

# A named axis -> its smallest, typical and greatest size.
Range = tuple[int, int, int]


@dataclass(frozen=True)
class EngineTensor:
    """An input or output: ``dtype`` is a NumPy name, ``dims`` include the batch."""

    name: str
    dtype: str
    dims: tuple[int | str, ...]


@dataclass(frozen=True)
class EngineProfile:
    """An optimisation profile, by named axes: equal names are equal sizes in all inputs."""

    name: str
    axes: Mapping[str, Range]

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether every axis of ``sizes`` lies in this profile's range."""
        return all(self.axes[axis][0] <= size <= self.axes[axis][2] for axis, size in sizes.items())


@dataclass(frozen=True)
class EngineInfo:
    """A sidecar. ``graph`` is the contract's name of the model, ``flavour`` the library.

    ``version``: of the library, all its parts. ``gpu`` and ``compute_capability`` ("8.9") of the
    machine that built it; ``None`` where none is needed (TensorRT for RTX), which lists
    ``targets`` instead. ``options``: ``version_compatible``, ``hardware_compatible`` (bool),
    ``workspace_gib``, ``max_batch``. ``seconds`` it took to build.
    """

    graph: str
    flavour: str
    version: str
    gpu: str | None
    compute_capability: str | None
    targets: tuple[str, ...]
    precision: str
    k: int
    beam: int
    onnx_sha256: str
    plan_sha256: str
    plan_bytes: int
    vocabulary_sha256: str
    contract: int
    hmer: str
    profiles: tuple[EngineProfile, ...]
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def version_compatible(self) -> bool:
        """Whether later versions of TensorRT load it too."""
        return bool(self.options.get("version_compatible"))

    @property
    def hardware_compatible(self) -> bool:
        """Whether GPUs of other compute capabilities from 8.0 on load it too."""
        return bool(self.options.get("hardware_compatible"))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"format": SIDECAR_FORMAT, **asdict(self)}


def tensors_of(spec: contract.ModelSpec) -> tuple[tuple[EngineTensor, ...], ...]:
    """Inputs and outputs of the contract's ``spec``, with the batch."""
    return tuple(
        tuple(EngineTensor(t.name, t.dtype, ("batch", *t.dims)) for t in tensors)
        for tensors in (spec.inputs, spec.outputs)
    )


def sidecar_of(plan: Path) -> Path:
    """Where the sidecar of ``plan`` lies."""
    return plan.with_name(plan.name + SIDECAR_SUFFIX)


def write_sidecar(plan: Path, info: EngineInfo) -> None:
    """Write ``info`` beside ``plan``; it appears whole or not at all."""
    target = sidecar_of(plan)
    draft = target.with_name(target.name + ".part")
    draft.write_text(json.dumps(info.to_dict(), indent=1) + "\n", encoding="utf-8")
    os.replace(draft, target)


def read_sidecar(plan: str | Path) -> EngineInfo:
    """The sidecar of ``plan``, whose file must be the one that it describes.

    Raises ``MissingBundle``, ``CorruptBundle``, ``ContractMismatch``.
    """
    plan = Path(plan)
    path = sidecar_of(plan)
    if not plan.is_file():
        raise MissingBundle(
            f"There is no {plan}. Build it on the machine that will serve it: "
            "hmer-export engine BUNDLE --output DIR"
        )
    if not path.is_file():
        raise MissingBundle(
            f"{plan} has no {path.name} beside it, so nobody can tell which TensorRT and which GPU "
            "it is for. Build it again with hmer-export engine, and keep both files together."
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != SIDECAR_FORMAT:
            raise CorruptBundle(f"{path} does not describe an engine of this project.")
        info = _parse({k: v for k, v in document.items() if k != "format"})
    except BundleError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise CorruptBundle(
            f"{path} cannot be read ({type(error).__name__}: {error}). Build the engine again with "
            "hmer-export engine."
        ) from error
    if info.contract != CONTRACT_VERSION:
        raise ContractMismatch(
            f"{plan} was built for contract version {info.contract} (hmer {info.hmer}), and this "
            f"is version {CONTRACT_VERSION}. Export the checkpoint and build the engine again."
        )
    if plan.stat().st_size != info.plan_bytes or sha256_of(plan) != info.plan_sha256:
        raise CorruptBundle(
            f"{plan} is not the file that {path.name} describes: it was truncated, changed or "
            "built another time. Copy both files again, or build the engine again."
        )
    return info


def check_bundle(info: EngineInfo, plan: Path, bundle: Bundle) -> None:
    """Refuse an engine that was not built from ``bundle``'s graph.

    Raises ``VocabularyMismatch`` or ``BundleError``.
    """
    remedy = (
        f"Build it again: hmer-export engine {bundle.folder} --output DIR, on the machine that "
        "will serve it."
    )
    if info.vocabulary_sha256 != bundle.vocabulary.fingerprint:
        raise VocabularyMismatch(
            f"{plan} was built for another vocabulary than that of {bundle.folder}. {remedy}"
        )
    graph = bundle.file(f"{info.graph}.onnx")
    if not graph.is_file():
        raise BundleError(f"{plan} is a {info.graph}, which {bundle.folder} does not have.")
    if info.onnx_sha256 != sha256_of(graph):
        raise BundleError(
            f"{plan} was not built from {graph}: the graph has another hash. {remedy}"
        )
    spec = contract.models(bundle.sizes)[info.graph]
    if (info.inputs, info.outputs) != tensors_of(spec) or info.precision != bundle.precision:
        raise BundleError(f"{plan} has other tensors than the graph {graph}. {remedy}")


def check_runtime(
    info: EngineInfo, plan: Path, version: str, compute_capability: str | None
) -> None:
    """Refuse an engine that the TensorRT ``version`` on a GPU of this capability cannot load.

    ``compute_capability`` ``None``: unknown, not checked. Raises ``BundleError``.
    """
    if not loads_in(info, version):
        raise BundleError(
            f"{plan} was built by {_library(info)} {info.version}, and this is {version}: a plan "
            f"loads only in the version that built it. Install it (pip install '{info.flavour}=="
            f"{info.version}'), or build the engine again here with hmer-export engine."
        )
    check_gpu(info, plan, compute_capability)


def check_gpu(info: EngineInfo, plan: Path, compute_capability: str | None) -> None:
    """Refuse an engine built for another kind of GPU. Raises ``BundleError``."""
    if compute_capability is None:
        return
    if info.flavour == TENSORRT_RTX:
        fits = "SM" + compute_capability.replace(".", "") in info.targets
        built = f"for {', '.join(info.targets)}"
        option = f" with --compute-capability {compute_capability}"
    else:
        anywhere = info.hardware_compatible and _numbers(compute_capability) >= (8, 0)
        fits = anywhere or info.compute_capability == compute_capability
        built = f"on {info.gpu} (compute capability {info.compute_capability})"
        option = ""
    if fits:
        return
    raise BundleError(
        f"{plan} was built {built}, and this GPU has compute capability {compute_capability}. "
        f"Build it again on this machine: hmer-export engine BUNDLE --output DIR{option}"
    )


def loads_in(info: EngineInfo, version: str) -> bool:
    """Whether TensorRT ``version``, of which some parts may be missing ("10.16"), loads it."""
    built, running = _numbers(info.version), _numbers(version)
    shared = min(len(built), len(running))
    if info.version_compatible:  # forward only, from the version that built it
        return built[:shared] <= running[:shared]
    return built[:shared] == running[:shared]


def _library(info: EngineInfo) -> str:
    return "TensorRT" if info.flavour == TENSORRT else "TensorRT for RTX"


def _numbers(version: str) -> tuple[int, ...]:
    """The numeric parts at the beginning: ``10.14.1.48.post1`` gives (10, 14, 1, 48)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _parse(values: dict[str, Any]) -> EngineInfo:
    tensors = {
        kind: tuple(EngineTensor(t["name"], t["dtype"], tuple(t["dims"])) for t in values[kind])
        for kind in ("inputs", "outputs")
    }
    profiles = tuple(
        EngineProfile(p["name"], {axis: _range(sizes) for axis, sizes in p["axes"].items()})
        for p in values["profiles"]
    )
    known = {**values, **tensors, "profiles": profiles, "targets": tuple(values["targets"])}
    if known["flavour"] not in FLAVOURS or not _numbers(str(known["version"])):
        raise ValueError(f"flavour {known['flavour']!r}, version {known['version']!r}")
    return EngineInfo(**known)


def _range(sizes: Any) -> Range:
    low, typical, high = (int(size) for size in sizes)
    return low, typical, high
