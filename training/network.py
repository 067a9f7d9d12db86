"""The recogniser as a PyTorch module: ResNet-18 encoder, attention LSTM decoder.

The decoder follows "Improving Attention-Based Handwritten Mathematical Expression
Recognition with Scale Augmentation and Drop Attention" (Li et al., 2020)::

    e_t     = w_e^T tanh(W_f f + W_q q + W_h h_t + W_s s_t)     attention energies, one a position
    alpha_t = softmax(e_t)                                      over the L = h x w positions
    c_t     = sum_l alpha_tl f_l                                what is read
    p(y_t)  = g(c_t, h_t)
    s_{t+1} = s_t + alpha_t                                     cumulative attention
    c'_t    = sum_l alpha_tl (f_l + q_l)                        what is read, and where
    h_{t+1} = RNN([E(y_t), c'_t], h_t)                          until [EOS]

``step`` is written so that one call takes the *previous* token: it first advances the
recurrent state with it (not for ``<sos>``: the first prediction reads the initial state),
then attends and predicts. So training, greedy decoding, k steps a call and beam search
share one function.

Shapes: B images, H x W pixels, h x w feature positions (h = H / stride), D feature
channels, A attention units, U hidden units, V vocabulary size.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hmer.vocab import SOS_ID
from training.encoder import Encoder
from training.encoder import ResidualBlock as ResidualBlock
from training.encoder import position_embedding as position_embedding
from training.encoder import size_mask as size_mask


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the network; travels in ``bundle.json``.

    ``widths`` are the channels of the four ResNet stages, ``strides`` the stride of the
    stem's convolution, of its max pooling and of the stages two to four; their product
    is the encoder's stride. ``reach`` is the side of the square of cumulative attention around
    a position that its energy sees: 1 is the paper's s_t, a larger odd number the
    coverage of Zhang et al., "Watch, attend and parse" (2017).
    """

    vocabulary_size: int
    widths: tuple[int, int, int, int] = (32, 64, 128, 256)
    strides: tuple[int, int, int, int, int] = (2, 1, 2, 2, 1)
    attention: int = 128
    hidden: int = 256
    embedding: int = 128
    dropout: float = 0.2
    drop_attention: float = 0.0
    reach: int = 1

    @property
    def stride(self) -> int:
        """Pixels between two neighbouring feature positions, along both axes."""
        return math.prod(self.strides)

    @property
    def features(self) -> int:
        """D, the channels of a feature position."""
        return self.widths[-1]

    def to_dict(self) -> dict[str, object]:
        """A JSON-ready dictionary; ``from_dict`` reads it back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> NetworkConfig:
        """Rebuild a configuration from ``to_dict``'s result."""
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)  # type: ignore[arg-type]


class Encoded(NamedTuple):
    """What the decoder needs of an image; padded positions hold zeros.

    ``values`` float32 (B, h, w, 2D): features f, then features with position f + q.
    ``keys`` float32 (B, h, w, A): W_f f + W_q q. ``size`` int32 (B, 2): true h and w.
    ``state`` float32 (B, 2U + D): initial hidden state, cell state, c'.
    """

    values: Tensor
    keys: Tensor
    size: Tensor
    state: Tensor


class Memory(NamedTuple):
    """``Encoded`` in parts: f (B, h, w, D), q (h, w, D), which positions are inside (B, h, w)."""

    features: Tensor
    position: Tensor
    inside: Tensor
    keys: Tensor
    state: Tensor


class Glimpse(NamedTuple):
    """What one step reads: ``context`` c (B, D), ``hidden`` h (B, U), and the state after it."""

    context: Tensor
    hidden: Tensor
    attention: Tensor
    state: Tensor
    coverage: Tensor


class Step(NamedTuple):
    """One decoding step: ``logits`` (B, V), ``attention`` (B, h, w) and the state after it."""

    logits: Tensor
    attention: Tensor
    state: Tensor
    coverage: Tensor


