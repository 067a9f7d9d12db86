"""The decoder over all steps of a batch at once, for training: its loop and its gradient.

``Recogniser.attend`` is one step and autograd could differentiate a loop of them; but then
every step adds a gradient as large as all features and all keys. Here the loop is one autograd
function whose backward pass is written out: what a step contributes to the weights and to the
features is summed by one product over all steps, and rows that have ended leave the loop.
The equations are those of ``training.network``; a test compares values and gradients with them.

Rows are sorted, longest target first, so that the rows that step ``t`` still works on are the
first ``counts[t]``. Results are packed: all rows of step 0, then those of step 1, and so on:
N = sum(counts). Shapes: B rows, L = h * w positions, D features, A attention units, U hidden.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from training.network import Memory, Recogniser

MASKED = -1e9


class Unrolled(NamedTuple):
    """Packed results of all steps: ``context`` (N, D), ``hidden`` (N, U), ``attention`` (N, L)."""

    context: Tensor
    hidden: Tensor
    attention: Tensor


class Packing(NamedTuple):
    """Where the packed entries come from: int64 (N,) ``row`` and ``step``; rows of each step."""

    row: Tensor
    step: Tensor
    counts: list[int]


def packing(lengths: Sequence[int], device: torch.device) -> Packing:
    """The packing of rows with these target lengths, which must not rise from row to row."""
    if any(a < b for a, b in itertools.pairwise(lengths)):
        raise ValueError("the rows of a batch must be sorted, longest target first")
    longest = max(lengths, default=0)
    counts = [sum(length > t for length in lengths) for t in range(longest)] or [0]
    row = torch.cat([torch.arange(n) for n in counts])
    step = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return Packing(row.to(device, non_blocking=True), step.to(device, non_blocking=True), counts)


def unroll(model: Recogniser, memory: Memory, targets: Tensor, pack: Packing) -> Unrolled:
    """Feed the ``targets`` int64 (B, T) to the decoder, step by step; see the module's text."""
    features, keys = memory.features.flatten(1, 2), memory.keys.flatten(1, 2)
    places = memory.position.flatten(0, 1)
    outside = ~memory.inside.flatten(1)
    cell, d = model.cell, model.config.features
    hidden, start = torch.split(memory.state[:, :-d], model.config.hidden, dim=-1)
    # What the recurrent cell gets from the tokens does not depend on the loop.
    width = model.config.embedding
    first = pack.counts[0]
    previous = targets[pack.row[first:], pack.step[first:] - 1]
    bias = cell.bias_ih + cell.bias_hh
    tokens = F.linear(model.embedding(previous), cell.weight_ih[:, :width], bias)
    recurrent = torch.cat([cell.weight_ih[:, width:], cell.weight_hh], dim=1)
    rate = model.config.drop_attention if model.training else 0.0
    kept = None
    if rate > 0.0:
        kept = torch.rand(len(pack.row), keys.shape[1], device=keys.device) >= rate
    found: tuple[Tensor, Tensor, Tensor] = _Unroll.apply(  # type: ignore[no-untyped-call]
        features, places, keys, outside, hidden, start, tokens, recurrent,
        model.query.weight, model.cumulative.weight.flatten(1).t(), model.energy.weight[0],
        kept, pack, memory.inside.shape[1:],
    )  # fmt: skip
    return Unrolled(*found)


