"""What every precision costs and gains: accuracy on the test sets, size, time.

The graphs of each precision are made as ``hmer-export onnx`` makes them: int8 is calibrated, and
every precision is judged, on training data; the test sets are only answered. fp16 and bf16 are
answered by their emulated graphs (``export.emulate``), so that their roundings are those of the
hardware that they are for.
"""

from __future__ import annotations

import importlib.util
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from export.gate import ALLOWED, Loss, computable, exprate, measure_loss
from export.images import spread
from export.onnx_export import Storage, write_graphs
from export.precision import HALVES, PRECISIONS, check_precision
from export.selection import Selection, selections
from export.targets import Candidate, openvino_has_bf16, time_graphs
from export.timing import workload
from export.verify_checks import answer_all
from export.verify_runners import open_graphs
from export.verify_types import Answer, Progress
from hmer import ink
from hmer.alignment import edit_distance
from hmer.bundle import ENCODER_FILE, GRAPHS, STEP_FILE, Bundle
from hmer.errors import BadParameter, DatasetError
from hmer.preprocess import PreprocessSettings, preprocess
from hmer.runtime import ONNXRUNTIME, OPENVINO, Runner, open_runner
from hmer.tables import Table
from training.checkpoint import load_checkpoint
from training.data import read_pack
from training.network import Recogniser

TESTS = {"CROHME 2014": "test_2014.jsonl.gz", "CROHME 2016": "test_2016.jsonl.gz"}

Say = Callable[[str], None]
Bar = Callable[[str], AbstractContextManager[Progress | None]]
Answers = dict[str, Answer]


@dataclass(frozen=True)
class OnTest:
    """A precision on a test set. ``differing`` answers and ``edits`` (token insertions,
    deletions, substitutions) are against fp32's answers, which have ``tokens`` in all."""

    images: int
    exprate: float
    differing: int
    edits: int
    tokens: int


@dataclass(frozen=True)
class Row:
    """One precision. ``times``: (graph, runtime) -> time divided by fp32's in that runtime;
    ``None`` where it does not run there. ``loss``: on held-out data; ``None`` for fp32."""

    precision: str
    sizes: dict[str, int]
    tests: dict[str, OnTest]
    times: dict[str, dict[str, float | None]]
    loss: Loss | None

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "precision": self.precision,
            "emulated": self.precision in HALVES,
            "bytes": self.sizes,
            "tests": {name: vars(found) for name, found in self.tests.items()},
            "time_to_fp32": self.times,
            "held_out": self.loss.to_dict() if self.loss else None,
        }


def measure(
    checkpoint: Path,
    data: Path,
    *,
    precisions: Sequence[str] = PRECISIONS,
    limit: int | None = None,
    k: int = 4,
    storage: Storage = "float16",
    say: Say = lambda line: None,
    bar: Bar = lambda label: nullcontext(),
) -> list[Row]:
    """A row for each of ``precisions``, fp32 first whether it is among them or not.

    ``data`` holds ``train.jsonl.gz`` and the packs of ``TESTS``, of which at most ``limit``
    writings each are answered. Raises ``BundleError``, ``DatasetError``, ``ExportError``.
    """
    wanted = [p for p in PRECISIONS if p == "fp32" or p in map(check_precision, precisions)]
    if not data.is_dir():
        raise BadParameter(f"{data} is no folder. Give the one with train.jsonl.gz and the tests.")
    source, model = load_checkpoint(checkpoint)
    tests = {name: _test(data / file, source.preprocess, limit) for name, file in TESTS.items()}
    chosen = selections(source.preprocess, data)
    with tempfile.TemporaryDirectory(prefix="hmer-") as scratch:
        bundles: dict[str, Bundle] = {}
        expected: dict[str, Answers] = {}
        parts: list[tuple[str, dict[str, int], dict[str, OnTest], Loss | None]] = []
        for precision in wanted:
            folder = Path(scratch, precision)
            folder.mkdir()
            bundle = replace(source, folder=folder, kind=GRAPHS, k=k, beam=0, precision=precision)
            say(f"Exporting {precision} ...")
            made = write_graphs(model, bundle, storage, chosen.calibration.images)
            bundles[precision] = bundle
            loss = None if precision == "fp32" else measure_loss(model, bundle, chosen.judged)
            with bar(f"answering in {precision}") as progress:
                found = _answer(bundle, model, tests, progress)
            expected = expected or found
            parts.append(
                (
                    precision,
                    {graph.file: graph.bytes for graph in made},
                    {n: _compare(found[n], expected[n], tests[n], bundle) for n in tests},
                    loss,
                )
            )
        say("Timing all precisions side by side ...")
        times = _times(bundles)
        return [Row(p, sizes, on, times[p], loss) for p, sizes, on, loss in parts]


