"""Verify: every runner against the checkpoint and against itself; faults that it must find."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from export import parity, verify_checks, verify_runners
from export.images import gather
from export.torch_runner import TorchRunner
from export.verify_checks import answer_all, within
from export.verify_reference import log_probabilities, margins, reference
from export.verify_runners import OPENVINO_BF16, Graphs, open_graphs, runners_at_hand
from export.verify_types import BATCHING, BEAM, PADDING, STEPS, Answer
from hmer.bundle import Bundle
from hmer.errors import BadParameter, CorruptBundle, ExportError, InferenceFailed
from hmer.runtime import Runner
from tests import tiny
from training.checkpoint import load_checkpoint
from training.network import Recogniser

Array = NDArray[Any]


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Recogniser:
    return load_checkpoint(checkpoint)[1]


class Wrapped:
    """A runner whose outputs are changed by ``spoil(feeds, outputs)``."""

    def __init__(self, inner: Runner, spoil: Any) -> None:
        self.inner, self.spoil = inner, spoil
        self.inputs, self.outputs = inner.inputs, inner.outputs

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        outputs = self.inner.infer(feeds)
        self.spoil(feeds, outputs)
        return outputs

    def close(self) -> None:
        self.inner.close()

    def __enter__(self) -> Wrapped:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def checks(graphs: Graphs, model: Recogniser, count: int = 8) -> dict[str, bool]:
    """Whether each check within the runner finds equal answers."""
    images = tiny.named_images(count, seed=5)
    return {
        check: not parity.compare_answers(
            ours, theirs, tiny.VOCABULARY, runtime=graphs.runner, check=check
        ).refused
        for check, ours, theirs in within(graphs, images)
    }


# All runners


def test_every_runner_passes_every_check(graphs: Bundle, model: Recogniser) -> None:
    images = tiny.named_images(40, seed=5)
    calls: list[tuple[int, int]] = []
    found = parity.verify(
        model, graphs, images, sample=34, progress=lambda done, total: calls.append((done, total)),
        allowed=0.2,  # in bf16, where the CPU has it: this network's near ties are many
    )  # fmt: skip
    names = {result.runtime for result in found.results}
    assert {"pytorch", "onnxruntime"} <= names
    assert names == set(runners_at_hand(graphs))
    assert found.skipped == {}
    for result in found.results:
        assert result.images == (40 if result.check == "answers" else 34)
        if result.runtime == OPENVINO_BF16:
            assert all(mismatch.tie for mismatch in result.mismatches), result
        else:
            assert result.mismatches == (), result
            assert result.score_difference < 1e-4
    by_runner = {name: [r.check for r in found.results if r.runtime == name] for name in names}
    assert by_runner["pytorch"] == ["answers", PADDING, BATCHING, STEPS, BEAM]
    assert by_runner["onnxruntime"] == ["answers", PADDING, BATCHING, BEAM]
    assert calls[-1][0] == calls[-1][1]
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    document = found.to_dict()
    assert document["passed"]
    assert document["parity"][0]["share"] == 0.0


def test_answers_come_back_under_their_names(graphs: Bundle, model: Recogniser) -> None:
    images = tiny.named_images(70, seed=3)  # more than a window
    with open_graphs("pytorch", graphs, model) as opened:
        found = answer_all(opened, images)
    assert list(found) == list(images)
    for name in list(images)[::7]:
        assert found[name].ids == reference(model, images[name]).ids


def test_threads_of_torch_are_given_back(graphs: Bundle, model: Recogniser) -> None:
    before = torch.get_num_threads()
    parity.verify(model, graphs, tiny.named_images(1), runners=["pytorch"], sample=1, threads=1)
    assert torch.get_num_threads() == before


# Faults that each check is there for


@pytest.mark.parametrize("fault", [PADDING, BATCHING, STEPS, BEAM])
def test_a_fault_fails_its_check_and_no_other(
    graphs: Bundle, model: Recogniser, fault: str
) -> None:
    def canvas(feeds: Mapping[str, Array], outputs: dict[str, Array]) -> None:
        """Features that depend on how much padding there is beyond the served canvas."""
        size = verify_checks.size_class(*feeds["size"][0].tolist())
        if len(feeds["image"]) == 1 and feeds["image"].shape[2] > size[0]:
            outputs["state"] = outputs["state"] + 1.0

    def neighbours(feeds: Mapping[str, Array], outputs: dict[str, Array]) -> None:
        if len(feeds["image"]) > 1:
            outputs["keys"] = outputs["keys"] + outputs["keys"].mean(axis=0)

    def forgetful(feeds: Mapping[str, Array], outputs: dict[str, Array]) -> None:
        outputs["next_coverage"] = outputs["next_coverage"] * 0.0

    def second(feeds: Mapping[str, Array], outputs: dict[str, Array]) -> None:
        outputs["candidates"] = outputs["candidates"][:, ::-1]

    with open_graphs("pytorch", graphs, model) as opened:
        assert opened.beam is not None
        assert opened.single is not None
        spoiled = {
            PADDING: replace(opened, encoder=Wrapped(opened.encoder, canvas)),
            BATCHING: replace(opened, encoder=Wrapped(opened.encoder, neighbours)),
            STEPS: replace(opened, single=Wrapped(opened.single, forgetful)),
            BEAM: replace(opened, beam=Wrapped(opened.beam, second)),
        }[fault]
        expected = dict.fromkeys([PADDING, BATCHING, STEPS, BEAM], True)
        assert checks(opened, model) == expected
        assert checks(spoiled, model) == expected | {fault: False}


def test_a_runner_that_fails_is_named(graphs: Bundle, model: Recogniser) -> None:
    def broken(feeds: Mapping[str, Array], outputs: dict[str, Array]) -> None:
        outputs["scores"] = np.full_like(outputs["scores"], np.nan)

    with open_graphs("pytorch", graphs, model) as opened:
        spoiled = replace(opened, step=Wrapped(opened.step, broken))
        with pytest.raises(ExportError, match=r"pytorch failed on image-0: .*score nan"):
            answer_all(spoiled, tiny.named_images(1))


def test_a_runtime_that_cannot_load_the_graphs_is_left_out_with_its_reason(
    graphs: Bundle, model: Recogniser, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = verify_runners.open_runner

    def refusing(target: str, *arguments: Any, **options: Any) -> Runner:
        if target == "onnxruntime":
            raise CorruptBundle("There is no kernel for Conv in bfloat16.")
        return opened(target, *arguments, **options)

    monkeypatch.setattr(verify_runners, "open_runner", refusing)
    images = tiny.named_images(2)
    with pytest.raises(CorruptBundle, match="no kernel"):  # asked for by name
        parity.verify(model, graphs, images, runners=["onnxruntime"], sample=0)
    monkeypatch.setattr(parity, "runners_at_hand", lambda *_: ("pytorch", "onnxruntime"))
    with pytest.raises(ExportError, match=r"No runtime here .* no kernel for Conv"):
        parity.verify(model, graphs, images, sample=0)
    pytest.importorskip("openvino")
    monkeypatch.setattr(
        parity, "runners_at_hand", lambda *_: ("pytorch", "onnxruntime", "openvino")
    )
    found = parity.verify(model, graphs, images, sample=0)
    assert set(found.skipped) == {"onnxruntime"}
    assert {result.runtime for result in found.results} == {"pytorch", "openvino"}


def test_an_unknown_runner_is_one_sentence(graphs: Bundle, model: Recogniser) -> None:
    with (
        pytest.raises(BadParameter, match=r"no runner 'caffe'.*pytorch"),
        open_graphs("caffe", graphs, model),
    ):
        pass


# The margin


def test_the_margin_is_what_the_checkpoint_says(model: Recogniser) -> None:
    (image,) = tiny.named_images(1, seed=5).values()
    answer = reference(model, image)
    assert len(answer.ids) > 3
    margin = margins(model, {"a": image})
    for step in (0, 2):
        scores = log_probabilities(model, image, answer.ids[:step])
        assert scores.shape == (len(tiny.VOCABULARY),)
        assert np.exp(scores.astype(np.float64)).sum() == pytest.approx(1.0, abs=1e-5)
        assert scores.argmax() == answer.ids[step]
        assert scores.max() == pytest.approx(answer.scores[step], abs=1e-5)
        second = int(np.argsort(scores)[-2])
        gap = margin("a", answer.ids[:step], answer.ids[step], second)
        assert gap == pytest.approx(scores.max() - scores[second], abs=1e-6)
    assert margin("a", (), answer.ids[0], 10_000) is None


def test_a_tie_is_reported_and_passes_and_a_clear_difference_fails(model: Recogniser) -> None:
    images = tiny.named_images(1, seed=5)
    answer = reference(model, images["image-0"])
    ids, other = answer.ids, (answer.ids[0] + 1) % len(tiny.VOCABULARY)
    found = {"image-0": Answer((other, *ids[1:]), answer.scores)}
    with torch.no_grad():  # the other token becomes as likely as the first
        model = copy.deepcopy(model)
        model.output.weight[other] = model.output.weight[ids[0]]
        model.output.bias[other] = model.output.bias[ids[0]] - 1e-4
    for gap, ties in ((1e-4, 1), (0.5, 0)):
        with torch.no_grad():
            model.output.bias[other] = model.output.bias[ids[0]] - gap
        expected = {"image-0": replace(answer, ids=ids)}
        result = parity.compare_answers(
            expected, found, tiny.VOCABULARY, runtime="x", margin=margins(model, images)
        )
        (mismatch,) = result.mismatches
        assert mismatch.step == 0
        assert mismatch.margin == pytest.approx(gap, rel=0.01)
        assert result.ties == ties
        assert len(result.refused) == 1 - ties
        assert ("a tie" in str(mismatch)) == bool(ties)


# PyTorch as a runner


def test_the_torch_runner_has_the_interface_of_the_others(
    graphs: Bundle, model: Recogniser
) -> None:
    (image,) = tiny.images(1)
    feeds = {"image": image[None, None], "size": np.array([image.shape], np.int32)}
    with (
        open_graphs("pytorch", graphs, model) as opened,
        open_graphs("onnxruntime", graphs, model) as other,
    ):
        assert isinstance(opened.encoder, TorchRunner)
        for ours, theirs in ((opened.encoder, other.encoder), (opened.step, other.step)):
            assert ours.inputs == theirs.inputs
            assert ours.outputs == theirs.outputs
        found, wanted = opened.encoder.infer(feeds), other.encoder.infer(feeds)
        for name, array in wanted.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_allclose(found[name], array, atol=1e-4)
        with pytest.raises(InferenceFailed, match="takes the inputs image, size"):
            opened.encoder.infer({"image": feeds["image"]})
        with pytest.raises(InferenceFailed, match="encoder failed in PyTorch"):
            opened.encoder.infer({**feeds, "size": np.zeros((1, 9, 9), np.int32)})
    with pytest.raises(InferenceFailed, match="closed"):
        opened.encoder.infer(feeds)


def test_the_checkpoint_is_not_changed_by_folding(graphs: Bundle, model: Recogniser) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with open_graphs("pytorch", graphs, model):
        pass
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_shipped_graphs_answer_as_the_shipped_checkpoint_on_real_handwriting(
    crohme: Path,
) -> None:
    checkpoint, bundle = tiny.ROOT / "training" / "pretrained", tiny.ROOT / "hmer" / "pretrained"
    model, exported = parity.load_pair(checkpoint, bundle)
    images = gather(exported.preprocess, None, [crohme / "test_2014.jsonl.gz"], limit=4)
    assert len(images) == 4
    found = parity.verify(model, exported, images, sample=2)
    parity.refuse_mismatches(found.results)
