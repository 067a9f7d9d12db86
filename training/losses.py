"""What the training minimises: the label, and two helpers that teach where to look.

Attention that is learned from labels alone aligns late. The ink's segmentation says where
every symbol is, so two auxiliary terms use it; both vanish where it is unknown. Every term
comes as a sum and a count, so that processes that share a batch divide by the same number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hmer.vocab import PAD_ID, Vocabulary
from training.data import DRAWN_AS, STRUCTURE, Batch
from training.network import Recogniser, size_mask
from training.unroll import Packing, packing, unroll


class Losses(NamedTuple):
    """Scalars: cross entropy a token, three more terms, and token accuracy."""

    label: Tensor
    attention: Tensor
    symbols: Tensor
    consistency: Tensor
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


def packing_of(batch: Batch) -> Packing:
    """The packing of a batch whose rows are sorted, on its device. Make it on the CPU:
    on a GPU the lengths would have to be waited for."""
    lengths = (batch.targets != PAD_ID).sum(1).tolist()
    return packing(lengths, batch.targets.device)


class Objective(nn.Module):
    """Network, symbol head and losses as one module: what DDP wraps and the trainer calls.

    ``autocast`` (None: off) is the type of the encoder's convolutions; everything after them
    is float32. ``total`` sums a tensor over all processes. ``mark`` is told when a part is done.
    With 2 ``views`` the rows are pairs that show the same writing.
    """

    def __init__(
        self,
        model: Recogniser,
        head: SymbolHead,
        drawn_as: Tensor,
        label_smoothing: float,
        autocast: torch.dtype | None = None,
        total: Callable[[Tensor], Tensor] = lambda counts: counts,
        views: int = 1,
    ) -> None:
        super().__init__()
        self.model, self.head = model, head
        self.register_buffer("drawn_as", drawn_as, persistent=False)
        self.label_smoothing, self.autocast, self.total = label_smoothing, autocast, total
        self.views = views
        self.mark: Callable[[str], None] | None = None

    def forward(self, batch: Batch, pack: Packing) -> Losses:
        """Teacher-forced pass over a batch whose rows are sorted, longest target first.

        With several processes each gets its rows' part: their sum is the loss of all rows.
        """
        model, stride = self.model, self.model.config.stride
        with torch.autocast(
            batch.image.device.type, self.autocast, enabled=self.autocast is not None
        ):
            features = model.encoder(batch.image.float() * (1.0 / 255.0), batch.size)
            if self.mark:
                self._watch(features, self.mark)
            ink = self.head(features).float()
        memory = model.memory(features, batch.size)
        targets = batch.targets[pack.row, pack.step]
        seen = unroll(model, memory, batch.targets, pack)
        scores = model.predict(seen.context, seen.hidden)
        label = F.cross_entropy(
            scores, targets, reduction="sum", label_smoothing=self.label_smoothing
        )
        attention, steps = attention_sum(
            seen.attention, pack, batch.targets, batch.symbols, self.get_buffer("drawn_as")
        )
        symbols, cells = symbol_sum(ink, batch, stride)
        differing = consistency_sum(scores) if self.views == 2 else label.new_zeros(())
        right = (scores.argmax(-1) == targets).sum()
        with torch.no_grad():
            tokens = torch.full_like(steps, len(targets))
            counts = self.total(torch.stack([tokens, steps, cells.to(steps)])).clamp_min(1)
        if self.mark:
            self.mark("decoder forward")
        return Losses(
            label / counts[0],
            attention / counts[1],
            symbols / counts[2],
            differing / counts[0],
            right / counts[0],
        )

    @staticmethod
    def _watch(features: Tensor, mark: Callable[[str], None]) -> None:
        mark("encoder forward")
        if features.requires_grad:  # their gradient is there once the decoder's is
            features.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: mark("decoder backward")
            )


def attention_sum(
    attention: Tensor, pack: Packing, targets: Tensor, symbols: Tensor, drawn_as: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum of -log of the attention that falls on ink of the symbol being written; how many steps.

    All occurrences of the symbol count: which of them is meant is not known. ``attention``
    packed (N, L), ``targets`` (B, T), ``symbols`` bool (B, V, h, w). Both results are float32.
    """
    allowed = drawn_as[targets]  # (B, T, V)
    places = torch.bmm(allowed, symbols.flatten(2).to(allowed.dtype)).clamp_max(1.0)  # (B, T, L)
    places = places[pack.row, pack.step]
    mass = (places * attention).sum(-1)
    known = (places.sum(-1) > 0).to(mass.dtype)
    return -((mass + 1e-4).log() * known).sum(), known.sum()


def symbol_sum(logits: Tensor, batch: Batch, stride: int) -> tuple[Tensor, Tensor]:
    """Binary cross entropy of the ink of every symbol in every true cell of segmented images.

    Returns the sum and the number of inked cells to divide by: paper is not the task.
    """
    mask = size_mask(batch.size, logits.shape[2], logits.shape[3], stride)
    known = batch.symbols.flatten(1).any(1)
    mask = mask & known[:, None, None]
    loss = F.binary_cross_entropy_with_logits(
        logits, batch.symbols.to(logits.dtype), reduction="none"
    ).sum(1)
    cells = batch.symbols.any(1) & mask
    return (loss * mask).sum(), cells.sum()


def consistency_sum(scores: Tensor) -> Tensor:
    """How far two views of each writing are told apart: a scalar, summed over all entries.

    ``scores`` packed (N, V), of pairs of rows with targets of one length, so that the entries of
    a pair are neighbours. The symmetric Kullback-Leibler divergence of the next token's
    distributions, as R-Drop takes it between two passes with other dropout (Liang et al.,
    2021, equation 2); here the passes see other pictures, too.
    """
    logs = F.log_softmax(scores.float(), dim=-1)
    first, second = logs[0::2], logs[1::2]
    # Both entries of a pair count half of KL(p||q) + KL(q||p), so that a sum over N has it once.
    divergence: Tensor = ((first.exp() - second.exp()) * (first - second)).sum()
    return divergence
