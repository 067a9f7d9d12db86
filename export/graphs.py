"""What is exported: the two halves of a ``Recogniser`` as modules of plain tensors.

The served graphs differ from the network in training only in form: BatchNorm is folded
into the convolutions, and ``DecoderStep`` feeds k predictions back to itself.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hmer.vocab import EOS_ID
from training.encoder import ResidualBlock
from training.network import Encoded, Recogniser


class EncoderGraph(nn.Module):
    """``encoder`` of ``hmer.contract``: image -> values, keys, feature_size, state."""

    def __init__(self, model: Recogniser) -> None:
        """``model`` in evaluation mode, its BatchNorm folded."""
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``image`` uint8 (B, 1, H, W), ``size`` int32 (B, 2); see ``Recogniser.encode``."""
        encoded = self.model.encode(image, size)
        return encoded.values, encoded.keys, encoded.size, encoded.state


class DecoderStepGraph(nn.Module):
    """``decoder_step`` of ``hmer.contract``: the next k tokens of every row, greedily.

    Once a row's token is ``<eos>``, it repeats ``<eos>`` with score 0 and its state and
    coverage stand still, so a row's k tokens do not depend on where a call begins.
    """

    def __init__(self, model: Recogniser, k: int) -> None:
        """``model`` in evaluation mode."""
        super().__init__()
        self.model = model
        self.k = k

    def forward(
        self,
        values: Tensor,
        keys: Tensor,
        feature_size: Tensor,
        token: Tensor,
        state: Tensor,
        coverage: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``token`` int32 (B, 1), the previous one; the rest as ``Recogniser.step`` takes it.

        Returns ``tokens`` int32 (B, k), ``scores`` float32 (B, k), and the state and the
        coverage after them.
        """
        encoded = Encoded(values, keys, feature_size, state)
        tokens, scores = [], []
        for _ in range(self.k):
            ended = token == EOS_ID
            step = self.model.step(encoded, token[:, 0], state, coverage)
            best = step.logits.argmax(dim=-1, keepdim=True).to(torch.int32)
            score = torch.log_softmax(step.logits, dim=-1).amax(dim=-1, keepdim=True)
            token = torch.where(ended, EOS_ID, best)
            tokens.append(token)
            scores.append(torch.where(ended, 0.0, score))
            state = torch.where(ended, state, step.state)
            coverage = torch.where(ended[:, :, None], coverage, step.coverage)
        return torch.cat(tokens, dim=1), torch.cat(scores, dim=1), state, coverage


def fold_batch_norm(model: Recogniser) -> tuple[Recogniser, dict[str, Tensor]]:
    """A copy of ``model`` whose convolutions contain their BatchNorm.

    Also returns, for every folded convolution, the factor of each output channel
    (float32 (C,)) under the name of its weight: dividing by it gives the weight back.
    """
    folded = copy.deepcopy(model).eval()
    scales: dict[str, Tensor] = {}

    def fold(owner: nn.Module, prefix: str, conv_name: str, norm_name: str) -> None:
        conv, norm = getattr(owner, conv_name), getattr(owner, norm_name)
        scales[f"{prefix}{conv_name}.weight"] = (
            norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        ).detach()
        setattr(owner, conv_name, fuse_conv_bn_eval(conv, norm))
        setattr(owner, norm_name, nn.Identity())

    fold(folded.encoder, "encoder.", "stem", "stem_bn")
    for name, module in folded.named_modules():
        if isinstance(module, ResidualBlock):
            fold(module, f"{name}.", "conv1", "bn1")
            fold(module, f"{name}.", "conv2", "bn2")
            if isinstance(module.shortcut, nn.Sequential):
                fold(module.shortcut, f"{name}.shortcut.", "0", "1")
    return folded, scales
