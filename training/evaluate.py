"""Free-running recognition with the PyTorch network: what validation watches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
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

    All on the device of ``image`` and ``model``. Finished rows leave the batch, so that one
    long formula does not make all wait.
    """
    encoded = model.encode(image, size)
    state, coverage = encoded.state, model.begin(encoded)
    token = torch.full((len(image),), SOS_ID, dtype=torch.int64, device=image.device)
    rows = list(range(len(image)))
    found: list[Prediction] = [Prediction([], []) for _ in range(len(image))]
    for _ in range(max_tokens):
        step = model.step(encoded, token, state, coverage)
        scores, token = torch.log_softmax(step.logits.float(), -1).max(-1)
        tokens = token.tolist()
        for row, index, score in zip(rows, tokens, scores.tolist(), strict=True):
            found[row].scores.append(score)
            if index != EOS_ID:
                found[row].ids.append(index)
        state, coverage = step.state, step.coverage
        going = [place for place, index in enumerate(tokens) if index != EOS_ID]
        if not going:
            break
        if len(going) < len(rows):
            rows = [rows[place] for place in going]
            kept = torch.tensor(going, device=image.device)
            token, state, coverage = token[kept], state[kept], coverage[kept]
            encoded = Encoded(*(part[kept] for part in encoded))
    return found


def predict(
    model: Recogniser,
    renderer: Renderer,
    examples: Sequence[Example],
    max_tokens: int = 200,
    batch: int = 32,
    images: Sequence[NDArray[np.uint8]] | None = None,
) -> Iterator[tuple[Example, Prediction]]:
    """Recognise plainly rendered ``examples``; pairs come in the order of their sizes.

    ``images`` are the examples' own, if they have been rendered already.
    """
    device = next(model.parameters()).device
    sizes = [estimate_size(example, renderer.settings) for example in examples]
    for indices in fixed_batches(len(examples), sizes, batch):
        image, size = to_batch(
            [images[i] if images else renderer.plain(examples[i]) for i in indices]
        )
        found = greedy(
            model, torch.from_numpy(image).to(device), torch.from_numpy(size).to(device), max_tokens
        )
        yield from ((examples[i], p) for i, p in zip(indices, found, strict=True))
