"""The losses as the equations read: one ``attend`` a step, autograd through all of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hmer.vocab import PAD_ID, SOS_ID
from training.data import Batch
from training.losses import Losses, SymbolHead
from training.network import Recogniser, size_mask


def compute(
    model: Recogniser, head: SymbolHead, batch: Batch, drawn_as: Tensor, label_smoothing: float
) -> Losses:
    features = model.encoder(batch.image.float() * (1.0 / 255.0), batch.size)
    encoded = model.encoded(features, batch.size)
    targets = batch.targets
    state, coverage = encoded.state, model.begin(encoded)
    previous = torch.full_like(targets[:, 0], SOS_ID)
    scores, attention = [], []
    for t in range(targets.shape[1]):
        step = model.step(encoded, previous, state, coverage)
        state, coverage, previous = step.state, step.coverage, targets[:, t]
        scores.append(step.logits)
        attention.append(step.attention)
    logits = torch.stack(scores, 1)
    label = F.cross_entropy(
        logits.flatten(0, 1),
        targets.flatten(),
        ignore_index=PAD_ID,
        label_smoothing=label_smoothing,
    )
    real = targets != PAD_ID
    accuracy = ((logits.argmax(-1) == targets) & real).sum() / real.sum()

    allowed = drawn_as[targets]
    places = torch.bmm(allowed, batch.symbols.flatten(2).float()).clamp_max(1.0)
    mass = (places * torch.stack(attention, 1).flatten(2)).sum(-1)
    known = (places.sum(-1) > 0).float()
    attended = -((mass + 1e-4).log() * known).sum() / known.sum().clamp_min(1.0)

    ink = head(features)
    mask = size_mask(batch.size, ink.shape[2], ink.shape[3], model.config.stride)
    mask = mask & batch.symbols.flatten(1).any(1)[:, None, None]
    loss = F.binary_cross_entropy_with_logits(ink, batch.symbols.float(), reduction="none").sum(1)
    cells = batch.symbols.any(1) & mask
    symbols = (loss * mask).sum() / cells.sum().clamp_min(1)
    return Losses(label, attended, symbols, label.new_zeros(()), accuracy)
