"""The artefact folder that travels: weights or graphs, and ``bundle.json`` that explains them.

::

    FOLDER/bundle.json        format, contract version, kind, vocabulary with its hash,
                              preprocess settings, network sizes, files with their hashes
    FOLDER/model.safetensors  kind "checkpoint": weights to train on or to export
    FOLDER/encoder.onnx       kind "graphs": what a runtime loads
    FOLDER/decoder_step.onnx
    FOLDER/decoder_beam.onnx  if the bundle can search with beams

Every loader goes through ``load_bundle``, which refuses what does not fit with a sentence
that says what to do.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hmer import __version__
from hmer.contract import CONTRACT_VERSION, Sizes
from hmer.errors import BundleError, ContractMismatch, CorruptBundle, MissingBundle
from hmer.preprocess_settings import PreprocessSettings
from hmer.vocab import Vocabulary

BUNDLE_FILE = "bundle.json"
FORMAT = "hmer-bundle"
CHECKPOINT, GRAPHS = "checkpoint", "graphs"
WEIGHTS_FILE = "model.safetensors"
ENCODER_FILE, STEP_FILE, BEAM_FILE = "encoder.onnx", "decoder_step.onnx", "decoder_beam.onnx"


@dataclass
class Bundle:
    """A verified bundle. ``details`` holds what the maker wants to tell (training, export).

    Of graphs: ``k`` tokens a call of ``decoder_step``, ``beam`` candidates a call of
    ``decoder_beam`` (0: that graph is not there), ``precision`` that they compute in.
    """

    folder: Path
    kind: str
    vocabulary: Vocabulary
    preprocess: PreprocessSettings
    network: dict[str, Any]
    k: int = 1
    beam: int = 0
    precision: str = "fp32"
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def sizes(self) -> Sizes:
        """The sizes that the tensor contract needs."""
        strides, widths = self.network["strides"], self.network["widths"]
        stride = 1
        for step in strides:
            stride *= int(step)
        return Sizes(
            features=int(widths[-1]),
            attention=int(self.network["attention"]),
            hidden=int(self.network["hidden"]),
            stride=stride,
            k=self.k,
            beam=self.beam,
        )

    def file(self, name: str) -> Path:
        """The path of one of the bundle's files."""
        return self.folder / name


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def save_bundle(bundle: Bundle, files: Iterable[str]) -> None:
    """Write ``bundle.json`` for ``files``, which already lie in the bundle's folder.

    The file appears whole or not at all: it is written beside and renamed.
    """
    document = {
        "format": FORMAT,
        "contract": CONTRACT_VERSION,
        "hmer": __version__,
        "kind": bundle.kind,
        "k": bundle.k,
        "beam": bundle.beam,
        "precision": bundle.precision,
        "vocabulary": bundle.vocabulary.to_dict(),
        "preprocess": bundle.preprocess.to_dict(),
        "network": bundle.network,
        "files": {
            name: {
                "sha256": sha256_of(bundle.file(name)),
                "bytes": bundle.file(name).stat().st_size,
            }
            for name in files
        },
        "details": bundle.details,
    }
    target = bundle.file(BUNDLE_FILE)
    draft = target.with_suffix(".json.part")
    draft.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(draft, target)


def load_bundle(folder: str | Path, kind: str | None = None) -> Bundle:
    """Read and verify a bundle; ``kind`` is what the caller needs (``None``: either).

    Raises ``MissingBundle``, ``CorruptBundle``, ``ContractMismatch``, ``VocabularyMismatch``
    or, for a bundle of the other kind, ``BundleError``.
    """
    folder = Path(folder)
    path = folder / BUNDLE_FILE
    if not path.is_file():
        raise MissingBundle(
            f"There is no {BUNDLE_FILE} in {folder}. Give the folder that hmer-train or "
            "hmer-export wrote."
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise CorruptBundle(f"{path} does not describe a bundle of this project.")
        _check_contract(document, path)
        vocabulary = Vocabulary.from_dict(document["vocabulary"], where=str(path))
        bundle = Bundle(
            folder=folder,
            kind=str(document["kind"]),
            vocabulary=vocabulary,
            preprocess=PreprocessSettings.from_dict(document["preprocess"]),
            network=dict(document["network"]),
            k=int(document["k"]),
            beam=int(document.get("beam", 0)),
            precision=str(document.get("precision", "fp32")),
            details=dict(document.get("details", {})),
        )
        files = {str(name): dict(entry) for name, entry in document["files"].items()}
    except BundleError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise CorruptBundle(
            f"{path} cannot be read ({type(error).__name__}: {error}). Copy the bundle again, "
            "or export the checkpoint again."
        ) from error
    if kind is not None and bundle.kind != kind:
        remedy = (
            "Run hmer-export onnx on it first."
            if kind == GRAPHS
            else "Give the folder of the checkpoint that hmer-train wrote."
        )
        raise BundleError(f"{folder} holds a bundle of kind {bundle.kind}, not {kind}. {remedy}")
    _check_files(folder, files)
    return bundle


def _check_contract(document: dict[str, Any], path: Path) -> None:
    version = document.get("contract")
    if version != CONTRACT_VERSION:
        raise ContractMismatch(
            f"{path} was made for contract version {version}, and this is version "
            f"{CONTRACT_VERSION} (hmer {__version__}). Export it again with this version, or "
            f"install the version that wrote it (hmer {document.get('hmer', 'unknown')})."
        )


def _check_files(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    for name, entry in files.items():
        path = folder / name
        if Path(name).name != name:
            raise CorruptBundle(f"{folder} names a file outside itself: {name}.")
        if not path.is_file():
            raise CorruptBundle(f"{path} is missing. Copy the bundle again.")
        if path.stat().st_size != entry.get("bytes") or sha256_of(path) != entry.get("sha256"):
            raise CorruptBundle(
                f"{path} is not the file that {BUNDLE_FILE} describes: it was truncated or "
                "changed. Copy the bundle again, or export the checkpoint again."
            )
