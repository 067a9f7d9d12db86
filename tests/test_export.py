"""Export: bundles that answer as their checkpoint, or no bundle; bad input; the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from export import onnx_export, parity
from export.cli import main
from export.images import gather
from hmer.bundle import (
    BEAM_FILE,
    BUNDLE_FILE,
    ENCODER_FILE,
    STEP_FILE,
    WEIGHTS_FILE,
    Bundle,
    sha256_of,
)
from hmer.errors import (
    BundleError,
    ContractMismatch,
    CorruptBundle,
    ExportError,
    HmerError,
    MissingBundle,
    ParityError,
    VocabularyMismatch,
)
from hmer.runtime import open_runner
from hmer.vocab import EOS_ID
from tests import tiny
from training.checkpoint import load_checkpoint

SAMPLES = tiny.ROOT / "client" / "samples"


# Parity


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_graphs_answer_as_the_checkpoint(graphs: Bundle, checkpoint: Path, runtime: str) -> None:
    pytest.importorskip(runtime)
    model = load_checkpoint(checkpoint)[1]
    images = tiny.named_images(16, seed=5)
    results = parity.compare(model, graphs, images, runtimes=[runtime])
    assert {result.check for result in results} == {"answers", "beam"}
    for result in results:
        assert result.mismatches == ()
        assert result.images == 16
        assert result.tokens > 100
        assert result.score_difference < 1e-4


def test_the_shipped_graphs_answer_as_the_shipped_checkpoint() -> None:
    checkpoint, bundle = tiny.ROOT / "training" / "pretrained", tiny.ROOT / "hmer" / "pretrained"
    if not (checkpoint / BUNDLE_FILE).is_file() or not (bundle / BUNDLE_FILE).is_file():
        pytest.skip("no weights are shipped in this checkout")
    model, exported = parity.load_pair(checkpoint, bundle)
    images = gather(exported.preprocess, SAMPLES, None, 0)
    pictures = {name: image for name, image in images.items() if not name.endswith(".inkml")}
    parity.check_parity(model, exported, pictures, runtimes=["onnxruntime"])


def test_the_reference_ends_with_eos_or_at_the_limit(checkpoint: Path) -> None:
    model = load_checkpoint(checkpoint)[1]
    answers = [parity.reference(model, image, limit=12) for image in tiny.images(16)]
    assert {len(answer.ids) for answer in answers} > {6, 12}
    for answer in answers:
        assert len(answer.ids) == len(answer.scores)
        assert (answer.ids[-1] == EOS_ID) or len(answer.ids) == 12
        assert EOS_ID not in answer.ids[:-1]


def test_a_mismatch_names_image_and_step(graphs: Bundle, checkpoint: Path) -> None:
    model = load_checkpoint(checkpoint)[1]
    with torch.no_grad():
        model.output.bias[EOS_ID] += 3.0  # ends sooner than the exported network
    results = parity.compare(model, graphs, tiny.named_images(8), runtimes=["onnxruntime"])
    assert results[0].mismatches
    first = results[0].mismatches[0]
    assert first.expected == "'<eos>'"
    with pytest.raises(ParityError, match=f"of 8 images: {first.image}, step {first.step}: '<eos>"):
        parity.refuse_mismatches(results)


def test_equal_tokens_with_other_probabilities_are_a_mismatch(
    graphs: Bundle, checkpoint: Path
) -> None:
    model = load_checkpoint(checkpoint)[1]
    with torch.no_grad():
        model.output.weight.mul_(1.01)
        model.output.bias.mul_(1.01)
    images = tiny.named_images(1)
    result, *_ = parity.compare(model, graphs, images, runtimes=["onnxruntime"])
    assert len(result.mismatches) == 1
    assert "log-probability" in str(result.mismatches[0])
    assert result.score_difference > 1e-3


def test_nothing_to_compare_on_is_an_error(graphs: Bundle, checkpoint: Path) -> None:
    with pytest.raises(ExportError, match="no images"):
        parity.compare(load_checkpoint(checkpoint)[1], graphs, {})


# The bundle


def test_a_bundle_carries_what_a_runtime_needs(graphs: Bundle) -> None:
    assert graphs.k == 3
    assert graphs.vocabulary.tokens == tiny.VOCABULARY.tokens
    assert graphs.preprocess == tiny.SETTINGS
    assert graphs.details["note"] == "random weights, for tests"
    assert not any(p["mismatches"] for p in graphs.details["export"]["parity"])
    for file in (ENCODER_FILE, STEP_FILE):
        with open_runner("onnxruntime", graphs.file(file)) as runner:
            assert runner.inputs


def test_differing_answers_leave_no_bundle(traced: Bundle, tmp_path: Path) -> None:
    tiny.make_checkpoint(tmp_path / "other", seed=2)
    with pytest.raises(ParityError, match=r"answer differently from the checkpoint on . of 3"):
        onnx_export.export_bundle(
            tmp_path / "other",
            tmp_path / "out" / "bundle",
            images=tiny.named_images(3),
            k=traced.k,
            beam=traced.beam,
        )
    assert list((tmp_path / "out").iterdir()) == []


def test_an_export_replaces_only_a_bundle_and_only_if_told(
    traced: Bundle, checkpoint: Path, tmp_path: Path
) -> None:
    output, images = tmp_path / "bundle", tiny.named_images(1)

    def export(force: bool) -> None:
        onnx_export.export_bundle(
            checkpoint,
            output,
            k=traced.k,
            beam=traced.beam,
            images=images,
            force=force,
            runtimes=["onnxruntime"],
        )

    output.mkdir()
    export(force=False)  # into an empty folder
    assert {p.name for p in output.iterdir()} == {BUNDLE_FILE, ENCODER_FILE, STEP_FILE, BEAM_FILE}
    with pytest.raises(ExportError, match=r"not empty.*--force"):
        export(force=False)
    before = output.stat().st_ino
    export(force=True)
    assert output.stat().st_ino != before
    (output / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ExportError, match=r"notes\.txt"):
        export(force=True)
    assert (output / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert {p.name for p in tmp_path.iterdir()} == {"bundle"}


def test_a_checkpoint_is_never_overwritten(traced: Bundle, checkpoint: Path) -> None:
    with pytest.raises(ExportError, match=f"more than an exported bundle .{WEIGHTS_FILE}"):
        onnx_export.export_bundle(checkpoint, checkpoint, images={}, force=True)


def edit_json(path: Path, **changes: Any) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(document | changes), encoding="utf-8")


def spoil(folder: Path, how: str) -> None:
    weights, document = folder / WEIGHTS_FILE, folder / BUNDLE_FILE
    if how == "missing":
        document.unlink()
    elif how == "contract":
        edit_json(document, contract=99)
    elif how == "vocabulary":
        vocabulary = tiny.VOCABULARY.to_dict()
        edit_json(document, vocabulary=vocabulary | {"tokens": [*tiny.TOKENS[1:], "z"]})
    elif how == "longer vocabulary":
        longer = type(tiny.VOCABULARY)((*tiny.TOKENS, "z"))
        edit_json(document, vocabulary=longer.to_dict())
    elif how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif how in ("truncated with hash", "foreign", "not finite"):
        if how == "foreign":
            save_file({"lm_head.weight": torch.zeros(2, 2)}, weights)
        elif how == "not finite":
            state = tiny.make_network().state_dict()
            state["mix.bias"][0] = float("nan")
            save_file({name: value.contiguous() for name, value in state.items()}, weights)
        else:
            weights.write_bytes(weights.read_bytes()[:-1000])
        entry = {"sha256": sha256_of(weights), "bytes": weights.stat().st_size}
        edit_json(document, files={WEIGHTS_FILE: entry})


@pytest.mark.parametrize(
    ("how", "kind", "complaint"),
    [
        ("missing", MissingBundle, "There is no bundle.json"),
        ("contract", ContractMismatch, "contract version 99"),
        ("vocabulary", VocabularyMismatch, "tokens were changed"),
        ("longer vocabulary", VocabularyMismatch, "23 outputs|22 outputs"),
        ("truncated", CorruptBundle, "truncated or changed"),
        ("truncated with hash", CorruptBundle, "not a whole safetensors file"),
        ("foreign", CorruptBundle, "weights of another network"),
        ("not finite", CorruptBundle, "mix.bias that are not finite"),
    ],
)
def test_a_bad_checkpoint_is_one_sentence(
    checkpoint: Path, tmp_path: Path, how: str, kind: type[HmerError], complaint: str
) -> None:
    bad = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, bad)
    spoil(bad, how)
    with pytest.raises(kind, match=complaint):
        load_checkpoint(bad)
    result = CliRunner().invoke(main, ["onnx", str(bad), "--output", str(tmp_path / "bundle")])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output
    assert not (tmp_path / "bundle").exists()


def test_graphs_are_no_checkpoint(graphs: Bundle) -> None:
    with pytest.raises(BundleError, match="kind graphs, not checkpoint"):
        load_checkpoint(graphs.folder)


# The command line


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in sorted(SAMPLES.glob("*.png"))[:2]:
        shutil.copy(path, folder)
    return folder


def test_export_and_verify_from_the_command_line(
    traced: Bundle, checkpoint: Path, pictures: Path, tmp_path: Path
) -> None:
    output = tmp_path / "bundle"
    call = ["onnx", str(checkpoint), "-o", str(output), "--images", str(pictures)]
    call += ["--k", str(traced.k), "--beam", str(traced.beam)]
    result = CliRunner(env={"HMER_CROHME": None}).invoke(main, [*call, "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.splitlines()[-1])
    assert [graph["file"] for graph in report["graphs"]] == [ENCODER_FILE, STEP_FILE, BEAM_FILE]
    assert report["graphs"][0]["bytes"] == (output / ENCODER_FILE).stat().st_size
    assert [p["images"] for p in report["parity"]] == [2] * len(report["parity"])

    result = CliRunner(env={"HMER_CROHME": None}).invoke(
        main, ["verify", str(checkpoint), str(output), "--images", str(pictures)]
    )
    assert result.exit_code == 0, result.output
    assert "onnxruntime" in result.stdout

    tiny.make_checkpoint(tmp_path / "other", seed=2)
    result = CliRunner(env={"HMER_CROHME": None}).invoke(
        main, ["verify", str(tmp_path / "other"), str(output), "--images", str(pictures), "--json"]
    )
    assert result.exit_code == 1
    assert result.stderr.startswith("error: The graphs in onnxruntime answer differently")
    report = json.loads(result.stdout)
    answers = {p["runtime"]: p for p in report["parity"] if p["check"] == "answers"}
    assert answers["pytorch"]["passed"]
    assert answers["onnxruntime"]["mismatches"][0]["image"].endswith(".png")


def test_verify_refuses_a_bundle_of_another_network(
    graphs: Bundle, checkpoint: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(graphs.folder, other)
    vocabulary = type(tiny.VOCABULARY)(("z", *tiny.TOKENS[1:]))
    edit_json(other / BUNDLE_FILE, vocabulary=vocabulary.to_dict())
    with pytest.raises(VocabularyMismatch, match="different vocabularies"):
        parity.load_pair(checkpoint, other)
    shutil.copy(graphs.file(BUNDLE_FILE), other)
    settings = tiny.SETTINGS.to_dict() | {"margin": 99}
    edit_json(other / BUNDLE_FILE, preprocess=settings)
    with pytest.raises(BundleError, match="different preprocess settings"):
        parity.load_pair(checkpoint, other)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--images", "nowhere"], "There is no folder nowhere"),
        (["--images", "empty"], "no pictures or ink files in empty"),
        (["--data", "nowhere"], "There is no stroke pack nowhere"),
        (["--images", "broken"], "broken.png cannot be compared on"),
    ],
)
def test_bad_images_are_one_sentence(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "broken.png").write_bytes(b"no picture")
    result = CliRunner(env={"HMER_CROHME": None}).invoke(
        main, ["onnx", str(checkpoint), "-o", "out", *arguments]
    )
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert complaint in result.stderr


def test_a_missing_library_names_the_extra(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.startswith(("export.onnx_export", "export.checks"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx", None)
    result = CliRunner().invoke(main, ["onnx", str(checkpoint), "-o", str(tmp_path / "bundle")])
    assert result.exit_code == 1
    assert "pip install 'hmer[export]'" in result.stderr


def test_the_command_line_needs_no_torch_until_it_exports() -> None:
    code = "import sys, export.cli; sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tiny.ROOT)


@pytest.mark.parametrize("command", ["onnx", "verify", "repository"])
def test_help_has_an_example(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0
    assert f"hmer-export {command} " in result.output


def test_a_k_out_of_range_is_a_usage_error(checkpoint: Path) -> None:
    assert CliRunner().invoke(main, ["onnx", str(checkpoint), "-o", "x", "--k", "0"]).exit_code == 2
