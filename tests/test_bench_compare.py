"""``hmer-bench compare``: references, figures, targets; and one small comparison for real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner

from benchmarks import compare_cli, repositories
from benchmarks.cli import main
from benchmarks.compare import Bare, Result
from benchmarks.contenders import OURS, Contender, agreement, fixed, warm_ready
from benchmarks.crohme import Expression
from benchmarks.in_process import InProcess, Spec, Worker
from benchmarks.process_tree import Usage
from benchmarks.repositories import BATCHED, EAGER, EAGER_ALONE, NAIVE, Chosen, with_k
from benchmarks.served import ServedProcess
from benchmarks.targets import Target, table, targets
from export.config import from_text
from hmer import contract
from hmer.bundle import Bundle
from hmer.errors import BundleError, HmerError, MissingBundle, ServerSetupError
from tests.e2e_fixtures import need_embedded
from tests.test_bench_compare_references import answers
from tests.test_recognizer import pictures

ORT = Chosen("onnxruntime", "onnxruntime", "fp32")


# Repositories


def test_reference_repositories(tiny_graphs: Bundle, checkpoint: Path, tmp_path: Path) -> None:
    expected = {
        BATCHED: {"decode", "encoder", "preprocess", "recognize"},
        NAIVE: {"decoder_step", "encoder", "preprocess", "recognize"},
        EAGER_ALONE: {"recognize"},
    }
    for kind, models in expected.items():
        folder = repositories.reference(kind, tiny_graphs.folder, tmp_path / kind, ORT, checkpoint)
        assert {path.name for path in (folder / "models").iterdir()} == models
        assert (folder / "lib/benchmarks/reference/answers.py").is_file()
        ours = "decode" if kind == BATCHED else "recognize"
        config = from_text((folder / "models" / ours / "config.pbtxt").read_text("utf-8"))
        spec = contract.models(tiny_graphs.sizes)[ours]
        assert [entry.name for entry in config.input] == [t.name for t in spec.inputs]
        assert [entry.name for entry in config.output] == [t.name for t in spec.outputs]
        assert all(entry.allow_ragged_batch == (kind == BATCHED) for entry in config.input)
    assert config.parameters["threads"].string_value == "1"
    with pytest.raises(MissingBundle):
        repositories.reference(EAGER, tiny_graphs.folder, tmp_path / "x", ORT, tmp_path / "no")


def test_what_was_chosen_is_not_measured_again() -> None:
    assert fixed(("--slots", "4"), ORT) == ["--slots", "4"]
    bf16 = Chosen("openvino", "onnxruntime", "bf16")
    precision = ["--precision", "bf16", "--step-target", "onnxruntime"]
    assert fixed(("--target", "auto"), bf16) == ["--target", "openvino", *precision]


def test_graphs_are_exported_once(
    checkpoint: Path, traced: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_k(checkpoint, traced.k, tmp_path)
    assert folder.name.endswith(f"-k{traced.k}")
    from export import onnx_export

    monkeypatch.setattr(onnx_export, "export_bundle", None)
    assert with_k(checkpoint, traced.k, tmp_path) == folder
    with pytest.raises(BundleError, match="not checkpoint"):
        with_k(folder, 1, tmp_path)


# Figures and targets


class FakeServer:
    def __init__(self, mb: float) -> None:
        self._mb = mb

    def usage(self) -> Usage:
        return Usage(1.0, {"stub": self._mb})


def contender(name: str, throughput: list[float], p50: list[float], mb: float = 300.0) -> Contender:
    made = Contender(name, name, cast(ServedProcess, FakeServer(mb)), [9.0, 3.0, 2.0])
    made.throughput = throughput
    made.alone = [{"p50": value, "p95": value} for value in p50]
    made.loaded = [{"p50": value, "p95": 1.5 * value} for value in p50]
    return made


def made_result(*others: Contender) -> Result:
    ours = contender(OURS, [100.0, 80.0], [10.0, 12.0])
    bare = Bare(
        alone=[{"p50": 10.0}, {"p50": 10.0}],
        ways=[{"one process": 90.0, "a process a CPU": 100.0}, {"one process": 80.0}],
    )
    short: dict[int, list[float | None]] = {4: [10.0, 10.0], 32: [15.0, 30.0]}
    identity = {"n": 1000, "equal_to_one_by_one": 999, "equal_to_in_process": 1000}
    return Result({c.name: c for c in (ours, *others)}, bare, short, identity)


def by_name(found: list[Target]) -> dict[str, Target]:
    return {target.name: target for target in found}


def test_targets_are_medians_of_ratios_within_rounds() -> None:
    eager = contender(EAGER, [10.0, 10.0], [50.0, 40.0])
    one = contender(EAGER_ALONE, [20.0, 5.0], [25.0, 80.0])
    naive = contender(NAIVE, [10.0, 10.0], [50.0, 40.0])
    found = by_name(targets(made_result(eager, one, naive), None, "fp32"))
    over = found["throughput under load / eager"]
    assert over.value == pytest.approx((100 / 20 + 80 / 10) / 2)  # of the better eager loop
    assert over.met is True
    assert found["throughput under load / naive"].met is False
    assert found["p50 alone / eager"].value == pytest.approx((10 / 25 + 12 / 40) / 2)
    assert found["p50 alone / in process"].value == pytest.approx(1.1)
    assert found["throughput under load / in process, all CPUs"].value == pytest.approx(1.0)
    assert found["p95 / p50 under load"].met is False  # 1.5
    assert found["ready, warm"].value == 2.5  # without the first, cold start
    assert found["memory of all processes"].met is True
    assert found["p50 of up to 3 tokens, 32 at once / 4 at once"].value == 2.25
    assert found["answers, 32 at once, equal to one by one"].met is False
    assert found["answers, 32 at once, equal to in process"].met is True


def test_reduced_precision_may_differ_a_little() -> None:
    found = by_name(targets(made_result(), None, "bf16"))
    assert found["answers, 32 at once, equal to one by one"].met is True


def test_targets_that_could_not_be_measured() -> None:
    result = made_result()
    result.identity = None
    found = by_name(targets(result, None, "fp32"))
    missing = [name for name, target in found.items() if target.met is None]
    assert len(missing) == 7
    assert all(found[name].note.startswith("not measured") for name in missing)
    shown = table(list(found.values())).markdown()
    assert "| >= 6.5 | - | - | not measured: a contender is missing |" in shown
    limits = {"encoder": {"gap": 1.9, "against": "x"}, "step": {"gap": 2.1, "against": "y"}}
    told = targets(result, limits, "fp32")
    assert [t.met for t in told if t.note in ("x", "y")] == [True, False]


def test_agreement() -> None:
    expressions = [Expression(t, tuple(t.split()), b"") for t in ("a b", "c", "d")]
    reference: dict[int, Any] = {0: ("a", "b"), 1: ("c",), 2: ("e",)}
    replies: dict[int, Any] = {0: {("a", "x")}, 1: {("c",)}, 2: {("e",), ("d",)}}
    found = agreement(replies, reference, expressions)
    assert found["answers"] == 3
    assert found["equal_answers"] == 1
    assert found["equal_tokens"] == 2 / 4  # the worst of several ways counts
    assert found["exprate"] == pytest.approx(2 / 3)


def test_an_early_edit_leaves_the_tokens_behind_it_equal() -> None:
    expressions = [Expression("x", tuple("abcdefgh"), b"")]
    for other, equal in (("xabcdefgh", 7), ("bcdefgh", 7), ("", 0), ("zyxwvutsrqponm", 0)):
        found = agreement({0: {tuple(other)}}, {0: tuple("abcdefgh")}, expressions)
        assert found["equal_tokens"] == equal / 8


def test_warm_start_of_a_single_start() -> None:
    one = contender("x", [], [])
    one.ready_s = [4.0]
    assert warm_ready(one) == 4.0


# Processes


def test_workers_answer_as_one_recogniser(tiny_graphs: Bundle) -> None:
    data = [*pictures(4), b"no picture"]
    bare = InProcess(tiny_graphs.folder, ORT, data, cpus=2)
    try:
        timed = bare.one_by_one([2, 0, 4])
        expected = answers(tiny_graphs, data)
        assert timed.replies[:2] == [expected[2], expected[0]]
        assert isinstance(timed.replies[2], HmerError)
        assert len(timed.seconds) == 3
        assert "encode" in timed.timings[0]
        assert set(bare.throughput([0, 1, 2, 3])) == {"one process", "a process a CPU"}
        assert bare.answers([3, 1, 0]) == {i: expected[i] for i in (3, 1, 0)}
    finally:
        bare.close()


def test_a_worker_tells_why_it_cannot_load(tmp_path: Path) -> None:
    with Worker(Spec(tmp_path, 1, ORT), [b""]) as worker, pytest.raises(MissingBundle):
        worker.ready()


def test_a_server_that_does_not_start(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerSetupError, match="is not a model repository"),
        ServedProcess(tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--contenders", "ours,theirs"), "There is no contender 'theirs'"),
        (("--k", "1,x"), "--k is '1,x'"),
        (("--bundle", "nowhere"), "There is no bundle.json in nowhere"),
        (("--output", "/nowhere/at/all.json"), "there is no such folder"),
    ],
)
def test_sentences(arguments: tuple[str, ...], said: str) -> None:
    result = CliRunner().invoke(main, ["compare", *arguments])
    assert result.exit_code == 1
    assert said in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.e2e
def test_a_comparison(tiny_graphs: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_embedded()
    output = tmp_path / "compare.json"
    monkeypatch.setattr("benchmarks.compare._TURN_S", 0.0)
    monkeypatch.setattr("benchmarks.compare.PROBES", 2)
    monkeypatch.setattr("benchmarks.in_process.thread_count", lambda threads: 1)
    result = CliRunner().invoke(
        main,
        [
            *("compare", "--bundle", str(tiny_graphs.folder), "--checkpoint", "nowhere"),
            *("--contenders", "ours,batched,naive", "--k", "none", "--rounds", "1"),
            *("--limit", "4", "--identity", "5", "--no-limits", "--concurrency", "3"),
            *("--starts", "1"),
            *("--repository-options", "--target onnxruntime --max-wait 0"),
            *("--work", str(tmp_path / "work"), "--output", str(output), "--markdown"),
        ],
    )
    assert result.exit_code == 0, result.output
    report = json.loads(output.read_text(encoding="utf-8"))
    assert list(report["contenders"]) == [BATCHED, OURS]
    assert "There is no bundle.json in nowhere" in report["missing"][NAIVE]
    for one in report["contenders"].values():
        assert one["equal_answers"] == one["answers"] == 4
        assert one["errors"] == 0
        assert one["throughput"]["n"] == 1
    assert report["identity"]["equal_to_one_by_one"] == report["identity"]["n"] == 5
    assert report["ratios"][BATCHED]["throughput"]["median"] > 0
    assert "| target | bound | measured |" in result.output
    assert compare_cli.BARE in report["ratios"]
