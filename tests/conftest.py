"""What all tests share: the fixtures of every area, and where real handwriting may lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest_plugins = (
    "tests.browser",
    "tests.bench_fixtures",
    "tests.e2e_fixtures",
    "tests.export_fixtures",
    "tests.model_fixtures",
    "tests.serve_fixtures",
)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def crohme() -> Path:
    """The folder with CROHME's stroke packs, or a skip."""
    folder = Path(os.environ.get("HMER_CROHME", ROOT.parent / "shared" / "crohme"))
    if not (folder / "train.jsonl.gz").is_file():
        pytest.skip(f"CROHME is not at {folder}; set HMER_CROHME to its folder")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    import shutil

    if shutil.which("nvidia-smi"):
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU on this machine"))