class _Unroll(torch.autograd.Function):
    """``unroll`` proper: tensors in, packed tensors out."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,  # (B, L, D) f
        places: Tensor,  # (L, D) q, a constant
        keys: Tensor,  # (B, L, A) W_f f + W_q q
        outside: Tensor,  # bool (B, L): padding
        hidden: Tensor,  # (B, U)
        cell: Tensor,  # (B, U)
        tokens: Tensor,  # (N - counts[0], 4U): the tokens' part of the gates
        recurrent: Tensor,  # (4U, D + U): the gates' weights of c' and h
        w_h: Tensor,  # (A, U)
        w_s: Tensor,  # (R, A): of the R positions of cumulative attention around each position
        w_e: Tensor,  # (A,)
        kept: Tensor | None,  # bool (N, L): not suppressed by drop attention
        pack: Packing,
        grid: tuple[int, int],  # h, w
    ) -> tuple[Tensor, Tensor, Tensor]:
        counts, around = pack.counts, _Around(grid, w_s.shape[0])
        total, first = sum(counts), counts[0]
        length, d, a, u = keys.shape[1], features.shape[2], keys.shape[2], hidden.shape[1]
        new = keys.new_empty
        contexts, hiddens, cells = new(total, d), new(total, u), new(total, u)
        alphas, coverages, hyperbolic = (
            new(total, length),
            new(total, length),
            new(total, length, a),
        )
        gates, inputs = new(total - first, 4 * u), new(total - first, d + u)
        coverage = torch.zeros_like(keys[..., 0])
        located = features.new_zeros(first, d)
        start = 0
        for t, n in enumerate(counts):
            now = slice(start, start + n)
            if t > 0:  # the first prediction reads the initial state
                later = slice(start - first, start - first + n)
                torch.cat([located[:n], hidden[:n]], dim=1, out=inputs[later])
                torch.addmm(tokens[later], inputs[later], recurrent.t(), out=gates[later])
                i, f, g, o = _activate(gates[later])
                cell = torch.addcmul(f * cell[:n], i, g, out=cells[now])
                hidden = torch.mul(o, torch.tanh(cell), out=hiddens[now])
            else:
                cells[now], hiddens[now] = cell, hidden
            alpha = _attend(
                keys[:n], hidden[:n] @ w_h.t(), around.gather(coverage[:n]), w_s, w_e,
                outside[:n], hyperbolic[now],
            )  # fmt: skip
            alphas[now], coverages[now] = alpha, coverage[:n]
            coverage[:n] += alpha
            read = alpha if kept is None else _drop(alpha, kept[now])
            torch.bmm(read[:, None], features[:n], out=contexts[now][:, None])
            located = torch.addmm(contexts[now], read, places)  # alpha (f + q)
            start += n
        ctx.pack, ctx.first, ctx.around = pack, first, around
        ctx.save_for_backward(
            features, places, keys, recurrent, w_h, w_s, w_e, kept,
            hiddens, cells, gates, inputs, alphas, coverages, hyperbolic,
        )  # fmt: skip
        return contexts, hiddens, alphas

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        d_context, d_hidden, d_attention = outer
        (features, places, keys, recurrent, w_h, w_s, w_e, kept, hiddens, cells, gates, inputs,
         alphas, coverages, hyperbolic) = ctx.saved_tensors  # fmt: skip
        counts, first, u = ctx.pack.counts, ctx.first, hiddens.shape[1]
        around: _Around = ctx.around
        new, zeros = keys.new_empty, keys.new_zeros
        rows, length, a = keys.shape
        d_read = new(len(alphas), features.shape[2])  # of the contexts, c and c' together
        d_energy, d_query = torch.empty_like(alphas), new(len(alphas), a)
        d_gates = torch.empty_like(gates)
        d_state, d_cell = zeros(rows, u), zeros(rows, u)
        d_located, d_coverage = zeros(rows, features.shape[2]), zeros(rows, length)
        d_keys, buffer = torch.zeros_like(keys), torch.empty_like(keys)
        reach = len(w_s)
        d_ws, back = zeros(reach, a), (w_e * w_s).flip(0).t().contiguous()
        sums = torch.ones(rows, 1 + reach, length, dtype=keys.dtype, device=keys.device)
        stop = len(alphas)
        for t in range(len(counts) - 1, -1, -1):
            n = counts[t]
            now = slice(stop - n, stop)
            alpha = alphas[now]
            torch.add(d_context[now], d_located[:n], out=d_read[now])
            d_alpha = torch.bmm(features[:n], d_read[now][..., None])[..., 0]
            d_alpha.addmm_(d_located[:n], places.t())
            if kept is not None:
                d_alpha = _drop_backward(d_alpha, alpha, kept[now])
            d_alpha += d_attention[now]
            d_alpha += d_coverage[:n]
            energy = torch._softmax_backward_data(d_alpha, alpha, -1, alpha.dtype)
            d_energy[now] = energy
            # z is the gradient of tanh's argument but for the factor w_e, which is put to the
            # sums of z: over positions (query), weighted by coverage (W_s), over steps (keys).
            z = buffer[:n]
            torch.ops.aten.tanh_backward.grad_input(
                energy[..., None].expand_as(z), hyperbolic[now], grad_input=z
            )
            d_keys[:n] += z
            d_coverage[:n] += around.spread((z.view(-1, a) @ back).view(n, length, reach))
            sums[:n, 1:] = around.gather(coverages[now]).transpose(1, 2)
            both = torch.bmm(sums[:n], z)
            torch.mul(both[:, 0], w_e, out=d_query[now])
            d_ws += both[:, 1:].sum(0)
            dh = torch.addmm(d_hidden[now], d_query[now], w_h).add_(d_state[:n])
            if t > 0:
                later = slice(stop - n - first, stop - first)
                before = cells[stop - n - counts[t - 1] :][:n]
                _gates_backward(gates[later], cells[now], before, dh, d_cell[:n], d_gates[later])
                d_inputs = d_gates[later] @ recurrent
                d_located[:n], d_state[:n] = d_inputs[:, :-u], d_inputs[:, -u:]
            else:
                d_state[:n] = dh
            stop -= n
        read = alphas if kept is None else _drop(alphas, kept)
        d_features = torch.bmm(
            _padded(read, ctx.pack, rows).transpose(1, 2), _padded(d_read, ctx.pack, rows)
        )
        d_we = torch.mv(hyperbolic.view(-1, a).t(), d_energy.flatten())
        return (
            d_features, None, d_keys.mul_(w_e), None, d_state, d_cell, d_gates,
            d_gates.t() @ inputs, d_query.t() @ hiddens, d_ws * w_e, d_we, None, None, None,
        )  # fmt: skip


def _activate(gates: Tensor) -> tuple[Tensor, ...]:
    """In place: sums of the LSTM's gates (n, 4U) to input, forget, cell and output gate."""
    parts = gates.chunk(4, dim=1)
    gates[:, : 2 * parts[0].shape[1]].sigmoid_()
    parts[2].tanh_()
    parts[3].sigmoid_()
    return parts


