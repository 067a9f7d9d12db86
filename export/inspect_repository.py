"""Explain a model repository: what serves which model, and what is still missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from export.config import EMBEDDED, from_text
from export.inspect_bundle import bundle_sections
from export.inspect_page import Page, Section, scalars
from hmer.bundle import GRAPHS, load_bundle
from hmer.contract import CONTRACT_VERSION
from hmer.errors import BundleError, ContractMismatch, CorruptBundle, ExportError, MissingDependency
from hmer.serving import REPOSITORY_FILE, REPOSITORY_FORMAT


def repository_page(folder: Path) -> Page:
    """The page of a repository that ``hmer-export repository`` wrote. Raises ``BundleError``."""
    about = _description(folder)
    bundle = load_bundle(folder / "bundle", GRAPHS)
    rows, note = _models(folder / "models")
    facts = {
        "precision_of_graphs": bundle.precision,
        "tokens_a_call": bundle.k,
        "candidates_of_beam": bundle.beam,
    }
    sections = [
        Section("Repository", scalars(about)),
        *_choice(about.get("auto")),
        Section("Models", facts, rows, note),
        *(section for section in bundle_sections(bundle) if section.title != "Details"),
    ]
    missing = [row["model"] for row in rows if row["missing"]]
    if missing:
        engines = f"hmer-export engine {folder / 'bundle'} --output engines"
        commands = [
            f"{engines}   (on the machine that will serve it; missing: {', '.join(missing)})",
            f"hmer-export repository {folder / 'bundle'} --host container --target tensorrt "
            "--engines engines --output served",
        ]
    elif about.get("host") == EMBEDDED:
        commands = [f"hmer-serve --repository {folder}"]
    else:
        commands = [f"hmer-serve --repository {folder} --print-docker"]
    return Page(
        "repository",
        str(folder),
        f"a model repository for the {about.get('host')} server over {about.get('target')}.",
        sections,
        commands,
    )


def _choice(auto: dict[str, Any] | None) -> list[Section]:
    """What ``--target auto`` measured when the repository was assembled, and chose."""
    if not auto:
        return []
    try:
        chosen = {
            part: f"{auto[part]['target']} {auto[part]['precision']}"
            for part in ("encoder", "step")
        }
        return [Section("Measured choice", chosen, auto["measured"])]
    except (KeyError, TypeError) as error:
        raise CorruptBundle(
            f"{REPOSITORY_FILE} tells of a measurement that cannot be read ({error}). Assemble the "
            "repository again with hmer-export repository."
        ) from error


def _description(folder: Path) -> dict[str, Any]:
    path = folder / REPOSITORY_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != REPOSITORY_FORMAT:
            raise ValueError(f"its format is {document['format']!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptBundle(
            f"{path} does not describe a repository ({error}). Assemble it again with "
            "hmer-export repository."
        ) from error
    if document.get("contract") != CONTRACT_VERSION:
        raise ContractMismatch(
            f"{folder} was assembled for contract version {document.get('contract')}, and this is "
            f"version {CONTRACT_VERSION}. Assemble it again with hmer-export repository."
        )
    return {name: value for name, value in document.items() if name != "format"}


def _models(folder: Path) -> tuple[list[dict[str, Any]], str]:
    """A row a model, and what could not be looked into."""
    if not folder.is_dir():
        raise BundleError(f"There is no folder {folder}. Assemble the repository again.")
    rows, note = [], ""
    for path in sorted(folder.glob("*/config.pbtxt")):
        row: dict[str, Any] = {"model": path.parent.name, "runs_on": None, "max_batch": None,
                               "instances": None, "file": None, "bytes": None,
                               "missing": False}  # fmt: skip
        try:
            config = from_text(path.read_text(encoding="utf-8"))
        except MissingDependency as error:
            note = str(error)
        except ExportError as error:
            raise CorruptBundle(
                f"{path} cannot be read: {error} Assemble the repository again."
            ) from error
        else:
            row["runs_on"] = config.backend or config.platform
            row["max_batch"] = config.max_batch_size
            row["instances"] = sum(group.count for group in config.instance_group) or None
            file = path.parent / "1" / config.default_model_filename
            if config.default_model_filename:
                row["file"], row["missing"] = file.name, not file.is_file()
                row["bytes"] = None if row["missing"] else file.stat().st_size
        rows.append(row)
    return rows, note