def tables(rows: Sequence[Row]) -> list[Table]:
    """The figures for people."""
    accuracy = []
    for row in rows:
        for name, found in row.tests.items():
            accuracy.append(
                (
                    _label(row.precision),
                    name,
                    str(found.images),
                    f"{100 * found.exprate:.2f}",
                    str(found.differing),
                    f"{found.edits} of {found.tokens}",
                )
            )
    costs = []
    runtimes = list(rows[0].times[ENCODER_FILE])
    for row in rows:
        megabytes = (f"{row.sizes[file] / 1e6:.2f}" for file in (ENCODER_FILE, STEP_FILE))
        ratios = (
            _ratio(row.times[file][runtime])
            for file in (ENCODER_FILE, STEP_FILE)
            for runtime in runtimes
        )
        judged = "-" if row.loss is None else f"{row.loss.points:+.2f}"
        accepted = row.loss is None or row.loss.points <= ALLOWED
        verdict = "yes" if accepted else "only with --accept-loss"
        costs.append((row.precision, *megabytes, *ratios, judged, verdict))
    heads = [f"{graph} / {runtime}" for graph in ("encoder", "step") for runtime in runtimes]
    return [
        Table(
            "Accuracy, and what differs from fp32",
            ("precision", "test", "n", "ExpRate %", "answers differ", "tokens differ"),
            tuple(accuracy),
            figures=2,
        ),
        Table(
            f"Size, time as a multiple of fp32's ({platform.machine()}, one thread), and points "
            "of ExpRate lost on held-out training data",
            ("precision", "encoder MB", "step MB", *heads, "held-out loss", "exported"),
            tuple(costs),
        ),
    ]


def _test(path: Path, settings: PreprocessSettings, limit: int | None) -> Selection:
    examples = read_pack(path)
    if not examples:
        raise DatasetError(f"{path} holds no writings.")
    chosen = spread(examples, limit or len(examples))
    return Selection(
        path.name,
        {e.name: preprocess(ink.render(e.strokes), settings) for e in chosen},
        {e.name: e.tokens for e in chosen},
    )


def _answer(
    bundle: Bundle,
    model: Recogniser,
    tests: Mapping[str, Selection],
    progress: Progress | None,
) -> dict[str, Answers]:
    total, done = sum(len(test.images) for test in tests.values()), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    with computable(bundle) as runnable, open_graphs(ONNXRUNTIME, runnable, model) as graphs:
        return {
            name: answer_all(graphs, test.images, advance=advance) for name, test in tests.items()
        }


def _compare(found: Answers, expected: Answers, test: Selection, bundle: Bundle) -> OnTest:
    edits = [
        edit_distance([str(i) for i in found[name].ids], [str(i) for i in expected[name].ids])
        for name in expected
    ]
    return OnTest(
        images=len(expected),
        exprate=exprate(found, test.truths, bundle.vocabulary),
        differing=sum(distance > 0 for distance in edits),
        edits=sum(edits),
        tokens=sum(len(answer.ids) for answer in expected.values()),
    )


def _times(bundles: Mapping[str, Bundle]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Precision -> graph's file -> runtime -> time divided by fp32's."""
    work = workload(bundles["fp32"])
    among = [
        Candidate(target, precision)
        for target in (ONNXRUNTIME, OPENVINO)
        if importlib.util.find_spec(target) is not None
        for precision in bundles
        # OpenVINO would compute a bf16 graph in fp32 on a CPU that has no units for it.
        if precision != "bf16" or (target == OPENVINO and openvino_has_bf16())
    ]

    def opened(target: str, file: str, precision: str, threads: int) -> Runner:
        return open_runner(target, bundles[precision].file(file), threads, precision)

    found: dict[str, dict[str, dict[str, float | None]]] = {p: {} for p in bundles}
    for file, feeds in ((ENCODER_FILE, work.encoder), (STEP_FILE, work.step)):
        seconds = time_graphs(among, file, feeds, 1, opened)
        for precision in bundles:
            ratios: dict[str, float | None] = {}
            for target in dict.fromkeys(candidate.target for candidate in among):
                ours = seconds.get(Candidate(target, precision))
                base = seconds.get(Candidate(target, "fp32"))
                known = isinstance(ours, float) and isinstance(base, float)
                ratios[target] = round(ours / base, 3) if known else None  # type: ignore[operator]
            found[precision][file] = ratios
    return found


def _label(precision: str) -> str:
    return f"{precision} (emulated)" if precision in HALVES else precision


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
