"""Export: bundles that answer as their checkpoint, or no bundle; bad input; the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from export import onnx_export, parity
from export.images import gather
from hmer.bundle import (
    BEAM_FILE,
    BUNDLE_FILE,
    ENCODER_FILE,
    STEP_FILE,
    WEIGHTS_FILE,
    Bundle,
)
from hmer.errors import (
    ExportError,
    ParityError,
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
