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
from torch.nn import functional as F

from hmer.vocab import SOS_ID


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the network; travels in ``bundle.json``.

    ``widths`` are the channels of the four ResNet stages, ``strides`` the stride of the
    stem's convolution, of its max pooling and of the stages two to four; their product
    is the encoder's stride.
    """

    vocabulary_size: int
    widths: tuple[int, int, int, int] = (32, 64, 128, 256)
    strides: tuple[int, int, int, int, int] = (2, 1, 2, 2, 1)
    attention: int = 128
    hidden: int = 256
    embedding: int = 128
    dropout: float = 0.2
    drop_attention: float = 0.0

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


def size_mask(size: Tensor, height: int, width: int, stride: int = 1) -> Tensor:
    """Which positions lie inside the true size: bool (B, height, width).

    ``size`` (B, 2) is in units of ``1 / stride`` positions. The comparison multiplies
    instead of dividing, because an integer division becomes four ONNX nodes.
    """
    rows = torch.arange(height, device=size.device) * stride < size[:, :1]
    columns = torch.arange(width, device=size.device) * stride < size[:, 1:]
    return rows[:, :, None] & columns[:, None, :]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., 2016), zero outside the mask."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``x`` (B, C, h, w) and the mask (B, 1, h', w') of the *output's* positions."""
        y = F.relu(self.bn1(self.conv1(x))) * mask
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x)) * mask


class Encoder(nn.Module):
    """ResNet-18 whose padded positions stay zero, so that padding never changes a feature.

    Every convolution reads zeros outside the true size, as it does beyond the border of
    an unpadded image; a batch of images of several sizes gives what each gives alone.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        widths, strides = config.widths, config.strides
        self.strides = strides
        self.stem = nn.Conv2d(1, widths[0], 7 if strides[0] > 1 else 3, strides[0],
                              3 if strides[0] > 1 else 1, bias=False)  # fmt: skip
        self.stem_bn = nn.BatchNorm2d(widths[0])
        stages, previous = [], widths[0]
        for width, stride in zip(widths, (1, *strides[2:]), strict=True):
            stages.append(
                nn.ModuleList(
                    [ResidualBlock(previous, width, stride), ResidualBlock(width, width, 1)]
                )
            )
            previous = width
        self.stages = nn.ModuleList(stages)

    def forward(self, image: Tensor, size: Tensor) -> Tensor:
        """Features (B, D, h, w) of ``image`` float (B, 1, H, W) in [0, 1], zero outside ``size``.

        ``size`` int32 (B, 2) holds the true height and width in pixels, multiples of
        the stride.
        """
        stride = self.strides[0]
        x = self.stem_bn(self.stem(image))
        mask = self._mask(x, size, stride)
        x = F.relu(x) * mask
        if self.strides[1] > 1:
            x = F.max_pool2d(x, self.strides[1])  # non-negative input: zeros never win over ink
            stride *= self.strides[1]
            mask = self._mask(x, size, stride)
        for stage, step in zip(self.stages, (1, *self.strides[2:]), strict=True):
            if step > 1:
                stride *= step
            blocks: list[ResidualBlock] = list(stage.children())  # type: ignore[arg-type]
            for index, block in enumerate(blocks):
                if index == 0 and step > 1:
                    mask = size_mask(size, -(-x.shape[2] // step), -(-x.shape[3] // step), stride)
                    mask = mask[:, None].to(x.dtype)
                x = block(x, mask)
        features: Tensor = x
        return features

    @staticmethod
    def _mask(x: Tensor, size: Tensor, stride: int) -> Tensor:
        return size_mask(size, x.shape[2], x.shape[3], stride)[:, None].to(x.dtype)


def position_embedding(
    rows: int, columns: int, channels: int, device: torch.device | None = None
) -> Tensor:
    """2-D sinusoidal embedding of absolute positions, float32 (rows, columns, channels).

    The first half of the channels encodes the row, the second the column, each as in
    "Attention Is All You Need" (sine, then cosine, wavelengths 2 pi to 10,000 * 2 pi).
    """
    quarter = channels // 4
    frequency = torch.exp(
        torch.arange(quarter, device=device, dtype=torch.float32) * (-math.log(10000.0) / quarter)
    )
    y = torch.arange(rows, device=device, dtype=torch.float32)[:, None] * frequency
    x = torch.arange(columns, device=device, dtype=torch.float32)[:, None] * frequency
    rows_part = torch.cat([y.sin(), y.cos()], dim=-1)[:, None, :].expand(rows, columns, -1)
    columns_part = torch.cat([x.sin(), x.cos()], dim=-1)[None, :, :].expand(rows, columns, -1)
    return torch.cat([rows_part, columns_part], dim=-1)


class Recogniser(nn.Module):
    """Encoder and decoder; ``encode`` once an image, ``step`` once a token."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        d, a, u = config.features, config.attention, config.hidden
        self.encoder = Encoder(config)
        self.initial = nn.Linear(d, 2 * u)
        self.key_feature = nn.Linear(d, a)  # W_f, and the one bias of the sum
        self.key_position = nn.Linear(d, a, bias=False)  # W_q
        self.query = nn.Linear(u, a, bias=False)  # W_h
        self.cumulative = nn.Linear(1, a, bias=False)  # W_s
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
        stride, d = self.config.stride, self.config.features
        f = features.permute(0, 2, 3, 1).float()
        mask = size_mask(size, f.shape[1], f.shape[2], stride)[..., None].to(f.dtype)
        q = position_embedding(f.shape[1], f.shape[2], d, f.device)
        mean = f.sum((1, 2)) / mask.sum((1, 2))
        state = torch.tanh(self.initial(mean))
        state = torch.cat([state, torch.zeros_like(mean)], dim=-1)
        keys = (self.key_feature(f) + self.key_position(q)) * mask
        values = torch.cat([f, (f + q) * mask], dim=-1)
        return Encoded(values, keys, self.feature_size(size), state)

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
            encoded.keys
            + self.query(hidden)[:, None, None, :]
            + coverage[..., None] * self.cumulative.weight[:, 0]
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
