"""A network that computes in float16 or bfloat16, with the islands that need float32.

Precision is written into the network before it is traced, cast by cast, so that the graph is
strongly typed and no runtime or builder decides anything. What stays float32, and why:

=====================  ============================================================
tensors of the border  the contract is one for all precisions
softmax, log-softmax   sums of exponentials; ties would be decided by rounding
output layer           in bfloat16 a logit of 20 moves in steps of 0.125, and argmax
                       would pick the first of many equals; it is 0.1 % of the work
coverage, cell state   they accumulate over all steps of a formula
initial state          a mean over thousands of positions
positions              angles, exact once and added once
=====================  ============================================================

BatchNorm must be folded before (``fold_batch_norm``): folding a rounded weight would round it
twice, and bfloat16 BatchNorm makes an invalid graph.
"""

from __future__ import annotations

import copy
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hmer.errors import BadParameter
from hmer.vocab import SOS_ID
from training.encoder import position_embedding, size_mask
from training.network import Encoded, Glimpse, Memory, Recogniser

Precision = Literal["fp32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def check_precision(precision: str) -> Precision:
    """``precision`` if it is one. Raises ``BadParameter``."""
    for known in PRECISIONS:
        if precision == known:
            return known
    raise BadParameter(
        f"There is no precision {precision!r}. Choose one of {', '.join(PRECISIONS)}."
    )


def lower(model: Recogniser, precision: str) -> Recogniser:
    """A copy of ``model`` that computes in ``precision``; for fp32 and int8 a plain copy.

    int8 is made of the traced graph (``export.quantise``). ``model`` is in evaluation mode.
    """
    if check_precision(precision) not in HALVES:
        return copy.deepcopy(model)
    lowered = copy.deepcopy(model)
    lowered.__class__ = HalfRecogniser
    assert isinstance(lowered, HalfRecogniser)
    lowered.cast(HALVES[precision])
    return lowered


class HalfRecogniser(Recogniser):
    """A ``Recogniser`` whose matrices and kernels are 16-bit floats; float32 in and out.

    Not for training. Made by ``lower``. Every method takes and gives the dtypes of the
    original, so the graphs of ``export.graphs`` and ``export.beam_graph`` need not know.
    """

    dtype: torch.dtype

    def cast(self, dtype: torch.dtype) -> None:
        """Round the weights of everything that is no island to ``dtype``."""
        self.dtype = dtype
        islands = {"initial", "key_position", "output"}
        for name, module in self.named_children():
            if name not in islands:
                module.to(dtype)

    def encode(self, image: Tensor, size: Tensor) -> Encoded:
        """See ``Recogniser.encode``."""
        # Grey levels are exact in both types up to 255 (float16) or 256 (bfloat16); the scale
        # rounds once.
        features = self.encoder(image.to(self.dtype) * (1.0 / 255.0), size)
        return self.encoded(features, size)

    def memory(self, features: Tensor, size: Tensor) -> Memory:
        """See ``Recogniser.memory``; ``features`` in the network's dtype, float32 out."""
        half = features.permute(0, 2, 3, 1)
        f = half.float()
        inside = size_mask(size, f.shape[1], f.shape[2], self.config.stride)
        mask = inside[..., None].float()
        q = position_embedding(f.shape[1], f.shape[2], self.config.features, f.device)
        mean = f.sum((1, 2)) / mask.sum((1, 2))
        state = torch.tanh(self.initial(mean))
        state = torch.cat([state, torch.zeros_like(mean)], dim=-1)
        keys = (self.key_feature(half).float() + self.key_position(q)) * mask
        return Memory(f, q, inside, keys, state)

    def predict(self, context: Tensor, hidden: Tensor) -> Tensor:
        """See ``Recogniser.predict``: float32 logits."""
        mixed = torch.tanh(self.mix(torch.cat([context, hidden], dim=-1).to(self.dtype)))
        logits: Tensor = self.output(mixed.float())
        return logits

    def attend(self, encoded: Encoded, token: Tensor, state: Tensor, coverage: Tensor) -> Glimpse:
        """See ``Recogniser.attend``: float32 state and coverage."""
        d, u = self.config.features, self.config.hidden
        hidden, cell, located = torch.split(state, [u, u, d], dim=-1)
        new_hidden, new_cell = self._lstm(token, located, hidden, cell)
        first = (token == SOS_ID)[:, None]
        hidden = torch.where(first, hidden, new_hidden)
        cell = torch.where(first, cell, new_cell)

        energy = torch.tanh(
            encoded.keys.to(self.dtype)
            + self.query(hidden.to(self.dtype))[:, None, None, :]
            + self.seen(coverage.to(self.dtype))
        )
        energy = self.energy(energy)[..., 0].float()
        mask = size_mask(encoded.size, energy.shape[1], energy.shape[2])
        energy = energy.masked_fill(~mask, -1e9).flatten(1)
        alpha = torch.softmax(energy, dim=-1)
        values = encoded.values.flatten(1, 2).to(self.dtype)
        context = torch.bmm(alpha[:, None, :].to(self.dtype), values)[:, 0].float()
        alpha = alpha.view_as(coverage)
        state = torch.cat([hidden, cell, context[:, d:]], dim=-1)
        return Glimpse(context[:, :d], hidden, alpha, state, coverage + alpha)

    def _lstm(
        self, token: Tensor, located: Tensor, hidden: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``nn.LSTMCell`` with its products in the network's dtype and its cell in float32."""
        step = torch.cat([self.embedding(token), located.to(self.dtype)], dim=-1)
        gates = F.linear(step, self.cell.weight_ih, self.cell.bias_ih) + F.linear(
            hidden.to(self.dtype), self.cell.weight_hh, self.cell.bias_hh
        )
        enter, forget, content, out = gates.float().chunk(4, dim=-1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(content)
        return torch.sigmoid(out) * torch.tanh(cell), cell


def module_dtypes(model: nn.Module) -> dict[str, torch.dtype]:
    """Parameter name -> dtype; for reports and tests."""
    return {name: weight.dtype for name, weight in model.named_parameters()}
