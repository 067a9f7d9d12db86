"""Export: the graphs are what the contract says, answer as the checkpoint, or are not written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from export import onnx_export, parity, storage
from export.checks import check_graph, check_interface, name_axes, op_counts
from export.cli import main
from export.graphs import DecoderStepGraph, fold_batch_norm
from export.images import gather
from hmer import contract
from hmer.bundle import BUNDLE_FILE, ENCODER_FILE, STEP_FILE, WEIGHTS_FILE, Bundle, sha256_of
from hmer.contract import ModelSpec, TensorSpec
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
from hmer.preprocess import to_batch
from hmer.runtime import open_runner
from hmer.vocab import EOS_ID, SOS_ID
from tests import tiny
from training.checkpoint import load_checkpoint

Tensors = dict[str, NDArray[Any]]
SAMPLES = tiny.ROOT / "client" / "samples"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "checkpoint"
    tiny.make_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.make_graphs(tmp_path_factory.mktemp("export") / "graphs")


@pytest.fixture
def traced(graphs: Bundle, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """Spare the test the half minute of tracing: the export gets the graphs of ``graphs``."""

    def export_graphs(*_: object) -> Iterator[tuple[ModelProto, float]]:
        for file in (ENCODER_FILE, STEP_FILE):
            yield onnx.load(graphs.file(file)), 0.0

    monkeypatch.setattr(onnx_export, "export_graphs", export_graphs)
    return graphs


def model_of(bundle: Bundle, file: str) -> ModelProto:
    return onnx.load(bundle.file(file))


def run(path: Path | bytes, feeds: Tensors) -> Tensors:
    session = onnxruntime.InferenceSession(
        path if isinstance(path, bytes) else str(path), providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def encode(bundle: Bundle, images: list[NDArray[np.uint8]]) -> Tensors:
    image, size = to_batch(images)
    return run(bundle.file(ENCODER_FILE), {"image": image, "size": size})


def first_step(encoded: Tensors) -> Tensors:
    rows = len(encoded["state"])
    return encoded | {
        "token": np.full((rows, 1), SOS_ID, np.int32),
        "coverage": np.zeros(encoded["keys"].shape[:3], np.float32),
    }


# The graphs


@pytest.mark.parametrize(
    ("name", "file"), [(contract.ENCODER, ENCODER_FILE), (contract.DECODER_STEP, STEP_FILE)]
)
def test_graphs_have_the_tensors_of_the_contract(graphs: Bundle, name: str, file: str) -> None:
    model = model_of(graphs, file)
    check_graph(model, contract.models(graphs.sizes)[name])
    axes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    if name == contract.ENCODER:
        assert axes["image"] == ["batch", 1, "height", "width"]
        assert axes["values"] == ["batch", "feature_height", "feature_width", 32]
    else:
        assert axes["tokens"] == ["batch", 3]
        assert axes["next_coverage"] == ["batch", "feature_height", "feature_width"]


@pytest.mark.parametrize("file", [ENCODER_FILE, STEP_FILE])
def test_files_tell_nothing_about_the_machine_that_made_them(graphs: Bundle, file: str) -> None:
    content = graphs.file(file).read_bytes()
    for trace in (str(tiny.ROOT), "site-packages", ".py", "stack_trace", "torch.ops"):
        assert trace.encode() not in content


def test_padding_and_neighbours_change_no_feature(graphs: Bundle) -> None:
    images = tiny.images(5)
    together = encode(graphs, images)
    for row, image in enumerate(images):
        size = np.array([image.shape], np.int32)
        alone = run(graphs.file(ENCODER_FILE), {"image": image[None, None], "size": size})
        h, w = alone["feature_size"][0]
        assert (h, w) == (image.shape[0] // 8, image.shape[1] // 8)
        np.testing.assert_array_equal(together["feature_size"][row], (h, w))
        np.testing.assert_allclose(together["state"][row], alone["state"][0], atol=1e-5)
        for name in ("values", "keys"):
            np.testing.assert_allclose(together[name][row, :h, :w], alone[name][0], atol=2e-5)
            outside = together[name][row].copy()
            outside[:h, :w] = 0
            assert not outside.any()  # exactly zero


def test_padding_and_neighbours_change_no_answer(graphs: Bundle) -> None:
    images = tiny.named_images(12, seed=3)
    together = parity.served(graphs, "onnxruntime", images)
    alone = [parity.served(graphs, "onnxruntime", {n: i})[0] for n, i in images.items()]
    assert [answer.ids for answer in together] == [answer.ids for answer in alone]
    for left, right in zip(together, alone, strict=True):
        np.testing.assert_allclose(left.scores, right.scores, atol=1e-4)
    assert len({answer.ids for answer in alone}) > 6  # the answers do depend on the images


def test_k_tokens_a_call_are_k_calls_of_the_network(graphs: Bundle, checkpoint: Path) -> None:
    """Row by row, over the end of the shorter answers: the frozen state, and what precedes it."""
    network = DecoderStepGraph(load_checkpoint(checkpoint)[1], k=1)
    feeds = first_step(encode(graphs, tiny.images(8)))
    single = {name: torch.from_numpy(value) for name, value in feeds.items()}
    spec = contract.models(graphs.sizes)[contract.DECODER_STEP]
    ended = 0
    for _ in range(5):
        found = run(graphs.file(STEP_FILE), feeds)
        for index in range(3):
            before = dict(single)
            with torch.no_grad():
                token, score, state, coverage = network(*(single[t.name] for t in spec.inputs))
            over = before["token"][:, 0] == EOS_ID
            ended += int(over.sum())
            assert (token[over] == EOS_ID).all()
            assert (score[over] == 0).all()
            assert torch.equal(state[over], before["state"][over])
            assert torch.equal(coverage[over], before["coverage"][over])
            np.testing.assert_array_equal(found["tokens"][:, index], token[:, 0])
            np.testing.assert_allclose(found["scores"][:, index], score[:, 0], atol=1e-4)
            single |= {"token": token, "state": state, "coverage": coverage}
        np.testing.assert_allclose(found["next_state"], single["state"], atol=1e-4)
        np.testing.assert_allclose(found["next_coverage"], single["coverage"], atol=1e-4)
        feeds |= {
            "token": found["tokens"][:, -1:],
            "state": found["next_state"],
            "coverage": found["next_coverage"],
        }
    assert 0 < ended < 8 * 15


def test_the_step_holds_its_weights_once_whatever_k(graphs: Bundle, checkpoint: Path) -> None:
    network = load_checkpoint(checkpoint)[1]
    decoder = {n: w for n, w in network.named_parameters() if not n.startswith("encoder")}
    used = [w.numel() for n, w in decoder.items() if not n.startswith(("initial", "key_"))]
    model = model_of(graphs, STEP_FILE)
    stored = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    assert sum(used) <= stored <= 1.05 * sum(used) + 100
    assert op_counts(model)["ArgMax"] == 3


# Storage


def test_weights_are_stored_as_they_were_trained(graphs: Bundle, checkpoint: Path) -> None:
    """float16 storage loses nothing: the graph's kernels are the folded checkpoint's."""
    folded, scales = fold_batch_norm(load_checkpoint(checkpoint)[1])
    model = model_of(graphs, ENCODER_FILE)
    halves = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16]
    assert len(halves) >= 20
    storage.expand(model)
    assert not [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16]
    found = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for name in scales:
        kernel = folded.get_parameter(name).detach().numpy()
        np.testing.assert_allclose(found[name], kernel, rtol=1e-6)


@pytest.mark.parametrize("file", [ENCODER_FILE, STEP_FILE])
def test_stored_and_expanded_graphs_answer_alike(graphs: Bundle, file: str) -> None:
    image, size = to_batch(tiny.images(4))
    feeds: Tensors = {"image": image, "size": size}
    if file == STEP_FILE:
        feeds = first_step(encode(graphs, tiny.images(4)))
    model = model_of(graphs, file)
    storage.expand(model)
    onnx.checker.check_model(model, full_check=True)
    expanded = run(model.SerializeToString(), feeds)
    for name, values in run(graphs.file(file), feeds).items():
        np.testing.assert_array_equal(values, expanded[name])


@pytest.mark.parametrize("file", [ENCODER_FILE, STEP_FILE])
def test_the_runtime_restores_the_weights_at_load(
    graphs: Bundle, file: str, tmp_path: Path
) -> None:
    """Otherwise every call would convert them anew."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / file)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    onnxruntime.InferenceSession(
        str(graphs.file(file)), options, providers=["CPUExecutionProvider"]
    )
    loaded = onnx.load(tmp_path / file).graph
    assert not [t.name for t in loaded.initializer if t.data_type == TensorProto.FLOAT16]
    weights = {tensor.name for tensor in loaded.initializer}
    assert not [n.name for n in loaded.node if n.op_type == "Cast" and n.input[0] in weights]