def _gates_backward(
    gates: Tensor, cell: Tensor, before: Tensor, d_hidden: Tensor, d_cell: Tensor, out: Tensor
) -> None:
    """Gradient of the gates' sums into ``out``; ``d_cell`` becomes that of the cell ``before``."""
    i, f, g, o = gates.chunk(4, dim=1)
    new = torch.tanh(cell)
    total = d_cell + torch.ops.aten.tanh_backward(d_hidden * o, new)
    parts = out.chunk(4, dim=1)
    for part, gradient, gate in zip(
        parts, (total * g, total * before, total * i, d_hidden * new), (i, f, g, o), strict=True
    ):
        backward = torch.ops.aten.tanh_backward if gate is g else torch.ops.aten.sigmoid_backward
        part.copy_(backward(gradient, gate))
    torch.mul(total, f, out=d_cell)


class _Around:
    """The square of cumulative attention around every position, zero beyond the grid.

    By views of a padded copy: ``F.unfold`` launches a kernel for every row on a GPU.
    """

    def __init__(self, grid: tuple[int, int], reach: int) -> None:
        """``reach`` positions in the square, on an (h, w) ``grid``."""
        self.grid, self.side = grid, math.isqrt(reach)

    def gather(self, coverage: Tensor) -> Tensor:
        """(n, L) to (n, L, R)."""
        n, k = len(coverage), self.side
        if k == 1:
            return coverage[..., None]
        maps = F.pad(coverage.view(n, *self.grid), 4 * (k // 2,))
        return maps.unfold(1, k, 1).unfold(2, k, 1).reshape(n, coverage.shape[1], k * k)

    def spread(self, flipped: Tensor) -> Tensor:
        """The adjoint of ``gather`` for gradients: (n, L, R), R in reverse order, to (n, L)."""
        n, k = len(flipped), self.side
        if k == 1:
            return flipped[..., 0]
        (h, w), border = self.grid, k // 2
        maps = F.pad(flipped.view(n, h, w, k * k), (0, 0, *4 * (border,)))
        image, row, column, _ = maps.stride()
        # Entry (i, j) of the square at (y, x) comes from the position (y + i, x + j).
        strides = (image, row, column, row + k, column + 1)
        return maps.as_strided((n, h, w, k, k), strides).sum((3, 4)).flatten(1)


def _attend(
    keys: Tensor, query: Tensor, around: Tensor, w_s: Tensor, w_e: Tensor, outside: Tensor,
    out: Tensor,
) -> Tensor:  # fmt: skip
    """Attention (n, L); ``out`` (n, L, A) keeps the hyperbolic tangents for the way back."""
    a = out.shape[2]
    torch.add(keys, query[:, None], out=out)
    if len(w_s) == 1:
        out.addcmul_(around, w_s)
    else:
        out.view(-1, a).addmm_(around.view(-1, len(w_s)), w_s)
    energy = torch.mv(out.tanh_().view(-1, a), w_e).view_as(outside)
    return torch.softmax(energy.masked_fill_(outside, MASKED), dim=-1)


def _drop(alpha: Tensor, kept: Tensor) -> Tensor:
    """``Recogniser.drop`` with the positions already drawn."""
    some = alpha * kept
    return some / some.sum(-1, keepdim=True).clamp_min(1e-6)


def _drop_backward(gradient: Tensor, alpha: Tensor, kept: Tensor) -> Tensor:
    some = alpha * kept
    total = some.sum(-1, keepdim=True)
    scale = total.clamp_min(1e-6)
    inner = (gradient * some).sum(-1, keepdim=True) / scale
    return (gradient - torch.where(total < 1e-6, 0.0, inner)) / scale * kept


def _padded(packed: Tensor, pack: Packing, rows: int) -> Tensor:
    """(N, K) to (B, T, K), zeros after a row's end."""
    result = packed.new_zeros(rows, len(pack.counts), packed.shape[1])
    result[pack.row, pack.step] = packed
    return result
