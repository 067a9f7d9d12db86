"""Explain a bundle: what both kinds share, and the graphs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from export.inspect_graph import facts, load_graph
from export.inspect_page import Page, Section, scalars
from export.inspect_weights import checkpoint_page
from hmer.bundle import BUNDLE_FILE, CHECKPOINT, Bundle, load_bundle
from hmer.errors import MissingDependency


def bundle_page(folder: Path) -> Page:
    """The page of a bundle of either kind, verified. Raises ``BundleError``."""
    bundle = load_bundle(folder)
    sections = bundle_sections(bundle)
    return checkpoint_page(bundle, sections) if bundle.kind == CHECKPOINT else _graphs(
        bundle, sections
    )  # fmt: skip


def bundle_sections(bundle: Bundle) -> list[Section]:
    """What every bundle has: versions, files, network, vocabulary, preprocessing, provenance."""
    document = json.loads(bundle.file(BUNDLE_FILE).read_text(encoding="utf-8"))
    files = [
        {"file": name, "bytes": entry["bytes"], "sha256": entry["sha256"]}
        for name, entry in document["files"].items()
    ]
    about = {
        "contract_version": document["contract"],
        "written_by": f"hmer {document['hmer']}",
        "hashes_verified": True,
    }
    sizes = bundle.sizes
    vocabulary = {
        "tokens": len(bundle.vocabulary),
        "sha256": bundle.vocabulary.fingerprint,
        "first": " ".join(bundle.vocabulary.tokens[:8]) + " ...",
    }
    sections = [
        Section("Bundle", about, files),
        Section("Network", {**scalars(bundle.network), "stride": sizes.stride}),
        Section("Vocabulary", vocabulary),
        Section("Preprocess", bundle.preprocess.to_dict()),
    ]
    for name, details in bundle.details.items():
        if isinstance(details, dict):
            sections.append(Section(name.capitalize(), *_details(details)))
    loose = scalars(bundle.details)
    return [*sections, Section("Details", loose)] if loose else sections


def _details(details: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The facts of a stage, and its parity with the checkpoint as a table."""
    rows = []
    for entry in details.get("parity", ()):
        rows.append(
            {
                "parity_in": entry["runtime"],
                "images": entry["images"],
                "tokens": entry["tokens"],
                "differing": len(entry["mismatches"]),
                "score_by": float(entry["score_difference"]),
            }
        )
    known = {name: value for name, value in details.items() if name != "parity"}
    return scalars(known), rows


def _graphs(bundle: Bundle, sections: list[Section]) -> Page:
    about = {
        "precision": bundle.precision,
        "tokens_a_call": bundle.k,
        "candidates_of_beam": bundle.beam,
    }
    rows: list[dict[str, Any]] = []
    note = ""
    for path in sorted(bundle.folder.glob("*.onnx")):
        try:
            found = facts(load_graph(path), path, bundle)
        except MissingDependency as error:
            note = str(error)
            break
        kept = ("model", "opset", "nodes", "parameters", "bytes")
        rows.append({name: found[name] for name in kept})
    graphs = Section("Graphs", about, rows, note)
    return Page(
        "graphs",
        str(bundle.folder),
        "an exported bundle, the graphs that are served.",
        [graphs, *sections],
        [
            f"hmer-export verify CHECKPOINT {bundle.folder}",
            f"hmer-export repository {bundle.folder} --output repository",
        ],
    )
