"""The losses: what they reward, and that the fast decoder loop is the equations' own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hmer.vocab import PAD_ID, Vocabulary
from tests import reference_losses
from tests.training_fixtures import NETWORK, RENDERER, VOCABULARY, examples
from training import losses, unroll
from training.data import Batch, collate
from training.network import NetworkConfig, Recogniser


def a_batch(count: int = 5) -> Batch:
    """Rows of unlike lengths and sizes, longest label first."""
    chosen = [RENDERER.render(e, np.random.default_rng(0)) for e in examples()[:count]]
    chosen.sort(key=lambda sample: -len(sample.ids))
    return collate(chosen, len(VOCABULARY), 16)


def gradients(*modules: torch.nn.Module) -> dict[str, Tensor]:
    found = {}
    for index, module in enumerate(modules):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            found[f"{index}/{name}"] = parameter.grad.clone()
        module.zero_grad()
    return found


@pytest.mark.parametrize(("drop_attention", "reach"), [(0.0, 1), (0.4, 1), (0.0, 3)])
def test_the_fast_loop_gives_the_equations_losses_and_gradients(
    drop_attention: float, reach: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    changes = {"dropout": 0.0, "drop_attention": drop_attention, "reach": reach}
    config = NetworkConfig(**{**NETWORK.__dict__, **changes})
    model, head = Recogniser(config).train(), losses.SymbolHead(16, len(VOCABULARY))
    torch.nn.init.normal_(model.cumulative.weight, std=2.0)  # coverage and energies that matter
    torch.nn.init.normal_(model.energy.weight, std=2.0)
    batch, matrix = a_batch(), losses.drawn_as_matrix(VOCABULARY)
    pack = losses.packing_of(batch)
    assert len(set(pack.counts)) > 1  # rows do end at different steps
    if drop_attention:
        padded = batch.targets.shape[1]
        draws = torch.rand(len(batch.image), padded, batch.symbols[0, 0].numel())
        packed = draws[pack.row, pack.step]
        steps = iter(range(padded))
        monkeypatch.setattr(torch, "rand", lambda *shape, **more: packed)
        monkeypatch.setattr(torch, "rand_like", lambda alpha: draws[:, next(steps)])

    def total(found: losses.Losses) -> Tensor:
        return found.label + 0.5 * found.attention + 0.25 * found.symbols

    expected = reference_losses.compute(model, head, batch, matrix, 0.1)
    total(expected).backward()
    wanted = gradients(model, head)
    found = losses.Objective(model, head, matrix, 0.1)(batch, pack)
    total(found).backward()
    for name in losses.Losses._fields:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    for name, gradient in gradients(model, head).items():
        scale = float(wanted[name].abs().max())
        torch.testing.assert_close(gradient, wanted[name], atol=1e-5 * scale, rtol=1e-3, msg=name)


@pytest.mark.parametrize("reach", [1, 3])
def test_the_written_gradient_is_the_numerical_one(reach: int) -> None:
    torch.manual_seed(0)
    rows, length, d, a, u = 3, 4, 3, 2, 2
    pack = unroll.packing([3, 2, 1], torch.device("cpu"))
    count, first = len(pack.row), pack.counts[0]
    outside = torch.zeros(rows, length, dtype=torch.bool)
    outside[1, 3] = outside[2, 2:] = True

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    places = draw(length, d).detach()
    kept = torch.tensor(np.random.default_rng(0).random((count, length)) > 0.3)
    free = [
        draw(rows, length, d), draw(rows, length, a), draw(rows, u), draw(rows, u),
        draw(count - first, 4 * u), draw(4 * u, d + u), draw(a, u), draw(reach**2, a),
        draw(a),
    ]  # fmt: skip

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        features, keys, *more = values
        found: tuple[Tensor, ...] = unroll._Unroll.apply(
            features, places, keys, outside, *more, kept, pack, (2, 2)
        )
        return found

    assert torch.autograd.gradcheck(run, free)


def test_rows_must_be_sorted() -> None:
    with pytest.raises(ValueError, match="longest target first"):
        unroll.packing([2, 3], torch.device("cpu"))


def test_a_batch_without_rows_has_no_loss_and_zero_gradients() -> None:
    model, head = Recogniser(NETWORK).eval(), losses.SymbolHead(16, len(VOCABULARY))
    empty = Batch(*(part[:0] for part in a_batch()))
    found = losses.Objective(model, head, losses.drawn_as_matrix(VOCABULARY), 0.1)(
        empty, losses.packing_of(empty)
    )
    assert [value.item() for value in found] == [0.0] * 5
    (found.label + found.attention + found.symbols).backward()
    assert not any(gradient.any() for gradient in gradients(model, head).values())


def test_attention_loss_knows_where_to_look() -> None:
    batch = a_batch(4)
    matrix = losses.drawn_as_matrix(VOCABULARY)
    pack = losses.packing_of(batch)
    places = torch.einsum("btv,bvhw->bthw", matrix[batch.targets], batch.symbols.float())

    def loss(places: Tensor) -> float:
        attention = places / places.sum((2, 3), keepdim=True).clamp_min(1)
        packed = attention.flatten(2)[pack.row, pack.step]
        total, count = losses.attention_sum(packed, pack, batch.targets, batch.symbols, matrix)
        return float(total / count)

    assert loss(places) < 0.01
    assert loss((places == 0).float()) > 5.0


def test_fraction_bars_are_read_from_minus_ink() -> None:
    vocabulary = Vocabulary(["-", "\\frac", "{", "x"])
    matrix = losses.drawn_as_matrix(vocabulary)
    minus, fraction, brace, x = vocabulary.encode(["-", "\\frac", "{", "x"])
    assert matrix[fraction].nonzero().flatten().tolist() == [minus]
    assert matrix[x].nonzero().flatten().tolist() == [x]
    assert not matrix[brace].any()
    assert not matrix[PAD_ID].any()