def test_a_weight_too_large_for_float16_is_refused() -> None:
    tensor = numpy_helper.from_array(np.full((16, 16), 1e6, np.float32), "weight")
    graph = helper.make_graph([], "large", [], [], [tensor])
    with pytest.raises(ExportError, match=r"weight reaches 1e\+06.*--storage float32"):
        storage.compress(helper.make_model(graph), {})


# Checks


def small_graph(op: str = "Relu", to: int = TensorProto.FLOAT, size: int | str = "height") -> Any:
    shape = ["batch", size]
    kind = TensorProto.INT64 if op == "NonZero" else to
    node = helper.make_node(op, ["x"], ["y"], name="node")
    if op == "Cast":
        node.attribute.append(helper.make_attribute("to", to))
    graph = helper.make_graph(
        [node],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", kind, [2, "n"] if op == "NonZero" else shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def small_spec(dims: tuple[int | str, ...] = ("height",), out: str = "float32") -> ModelSpec:
    return ModelSpec("small", (TensorSpec("x", "float32", dims),), (TensorSpec("y", out, dims),))


def test_a_graph_as_the_contract_wants_it_passes() -> None:
    check_graph(small_graph(), small_spec())


@pytest.mark.parametrize(
    ("model", "spec", "complaint"),
    [
        (small_graph("NonZero"), small_spec(), "uses NonZero .* TensorRT refuses"),
        (small_graph("Dropout"), small_spec(), "still has a Dropout"),
        (small_graph("Cast", TensorProto.DOUBLE), small_spec(), "is DOUBLE"),
        (small_graph(size=7), small_spec(), r"axes \['batch', 7\].*\['batch', 'height'\]"),
        (small_graph(), small_spec((7,)), r"asks for \['batch', 7\]"),
        (small_graph(), small_spec(out="int32"), "is float32, but the contract asks for int32"),
    ],
)
def test_a_graph_that_is_not_servable_is_refused(
    model: ModelProto, spec: ModelSpec, complaint: str
) -> None:
    with pytest.raises(ExportError, match=complaint):
        check_graph(model, spec)


def test_swapped_tensors_and_invalid_graphs_are_refused() -> None:
    swapped = ModelSpec("small", small_spec().outputs, small_spec().inputs)
    with pytest.raises(ExportError, match="inputs x, but the contract asks for y"):
        check_interface(small_graph(), swapped)
    invalid = small_graph()
    invalid.graph.node[0].input[0] = "nobody"
    with pytest.raises(ExportError, match="not valid ONNX"):
        check_graph(invalid, small_spec())


def test_a_specialised_axis_is_refused_not_renamed() -> None:
    with pytest.raises(ExportError, match=r"height.*specialised to 7"):
        name_axes(small_graph(size=7), small_spec())
    formula = small_graph(size="8*h")
    name_axes(formula, small_spec())
    check_graph(formula, small_spec())


# Parity


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_graphs_answer_as_the_checkpoint(graphs: Bundle, checkpoint: Path, runtime: str) -> None:
    pytest.importorskip(runtime)
    model = load_checkpoint(checkpoint)[1]
    images = tiny.named_images(16, seed=5)
    (result,) = parity.compare(model, graphs, images, runtimes=[runtime])
    assert result.mismatches == ()
    assert result.images == 16
    assert result.tokens > 100
    assert 0.0 < result.score_difference < 1e-4


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
    (result,) = parity.compare(model, graphs, tiny.named_images(1), runtimes=["onnxruntime"])
    assert len(result.mismatches) == 1
    assert "log-probability" in str(result.mismatches[0])
    assert result.score_difference > parity.SCORE_TOLERANCE


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
            tmp_path / "other", tmp_path / "out" / "bundle", images=tiny.named_images(3), k=3
        )
    assert list((tmp_path / "out").iterdir()) == []


def test_an_export_replaces_only_a_bundle_and_only_if_told(
    traced: Bundle, checkpoint: Path, tmp_path: Path
) -> None:
    output, images = tmp_path / "bundle", tiny.named_images(1)

    def export(force: bool) -> None:
        onnx_export.export_bundle(
            checkpoint, output, k=3, images=images, force=force, runtimes=["onnxruntime"]
        )

    output.mkdir()
    export(force=False)  # into an empty folder
    assert {p.name for p in output.iterdir()} == {BUNDLE_FILE, ENCODER_FILE, STEP_FILE}
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
    call = ["onnx", str(checkpoint), "-o", str(output), "--k", "3", "--images", str(pictures)]
    result = CliRunner(env={"HMER_CROHME": None}).invoke(main, [*call, "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.splitlines()[-1])
    assert [graph["file"] for graph in report["graphs"]] == [ENCODER_FILE, STEP_FILE]
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
    assert report["parity"][0]["mismatches"][0]["image"].endswith(".png")


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
