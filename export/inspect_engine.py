"""Explain a TensorRT plan by its sidecar. Needs neither TensorRT nor a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export.inspect_page import Page, Section, scalars
from hmer.engine import PLAN_SUFFIX, EngineInfo, EngineTensor, read_sidecar


def engine_page(plan: Path) -> Page:
    """The page of ``plan``. Raises what ``hmer.engine.read_sidecar`` raises."""
    info = read_sidecar(plan)
    sections = [
        Section("Engine", _facts(info)),
        Section("Options", scalars(info.options)),
        Section("Inputs", {}, _tensors(info.inputs)),
        Section("Outputs", {}, _tensors(info.outputs)),
        Section("Profiles", {}, profile_rows(info)),
        Section("Origin", _origin(info)),
    ]
    return Page(
        "engine",
        str(plan),
        f"{info.graph} as a plan of {info.flavour} {info.version}.",
        sections,
        _commands(plan.parent),
    )


def engines_page(folder: Path) -> Page:
    """The page of a folder of plans, as ``hmer-export engine`` writes it; errors as above."""
    plans = sorted(folder.glob(f"*{PLAN_SUFFIX}"))
    rows = []
    for plan in plans:
        facts = _facts(read_sidecar(plan))
        names = ("model", "library", "version", "gpu", "precision", "bytes")
        rows.append({"file": plan.name} | {name: facts[name] for name in names})
    return Page(
        "engines",
        str(folder),
        "a folder of TensorRT plans.",
        [Section("Engines", {"hashes_verified": True}, rows)],
        [f"hmer-export inspect {plan}" for plan in plans] + _commands(folder),
    )


def profile_rows(info: EngineInfo) -> list[dict[str, Any]]:
    """A row a profile and named axis: smallest, typical, greatest size."""
    return [
        {"profile": p.name, "axis": axis, "min": low, "typical": typical, "max": high}
        for p in info.profiles
        for axis, (low, typical, high) in p.axes.items()
    ]


def _commands(folder: Path) -> list[str]:
    return [
        f"hmer-export verify CHECKPOINT BUNDLE --engines {folder} --runner tensorrt",
        "hmer-export repository BUNDLE --host container --target tensorrt "
        f"--engines {folder} --output repository",
    ]


def _facts(info: EngineInfo) -> dict[str, Any]:
    return {
        "model": info.graph,
        "library": info.flavour,
        "version": info.version,
        "gpu": info.gpu,
        "compute_capability": info.compute_capability,
        "targets": list(info.targets),
        "precision": info.precision,
        "k": info.k,
        "beam": info.beam,
        "bytes": info.plan_bytes,
        "built_in_seconds": info.seconds,
        "hash_verified": True,
        "version_compatible": info.version_compatible,
        "hardware_compatible": info.hardware_compatible,
    }


def _origin(info: EngineInfo) -> dict[str, Any]:
    return {
        "onnx_sha256": info.onnx_sha256,
        "plan_sha256": info.plan_sha256,
        "vocabulary_sha256": info.vocabulary_sha256,
        "contract_version": info.contract,
        "written_by": f"hmer {info.hmer}",
    }


def _tensors(tensors: Sequence[EngineTensor]) -> list[dict[str, Any]]:
    return [{"name": t.name, "dtype": t.dtype, "axes": list(t.dims)} for t in tensors]
