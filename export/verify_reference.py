"""What the graphs are measured by: the network as it was trained.

PyTorch, float32, BatchNorm unfolded, one image at a time without padding, one token a step.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from export.verify_types import Answer, Images, Margin
from hmer.vocab import EOS_ID, SOS_ID
from training.evaluate import greedy
from training.network import Recogniser

MAX_TOKENS = 160  # an answer's length in the comparison, <eos> included


def reference(model: Recogniser, image: NDArray[np.uint8], limit: int = MAX_TOKENS) -> Answer:
    """``model``'s greedy answer to one preprocessed image (H, W): eager, unpadded, k = 1."""
    with torch.inference_mode():
        (found,) = greedy(model, *_tensors(image), limit)
    ended = len(found.scores) > len(found.ids)  # the last score is that of <eos>
    return Answer((*found.ids, EOS_ID) if ended else tuple(found.ids), tuple(found.scores))


def log_probabilities(model: Recogniser, image: NDArray[np.uint8], ids: tuple[int, ...]) -> (
    NDArray[np.float32]
):  # fmt: skip
    """log p(token | ``ids``) for every token of the vocabulary, float32 (V,), by ``model``."""
    with torch.inference_mode():
        encoded = model.encode(*_tensors(image))
        state, coverage = encoded.state, model.begin(encoded)
        for token in (SOS_ID, *ids):
            step = model.step(encoded, torch.tensor([token]), state, coverage)
            state, coverage = step.state, step.coverage
        result: NDArray[np.float32] = torch.log_softmax(step.logits.float(), -1)[0].numpy()
        return result


def margins(model: Recogniser, images: Images) -> Margin:
    """A ``Margin`` that asks ``model``, by decoding the image again up to the step."""

    def margin(image: str, before: tuple[int, ...], expected: int, found: int) -> float | None:
        if not 0 <= max(expected, found) < model.config.vocabulary_size:
            return None
        scores = log_probabilities(model, images[image], before)
        return abs(float(scores[expected] - scores[found]))

    return margin


def _tensors(image: NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor]:
    size = torch.tensor([image.shape], dtype=torch.int32)
    return torch.from_numpy(image)[None, None], size
