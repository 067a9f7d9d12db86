"""tensorrt_rtx AOT compile of every precision, one token a call and several, and beams.

The graphs are those of a tiny network: the operators and types are the real ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export.engines import graphs_of
from export.tensorrt_aot import TARGETS
from export.tensorrt_build import EngineOptions, build_plan
from tests import tiny

# Those that other tests export too (tests/export_fixtures.py), and one token a call.
CASES = [("fp32", 1, 0), ("fp16", 2, 3), ("bf16", 2, 0), ("int8", 2, 0)]


@pytest.fixture(scope="module")
def trt() -> Any:
    return pytest.importorskip(
        "tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'hmer[rtx]'"
    )


@pytest.mark.parametrize(("precision", "k", "beam"), CASES)
def test_every_precision_for_every_gpu(
    trt: Any, precision: str, k: int, beam: int, tmp_path: Path
) -> None:
    bundle = tiny.make_graphs(tmp_path / "graphs", k=k, beam=beam, precision=precision)
    assert (bundle.precision, bundle.k, bundle.beam) == (precision, k, beam)
    options = EngineOptions(flavour="tensorrt_rtx", targets=TARGETS)
    assert len(graphs_of(bundle)) == (3 if beam else 2)
    for graph in graphs_of(bundle):
        info = build_plan(trt, bundle, graph, options, None).info
        assert info.targets == ("SM80", "SM86", "SM89", "SM120")
        assert info.precision == precision