class Recogniser(nn.Module):
    """Encoder and decoder; ``encode`` once an image, ``step`` once a token."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        d, a, u = config.features, config.attention, config.hidden
        self.encoder = Encoder(config.widths, config.strides)
        self.initial = nn.Linear(d, 2 * u)
        self.key_feature = nn.Linear(d, a)  # W_f, and the one bias of the sum
        self.key_position = nn.Linear(d, a, bias=False)  # W_q
        self.query = nn.Linear(u, a, bias=False)  # W_h
        self.cumulative: nn.Linear | nn.Conv2d  # W_s
        if config.reach == 1:
            self.cumulative = nn.Linear(1, a, bias=False)
        else:
            around = config.reach // 2
            self.cumulative = nn.Conv2d(1, a, config.reach, padding=around, bias=False)
        self.energy = nn.Linear(a, 1, bias=False)  # w_e
        self.embedding = nn.Embedding(config.vocabulary_size, config.embedding)
        self.cell = nn.LSTMCell(config.embedding + d, u)
        self.mix = nn.Linear(d + u, u)
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(u, config.vocabulary_size)

    def encode(self, image: Tensor, size: Tensor) -> Encoded:
        """``image`` uint8 (B, 1, H, W), ink bright; ``size`` int32 (B, 2) true height, width."""
        features = self.encoder(image.float() * (1.0 / 255.0), size)
        return self.encoded(features, size)

    def encoded(self, features: Tensor, size: Tensor) -> Encoded:
        """Keys, values and the initial state of encoder ``features`` (B, D, h, w)."""
        f, q, mask, keys, state = self.memory(features, size)
        values = torch.cat([f, (f + q) * mask[..., None].to(f.dtype)], dim=-1)
        return Encoded(values, keys, self.feature_size(size), state)

    def memory(self, features: Tensor, size: Tensor) -> Memory:
        """What ``encoded`` is made of; training reads it directly."""
        stride, d = self.config.stride, self.config.features
        f = features.permute(0, 2, 3, 1).float()
        inside = size_mask(size, f.shape[1], f.shape[2], stride)
        mask = inside[..., None].to(f.dtype)
        q = position_embedding(f.shape[1], f.shape[2], d, f.device)
        mean = f.sum((1, 2)) / mask.sum((1, 2))
        state = torch.tanh(self.initial(mean))
        state = torch.cat([state, torch.zeros_like(mean)], dim=-1)
        keys = (self.key_feature(f) + self.key_position(q)) * mask
        return Memory(f, q, inside, keys, state)

    def feature_size(self, size: Tensor) -> Tensor:
        """True size in feature positions, int32 (B, 2); sizes are multiples of the stride."""
        return torch.div(size, self.config.stride, rounding_mode="floor").to(torch.int32)

    def begin(self, encoded: Encoded) -> Tensor:
        """The cumulative attention before the first step: zeros (B, h, w)."""
        return torch.zeros_like(encoded.keys[..., 0])

    def step(self, encoded: Encoded, token: Tensor, state: Tensor, coverage: Tensor) -> Step:
        """One step for ``token`` int (B,), the previous token (``<sos>`` before the first).

        ``state`` float32 (B, 2U + D), ``coverage`` float32 (B, h, w).
        """
        seen = self.attend(encoded, token, state, coverage)
        logits = self.predict(seen.context, seen.hidden)
        return Step(logits, seen.attention, seen.state, seen.coverage)

    def predict(self, context: Tensor, hidden: Tensor) -> Tensor:
        """g(c, h): logits (..., V) of contexts (..., D) and hidden states (..., U)."""
        mixed = torch.tanh(self.mix(torch.cat([context, hidden], dim=-1)))
        logits: Tensor = self.output(self.dropout(mixed))
        return logits

    def attend(self, encoded: Encoded, token: Tensor, state: Tensor, coverage: Tensor) -> Glimpse:
        """``step`` without its prediction, which training makes for all steps at once."""
        d, u = self.config.features, self.config.hidden
        hidden, cell, located = torch.split(state, [u, u, d], dim=-1)
        new_hidden, new_cell = self.cell(
            torch.cat([self.embedding(token), located], dim=-1), (hidden, cell)
        )
        first = (token == SOS_ID)[:, None]
        hidden = torch.where(first, hidden, new_hidden)
        cell = torch.where(first, cell, new_cell)

        energy = torch.tanh(
            encoded.keys + self.query(hidden)[:, None, None, :] + self.seen(coverage)
        )
        energy = self.energy(energy)[..., 0]
        mask = size_mask(encoded.size, energy.shape[1], energy.shape[2])
        energy = energy.masked_fill(~mask, -1e9).flatten(1)
        alpha = torch.softmax(energy.float(), dim=-1)
        read = self.drop(alpha)
        context = torch.bmm(read[:, None, :], encoded.values.flatten(1, 2))[:, 0]
        alpha = alpha.view_as(coverage)
        state = torch.cat([hidden, cell, context[:, d:]], dim=-1)
        return Glimpse(context[:, :d], hidden, alpha, state, coverage + alpha)

    def seen(self, coverage: Tensor) -> Tensor:
        """W_s s: what the cumulative attention (B, h, w) adds to each position, (B, h, w, A)."""
        if self.config.reach == 1:
            return coverage[..., None] * self.cumulative.weight[:, 0]
        seen: Tensor = self.cumulative(coverage[:, None])
        return seen.permute(0, 2, 3, 1)

    def drop(self, alpha: Tensor) -> Tensor:
        """Drop attention (training only): some positions' weights suppressed, renormalised.

        A position is dropped with probability ``drop_attention``, so that the decoder
        does not lean on one imprecise peak; the rest is scaled back to a sum of one.
        """
        rate = self.config.drop_attention
        if not self.training or rate <= 0.0:
            return alpha
        kept = alpha * (torch.rand_like(alpha) >= rate)
        return kept / kept.sum(-1, keepdim=True).clamp_min(1e-6)
