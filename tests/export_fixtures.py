"""Fixtures of the export's tests: a tiny checkpoint, and its graphs in every precision."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hmer.bundle import Bundle

ROOT = Path(__file__).resolve().parents[1]
LOW = ("fp16", "bf16", "int8")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``tests.tiny``'s checkpoint; not to be changed."""
    from tests.tiny import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("export") / "checkpoint").folder


@pytest.fixture(scope="session")
def graphs(tiny_graphs: Bundle) -> Bundle:
    """``checkpoint`` exported in fp32 with three tokens a call; not to be changed."""
    return tiny_graphs


@pytest.fixture(scope="session", params=LOW)
def low(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """``checkpoint`` exported in every other precision; not to be changed."""
    return in_precision(str(request.param), tmp_path_factory.mktemp("low") / "graphs")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with two of the project's samples."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in sorted((ROOT / "client" / "samples").glob("*.png"))[:2]:
        shutil.copy(path, folder)
    return folder


def in_precision(precision: str, folder: Path) -> Bundle:
    """The tiny network in ``precision``, two tokens a call; in fp16 with a beam graph too."""
    from tests.tiny import make_graphs

    return make_graphs(folder, k=2, beam=3 if precision == "fp16" else 0, precision=precision)


def spare_tracing(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    """Let ``export_bundle`` get the graphs of ``bundle`` instead of tracing for half a minute."""
    import onnx

    from export import gate, onnx_export

    def export_graphs(*_: object) -> Iterator[tuple[Any, float]]:
        for file in gate.present_graphs(bundle):
            yield onnx.load(bundle.file(file)), 0.0

    monkeypatch.setattr(onnx_export, "export_graphs", export_graphs)


@pytest.fixture
def traced(graphs: Bundle, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """``graphs``, which is also what any export of the test gets."""
    spare_tracing(monkeypatch, graphs)
    return graphs
