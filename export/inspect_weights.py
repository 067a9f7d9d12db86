"""Explain checkpoints and training runs. Needs neither torch nor the network's code."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from export.inspect_page import Page, Section, scalars
from hmer.bundle import WEIGHTS_FILE, Bundle, load_bundle
from hmer.errors import CorruptBundle, HmerError

STATE_FILE = "state.safetensors"
NO_SAFETENSORS = "For tensors and parameters install safetensors: pip install 'hmer[train]'."


def checkpoint_page(bundle: Bundle, sections: list[Section]) -> Page:
    """``bundle`` of kind "checkpoint"; ``sections`` are those that every bundle has."""
    path = bundle.file(WEIGHTS_FILE)
    try:
        weights = Section("Weights", _tensors(path)[0])
    except ImportError:
        weights = Section("Weights", {}, note=NO_SAFETENSORS)
    return Page(
        "checkpoint",
        str(bundle.folder),
        "a checkpoint, the weights of a trained network.",
        [*sections, weights],
        [f"hmer-export onnx {bundle.folder} --output bundle"],
    )


def run_page(folder: Path) -> Page:
    """The folder of a run of ``hmer-train train``. Raises ``CorruptBundle``."""
    path = folder / STATE_FILE
    facts: dict[str, Any] = {"bytes": path.stat().st_size}
    progress: dict[str, Any] = {}
    note = ""
    try:
        tensors, metadata = _tensors(path)
        facts |= tensors
        progress = json.loads(metadata.get("progress", "{}"))
    except ImportError:
        note = NO_SAFETENSORS
    except (ValueError, AttributeError) as error:
        raise CorruptBundle(
            f"{path} holds no progress that can be read ({error}). The run cannot be continued: "
            f"start anew, or export {folder / 'best'}."
        ) from error
    sections = [Section("State", facts, note=note), Section("Progress", scalars(progress))]
    if identity := progress.get("identity"):
        sections.append(Section("Identity", scalars(identity)))
    last = _last_line(folder / "metrics.jsonl")
    if last:
        sections.append(Section("Last metrics", scalars(last)))
    best = folder / "best"
    commands = [f"hmer-train train --save-dir {folder} ... goes on where it stopped"]
    if best.is_dir():
        sections.append(Section("Best", _best(best)))
        commands.insert(0, f"hmer-export onnx {best} --output bundle")
    return Page(
        "run", str(folder), "a training run, as hmer-train train saves it.", sections, commands
    )


def _best(folder: Path) -> dict[str, Any]:
    try:
        bundle = load_bundle(folder)
    except HmerError as error:
        return {"checkpoint": str(folder), "usable": False, "reason": str(error)}
    details = bundle.details.get("training", {})
    return {"checkpoint": str(folder), "usable": True, **scalars(details)}


def _tensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Counts over a safetensors file's header, and its metadata. ``CorruptBundle``."""
    from safetensors import SafetensorError, safe_open

    counts: Counter[str] = Counter()
    parameters = 0
    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
            metadata = dict(file.metadata() or {})
            for name in names:
                part = file.get_slice(name)
                size = 1
                for length in part.get_shape():
                    size *= length
                parameters += size
                counts[str(part.get_dtype())] += size
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptBundle(
            f"{path} is not a whole safetensors file ({error}). Copy it again."
        ) from error
    facts = {"tensors": len(names), "values": parameters, "values_by_type": dict(counts)}
    return facts, metadata


def _last_line(path: Path) -> dict[str, Any]:
    """The last whole line of a file of JSON lines; empty if there is none."""
    if not path.is_file():
        return {}
    for line in reversed(path.read_text(encoding="utf-8", errors="replace").splitlines()):
        try:
            values = json.loads(line)
        except ValueError:  # a killed run may leave half a line
            continue
        return values if isinstance(values, dict) else {}
    return {}
