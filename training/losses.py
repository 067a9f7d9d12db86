"""What the training minimises: the label, and two helpers that teach where to look.

Attention that is learned from labels alone aligns late. The ink's segmentation says where
every symbol is, so two auxiliary terms use it; both vanish where it is unknown.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hmer.vocab import PAD_ID, SOS_ID, Vocabulary
from training.data import DRAWN_AS, STRUCTURE, Batch
from training.network import Recogniser, size_mask


class Losses(NamedTuple):
    """Scalars: cross entropy a token, attention and symbol terms, and token accuracy."""

    label: Tensor
    attention: Tensor
    symbols: Tensor
    accuracy: Tensor


class SymbolHead(nn.Module):
    """Which symbols have ink in a feature cell: one 1x1 convolution, used in training only."""

    def __init__(self, features: int, vocabulary_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(features, vocabulary_size, 1)
        nn.init.constant_(self.conv.bias, -4.0)  # type: ignore[arg-type]  # cells are mostly empty

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, V, h, w) of ``features`` (B, D, h, w)."""
        logits: Tensor = self.conv(features)
        return logits


def drawn_as_matrix(vocabulary: Vocabulary) -> Tensor:
    """float32 (V, V): row t marks the symbols whose ink a step that writes token t may read.

    Rows of structure tokens (``_ ^ { }``) and special tokens are zero: they have no ink.
    """
    matrix = torch.zeros(len(vocabulary), len(vocabulary))
    for index, token in enumerate(vocabulary.tokens[3:], 3):
        if token in STRUCTURE:
            continue
        for name in DRAWN_AS.get(token, (token,)):
            if name in vocabulary:
                matrix[index, vocabulary.encode([name])[0]] = 1.0
    return matrix


def compute(
    model: Recogniser,
    head: SymbolHead,
    batch: Batch,
    drawn_as: Tensor,
    label_smoothing: float,
) -> Losses:
    """Teacher-forced pass over a batch."""
    features = model.encoder(batch.image.float() * (1.0 / 255.0), batch.size)
    encoded = model.encoded(features, batch.size)
    targets = batch.targets
    state, coverage = encoded.state, model.begin(encoded)
    previous = torch.full_like(targets[:, 0], SOS_ID)
    seen = []
    for t in range(targets.shape[1]):
        glimpse = model.attend(encoded, previous, state, coverage)
        state, coverage, previous = glimpse.state, glimpse.coverage, targets[:, t]
        seen.append(glimpse)
    scores = model.predict(  # (B, T, V): of all steps at once, for fewer and larger products
        torch.stack([glimpse.context for glimpse in seen], 1),
        torch.stack([glimpse.hidden for glimpse in seen], 1),
    )
    attention = torch.stack([glimpse.attention for glimpse in seen], 1)
    label = F.cross_entropy(
        scores.flatten(0, 1),
        targets.flatten(),
        ignore_index=PAD_ID,
        label_smoothing=label_smoothing,
    )
    real = targets != PAD_ID
    accuracy = ((scores.argmax(-1) == targets) & real).sum() / real.sum()
    return Losses(
        label,
        attention_loss(attention, targets, batch.symbols, drawn_as),
        symbol_loss(head(features), batch, model.config.stride),
        accuracy,
    )


def attention_loss(attention: Tensor, targets: Tensor, symbols: Tensor, drawn_as: Tensor) -> Tensor:
    """-log of the attention that falls on ink of the symbol being written, averaged.

    All occurrences of the symbol count: which of them is meant is not known.
    ``attention`` (B, T, h, w), ``targets`` (B, T), ``symbols`` bool (B, V, h, w).
    """
    allowed = drawn_as[targets]  # (B, T, V)
    places = torch.bmm(allowed, symbols.flatten(2).to(allowed.dtype)).clamp_max(1.0)  # (B, T, L)
    mass = (places * attention.flatten(2)).sum(-1)
    known = (places.sum(-1) > 0).to(mass.dtype)
    return -((mass + 1e-4).log() * known).sum() / known.sum().clamp_min(1.0)


def symbol_loss(logits: Tensor, batch: Batch, stride: int) -> Tensor:
    """Binary cross entropy of the ink of every symbol in every true cell of segmented images."""
    mask = size_mask(batch.size, logits.shape[2], logits.shape[3], stride)
    known = batch.symbols.flatten(1).any(1)
    mask = mask & known[:, None, None]
    loss = F.binary_cross_entropy_with_logits(
        logits, batch.symbols.to(logits.dtype), reduction="none"
    ).sum(1)
    cells = batch.symbols.any(1) & mask  # normalise by inked cells: paper is not the task
    return (loss * mask).sum() / cells.sum().clamp_min(1)
