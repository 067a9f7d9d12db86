"""The beam's graph against the network that it is made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from export.beam_graph import DecoderBeamGraph
from export.checks import DENIED_OPS, check_graph, op_counts
from export.graphs import DecoderStepGraph
from export.trace import export_graph
from hmer import contract
from hmer.errors import BadParameter
from hmer.runtime import OnnxRuntimeRunner
from hmer.vocab import EOS_ID, SOS_ID
from tests.tiny import CONFIG, make_network
from training.network import Encoded

N = 5
SIZES = contract.Sizes(CONFIG.features, CONFIG.attention, CONFIG.hidden, CONFIG.stride, k=1, beam=N)
SPEC = contract.models(SIZES)[contract.DECODER_BEAM]


def feeds(rows: int, tokens: list[int], parents: list[int], seed: int = 0) -> list[Tensor]:
    """Random inputs of ``rows`` rows, in the contract's order."""
    make = torch.Generator().manual_seed(seed)
    sizes = {"feature_height": 4, "feature_width": 7}
    result = []
    for tensor in SPEC.inputs:
        shape = (rows, *(sizes[d] if isinstance(d, str) else d for d in tensor.dims))
        value = torch.rand(shape, generator=make) * 0.5
        match tensor.name:
            case "feature_size":
                value = torch.tensor([[4 - row % 2, 7 - row % 3] for row in range(rows)])
            case "token":
                value = torch.tensor(tokens)[:, None]
            case "parent":
                value = torch.tensor(parents)[:, None]
        result.append(value.to(getattr(torch, tensor.dtype)))
    return result


def test_candidates_are_the_networks_best_after_the_reordering() -> None:
    model = make_network()
    values, keys, size, token, parent, state, coverage = inputs = feeds(
        4, [SOS_ID, 7, 9, 11], [2, 2, 0, 3]
    )
    with torch.no_grad():
        candidates, scores, next_state, next_coverage = DecoderBeamGraph(model, N)(*inputs)
        rows = parent[:, 0].long()
        step = model.step(
            Encoded(values, keys, size, state), token[:, 0], state[rows], coverage[rows]
        )
    best = torch.log_softmax(step.logits, -1).sort(descending=True)
    assert torch.equal(candidates.long(), best.indices[:, :N])
    assert candidates.dtype == torch.int32
    torch.testing.assert_close(scores, best.values[:, :N])
    torch.testing.assert_close(next_state, step.state)
    torch.testing.assert_close(next_coverage, step.coverage)


def test_the_first_candidate_is_the_greedy_steps_token() -> None:
    model = make_network()
    values, keys, size, token, _parent, state, coverage = inputs = feeds(
        5, [SOS_ID, 3, 5, 8, 13], [0, 1, 2, 3, 4]
    )
    with torch.no_grad():
        candidates, scores, *states = DecoderBeamGraph(model, N)(*inputs)
        tokens, greedy_scores, *greedy_states = DecoderStepGraph(model, 1)(
            values, keys, size, token, state, coverage
        )
    assert torch.equal(candidates[:, :1], tokens)
    torch.testing.assert_close(scores[:, :1], greedy_scores)
    for one, other in zip(states, greedy_states, strict=True):
        torch.testing.assert_close(one, other)


def test_a_row_after_eos_stands_still_where_its_parent_was() -> None:
    *_, state, coverage = inputs = feeds(3, [EOS_ID, 6, EOS_ID], [1, 1, 2])
    with torch.no_grad():
        candidates, scores, next_state, next_coverage = DecoderBeamGraph(make_network(), N)(*inputs)
    for row, parent in ((0, 1), (2, 2)):
        assert candidates[row].tolist() == [EOS_ID] * N
        assert scores[row].tolist() == [0.0] * N
        assert torch.equal(next_state[row], state[parent])
        assert torch.equal(next_coverage[row], coverage[parent])
    assert not torch.equal(next_state[1], state[1])


@pytest.mark.parametrize("candidates", [0, CONFIG.vocabulary_size + 1])
def test_a_number_of_candidates_that_cannot_be_is_refused(candidates: int) -> None:
    with pytest.raises(BadParameter, match=f"1 to {CONFIG.vocabulary_size}"):
        DecoderBeamGraph(make_network(), candidates)


def test_the_exported_graph_equals_pytorch(tmp_path: Path) -> None:
    """Other batches and sizes than it was traced with; ``TopK`` orders as PyTorch does."""
    module = DecoderBeamGraph(make_network(), N).eval()
    graph = export_graph(module, SPEC, SIZES.stride)
    check_graph(graph, SPEC)
    operators = op_counts(graph)
    assert operators["TopK"] == 1
    assert not DENIED_OPS & set(operators)
    path = tmp_path / "beam.onnx"
    onnx.save(graph, path)
    with OnnxRuntimeRunner(path, 1) as runner:
        for rows, tokens, parents in (
            (1, [SOS_ID], [0]),
            (6, [4, 9, EOS_ID, 12, SOS_ID, 3], [5, 0, 0, 2, 4, 4]),
        ):
            inputs = feeds(rows, tokens, parents, seed=rows)
            names = [tensor.name for tensor in SPEC.inputs]
            found = runner.infer(
                {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
            )
            with torch.no_grad():
                expected = module(*inputs)
            for tensor, value in zip(SPEC.outputs, expected, strict=True):
                assert found[tensor.name].dtype == tensor.dtype
                np.testing.assert_allclose(found[tensor.name], value.numpy(), atol=2e-5)
