"""What lies at a path, and the page that explains it."""

from __future__ import annotations

from pathlib import Path

from export.inspect_bundle import bundle_page
from export.inspect_engine import engine_page, engines_page
from export.inspect_graph import graph_page
from export.inspect_page import Page
from export.inspect_repository import repository_page
from export.inspect_weights import STATE_FILE, run_page
from hmer.bundle import BUNDLE_FILE, WEIGHTS_FILE
from hmer.engine import PLAN_SUFFIX, SIDECAR_SUFFIX
from hmer.errors import ExportError, MissingBundle
from hmer.serving import REPOSITORY_FILE

KNOWN = (
    "a checkpoint or exported bundle (a folder with bundle.json), a training run "
    "(state.safetensors), a model repository (repository.json), an ONNX graph (.onnx) or a "
    "TensorRT plan (.plan)"
)
# A file that stands for the folder that it describes.
_STANDS_FOR_FOLDER = (BUNDLE_FILE, WEIGHTS_FILE, STATE_FILE, REPOSITORY_FILE)


def page_of(path: Path) -> Page:
    """The page of whatever lies at ``path``.

    Raises ``MissingBundle`` if nothing does, ``ExportError`` if it is nothing of this
    project's, and what the reader of its kind raises for something broken.
    """
    if not path.exists():
        raise MissingBundle(f"There is nothing at {path}. Give {KNOWN}.")
    if path.is_file():
        return _file_page(path)
    if (path / REPOSITORY_FILE).is_file():
        return repository_page(path)
    if (path / STATE_FILE).is_file():
        return run_page(path)
    if (path / BUNDLE_FILE).is_file():
        return bundle_page(path)
    if any(path.glob(f"*{PLAN_SUFFIX}")):
        return engines_page(path)
    raise ExportError(f"{path} is a folder of nothing that can be explained here. Give {KNOWN}.")


def _file_page(path: Path) -> Page:
    if path.name in _STANDS_FOR_FOLDER:
        return page_of(path.parent)
    if path.name.endswith(PLAN_SUFFIX + SIDECAR_SUFFIX):
        return engine_page(path.with_name(path.name.removesuffix(SIDECAR_SUFFIX)))
    if path.suffix == PLAN_SUFFIX:
        return engine_page(path)
    if path.suffix == ".onnx":
        return graph_page(path)
    raise ExportError(f"{path} is no file that can be explained here. Give {KNOWN}.")
