"""Free-running recognition with the PyTorch network: what validation watches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hmer.preprocess import to_batch
from hmer.vocab import EOS_ID, SOS_ID
from training.data import Example, Renderer, estimate_size, fixed_batches
from training.network import Encoded, Recogniser


class Prediction(NamedTuple):
    """Ids up to ``<eos>`` (without it) and their log-probabilities, ``<eos>``'s included."""

    ids: list[int]
    scores: list[float]


@torch.no_grad()
def greedy(model: Recogniser, image: Tensor, size: Tensor, max_tokens: int) -> list[Prediction]:
    """Decode a batch greedily: ``image`` uint8 (B, 1, H, W), ``size`` int32 (B, 2).

    Finished rows leave the batch, so that one long formula does not make all wait.
    """
    encoded = model.encode(image, size)
    state, coverage = encoded.state, model.begin(encoded)
    token = torch.full((len(image),), SOS_ID, dtype=torch.int64)
    rows = torch.arange(len(image))
    found: list[Prediction] = [Prediction([], []) for _ in range(len(image))]
    for _ in range(max_tokens):
        step = model.step(encoded, token, state, coverage)
        scores, token = torch.log_softmax(step.logits.float(), -1).max(-1)
        for row, index, score in zip(rows.tolist(), token.tolist(), scores.tolist(), strict=True):
            found[row].scores.append(score)
            if index != EOS_ID:
                found[row].ids.append(index)
        going = token != EOS_ID
        if not going.any():
            break
        rows, token = rows[going], token[going]
        state, coverage = step.state[going], step.coverage[going]
        encoded = Encoded(*(part[going] for part in encoded))
    return found


def predict(
    model: Recogniser,
    renderer: Renderer,
    examples: Sequence[Example],
    max_tokens: int = 200,
    batch: int = 32,
) -> Iterator[tuple[Example, Prediction]]:
    """Recognise plainly rendered ``examples``; pairs come in the order of their sizes."""
    sizes = [estimate_size(example, renderer.settings) for example in examples]
    for indices in fixed_batches(len(examples), sizes, batch):
        image, size = to_batch([renderer.plain(examples[i]) for i in indices])
        found = greedy(model, torch.from_numpy(image), torch.from_numpy(size), max_tokens)
        yield from ((examples[i], p) for i, p in zip(indices, found, strict=True))
