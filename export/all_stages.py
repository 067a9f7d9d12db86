"""From a checkpoint to a repository that Triton loads: the stages of ``hmer-export all``.

::

    checkpoint -> graphs, compared -> engines (TensorRT), compared -> repository

Everything is made in a folder beside the output and copied from there when all of it is good:
a failure, a full disk among them, leaves nothing behind.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.config import TENSORRT, RepositoryOptions
from export.onnx_export import Exported, Storage, export_bundle
from export.options import Progress
from export.parity import Parity, load_pair, refuse_mismatches, verify
from export.repository import Assembled, assemble, check_output
from export.verify_types import BEAM, Images
from hmer import contract
from hmer.bundle import Bundle
from hmer.engine import PLAN_SUFFIX, read_sidecar
from hmer.errors import ExportError, HmerError
from hmer.gpu import Gpu, find_gpu

Say = Callable[[str], None]
Bar = Callable[[str], AbstractContextManager[Progress | None]]
GRAPHS, ENGINES, REPOSITORY = "graphs", "engines", "repository"


@dataclass(frozen=True)
class Order:
    """What is wanted: see the options of ``hmer-export onnx`` and ``repository``."""

    checkpoint: Path
    output: Path
    repository: RepositoryOptions
    precision: str = "fp32"
    k: int = 4
    beam: int = 8
    storage: Storage = "float16"
    data: Path | None = None
    accept_loss: bool = False
    force: bool = False


@dataclass(frozen=True)
class FileRow:
    """A line of the summary: a graph or a plan in the repository."""

    file: str
    bytes: int
    precision: str
    opset: int | None
    profiles: tuple[str, ...]
    parity: str


@dataclass(frozen=True)
class Finished:
    """What was made, how it compared, how long each stage took, and what is left to do."""

    assembled: Assembled
    bundle: Bundle
    files: tuple[FileRow, ...]
    parity: tuple[Parity, ...]
    seconds: dict[str, float] = field(default_factory=dict)
    todo: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "repository": str(self.assembled.folder),
            "models": list(self.assembled.models),
            "host": self.assembled.options.host,
            "target": self.assembled.options.target,
            "auto": self.assembled.choice.to_dict() if self.assembled.choice else None,
            "precision": self.bundle.precision,
            "k": self.bundle.k,
            "beam": self.bundle.beam,
            "files": [vars(row) | {"profiles": list(row.profiles)} for row in self.files],
            "parity": [result.to_dict() for result in self.parity],
            "missing": list(self.assembled.missing),
            "seconds": {stage: round(took, 1) for stage, took in self.seconds.items()},
            "todo": list(self.todo),
        }


def run_all(
    order: Order,
    images: Images,
    *,
    say: Say = lambda line: None,
    bar: Bar = lambda label: nullcontext(),
) -> Finished:
    """Run every stage; ``images`` (name -> uint8 (H, W)) are what answers are compared on.

    Without a GPU, ``tensorrt`` ends with a repository that lacks its plans, and ``todo`` says
    what to run where. Raises ``BundleError``, ``ExportError``, ``ParityError``,
    ``MissingDependency``; then nothing is left at the output.
    """
    wants_engines = order.repository.target == TENSORRT
    stages = [GRAPHS, *([ENGINES] if wants_engines else []), REPOSITORY]
    seconds: dict[str, float] = {}
    began = time.monotonic()

    def stage(name: str, line: str) -> None:
        nonlocal began
        say(f"[{stages.index(name) + 1}/{len(stages)}] {line}")
        began = time.monotonic()

    def ended(name: str) -> None:
        seconds[name] = time.monotonic() - began

    gpu, reason = _builder(order) if wants_engines else (None, "")
    check_output(order.output, order.force)  # before minutes of work
    try:
        order.output.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=order.output.absolute().parent,
            prefix=f".{order.output.name}.all.",
            ignore_cleanup_errors=True,
        ) as scratch:
            folder, plans = Path(scratch) / "bundle", None
            stage(GRAPHS, f"Exporting {order.checkpoint} in {order.precision} ...")
            with bar("comparing answers") as progress:
                exported = export_bundle(
                    order.checkpoint,
                    folder,
                    k=order.k,
                    beam=order.beam,
                    precision=order.precision,
                    data=order.data,
                    accept_loss=order.accept_loss,
                    images=images,
                    storage=order.storage,
                    say=say,
                    progress=progress,
                )
            parity = list(exported.parity)
            ended(GRAPHS)
            if wants_engines:
                stage(ENGINES, f"Building engines on {gpu.name} ..." if gpu else reason)
                if gpu:
                    plans = _engines(folder, Path(scratch) / "engines", say)
                    with bar("comparing engines") as progress:
                        parity += _engine_parity(order.checkpoint, folder, plans, images, progress)
                ended(ENGINES)
            stage(REPOSITORY, f"Assembling {order.output} ...")
            assembled = assemble(
                folder, order.output, order.repository, engines=plans, force=order.force
            )
            ended(REPOSITORY)
    except HmerError:  # some are OSErrors too
        raise
    except OSError as error:
        raise ExportError(
            f"{order.output} cannot be made: {error.strerror or error}. Nothing was left of it."
        ) from error
    todo = _todo(order) if assembled.missing else ()
    rows = _rows(order.output, exported, parity)
    return Finished(assembled, exported.bundle, rows, tuple(parity), seconds, todo)


def _builder(order: Order) -> tuple[Gpu | None, str]:
    """The GPU to build engines on; or none, and why. ``ExportError`` for one that is too old."""
    from export.tensorrt_build import check_gpu

    gpu = find_gpu()
    if gpu is None:
        return None, "There is no NVIDIA GPU here, so no engine is built."
    check_gpu(order.precision, gpu)
    if importlib.util.find_spec("tensorrt") is None:
        return None, "tensorrt is not installed (pip install 'hmer[gpu]'), so no engine is built."
    return gpu, ""


def _engines(bundle: Path, output: Path, say: Say) -> Path:
    from export.engines import build_engines
    from export.tensorrt_build import EngineOptions

    build_engines(bundle, output, EngineOptions(), say=say)
    return output


def _engine_parity(
    checkpoint: Path, bundle: Path, engines: Path, images: Images, progress: Progress | None
) -> tuple[Parity, ...]:
    model, exported = load_pair(checkpoint, bundle)
    found = verify(
        model, exported, images, runners=[TENSORRT], engines=engines, progress=progress
    ).results
    refuse_mismatches(found)
    return found


def _todo(order: Order) -> tuple[str, ...]:
    """What to run on the machine with the GPU, in the TensorRT of the image that will serve."""
    name = order.output.name
    return (
        f"copy {order.output} to the machine with the GPU, and there:",
        f"hmer-export engine {name}/bundle --output engines",
        f"hmer-export repository {name}/bundle --host container --target tensorrt "
        f"--engines engines --output {name}-served",
    )


def _rows(output: Path, exported: Exported, parity: Sequence[Parity]) -> tuple[FileRow, ...]:
    """The graphs, and the plans as far as they are there."""
    rows = [
        FileRow(
            f"bundle/{graph.file}",
            graph.bytes,
            exported.bundle.precision,
            graph.opset,
            (),
            in_words(parity, Path(graph.file).stem, engines=False),
        )
        for graph in exported.graphs
    ]
    for plan in sorted(output.glob(f"models/*/1/*{PLAN_SUFFIX}")):
        info = read_sidecar(plan)
        rows.append(
            FileRow(
                str(plan.relative_to(output)),
                info.plan_bytes,
                info.precision,
                None,
                tuple(profile.name for profile in info.profiles),
                in_words(parity, info.graph, engines=True),
            )
        )
    return tuple(rows)


def in_words(parity: Sequence[Parity], graph: str, *, engines: bool) -> str:
    """How the answers of a graph, or of its engine, compared, in a few words."""
    about_beams = graph == contract.DECODER_BEAM
    results = [
        result
        for result in parity
        if (result.runtime == TENSORRT) == engines and (result.check == BEAM) == about_beams
    ]
    if not results:
        return "not compared"
    names = ", ".join(dict.fromkeys(result.runtime for result in results))
    images = max(result.images for result in results)
    differing = max(len(result.mismatches) for result in results)
    if differing:
        return f"{differing} of {images} differ in {names}"
    return f"{images} equal in {names}"
