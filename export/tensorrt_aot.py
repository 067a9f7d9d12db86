"""``tensorrt_rtx`` AOT compile: NVIDIA's parser and builder on our graphs, without a GPU.

It proves that they accept these graphs with these types and profiles for these GPUs. It never
proves that an engine is right or fast: nothing without a GPU can load one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from export.engines import graphs_of
from export.tensorrt_api import Module
from export.tensorrt_build import EngineOptions, build_plan
from hmer.bundle import Bundle
from hmer.engine import TENSORRT_RTX
from hmer.errors import ExportError
from hmer.serving import MAX_ROWS

NAME = "tensorrt_rtx AOT compile"
# A100; RTX 30xx, A10; RTX 40xx, L4, L40; RTX 50xx. The library knows no 9.0 (H100).
TARGETS = ("8.0", "8.6", "8.9", "12.0")


@dataclass(frozen=True)
class Compiled:
    """One graph compiled for one GPU; ``error`` is empty if it went well."""

    bundle: str
    graph: str
    precision: str
    k: int
    target: str
    seconds: float
    bytes: int
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether the builder accepted it."""
        return not self.error

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**asdict(self), "ok": self.ok}


def aot_compile(
    trt: Module,
    bundle: Bundle,
    targets: Sequence[str] = TARGETS,
    max_batch: int = MAX_ROWS,
    graphs: Sequence[str] | None = None,
) -> Iterator[Compiled]:
    """Compile each of ``graphs`` (default: all of the bundle) for each of ``targets`` ("8.9")."""
    for graph in graphs_of(bundle) if graphs is None else graphs:
        for target in targets:
            options = EngineOptions(flavour=TENSORRT_RTX, targets=(target,), max_batch=max_batch)
            names = (bundle.folder.name, graph, bundle.precision, bundle.k, options.sm_names[0])
            try:
                info = build_plan(trt, bundle, graph, options, None).info
            except ExportError as error:
                yield Compiled(*names, seconds=0.0, bytes=0, error=str(error))
            else:
                yield Compiled(*names, seconds=info.seconds, bytes=info.plan_bytes)


def markdown(rows: Iterable[Compiled], version: str) -> str:
    """The table for people; ``version`` is the library's."""
    lines = [
        f"{NAME}, version {version}, on a CPU (accepted by parser and builder; never run)",
        "",
        "| bundle | graph | precision | k | GPU | result | seconds | MB |",
        "|---|---|---|---:|---|---|---:|---:|",
    ]
    for row in rows:
        result = "ok" if row.ok else row.error.replace("|", "/")
        size = f"{row.seconds:.1f} | {row.bytes / 1e6:.1f}" if row.ok else "|"
        lines.append(
            f"| {row.bundle} | {row.graph} | {row.precision} | {row.k} | {row.target} | {result} | "
            f"{size} |"
        )
    return "\n".join(lines)
