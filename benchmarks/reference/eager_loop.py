"""The plain PyTorch loop: picture in, tokens out, one token a step."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from hmer.guards import Guards
from hmer.preprocess import load, to_batch
from hmer.vocab import EOS_ID, SOS_ID
from training.checkpoint import load_checkpoint


@dataclass(frozen=True)
class Read:
    """An answer, and milliseconds by stage."""

    tokens: tuple[str, ...]
    timings: dict[str, float] = field(default_factory=dict)


class EagerLoop:
    """A checkpoint in PyTorch's eager mode on the CPU."""

    def __init__(self, checkpoint: str | Path, threads: int, max_tokens: int = 256) -> None:
        """``threads`` of PyTorch, for the whole process. Raises ``BundleError``."""
        torch.set_num_threads(threads)
        bundle, self._model = load_checkpoint(checkpoint)
        self._settings, self._vocabulary = bundle.preprocess, bundle.vocabulary
        self._guards = Guards(bundle.vocabulary)
        self._max_tokens = max_tokens

    @torch.inference_mode()
    def recognize(self, data: bytes) -> Read:
        """The formula in ``data``. Raises an ``HmerError`` for a bad picture."""
        began = time.perf_counter()
        image, size = to_batch([load(data, self._settings)])
        prepared = time.perf_counter()
        encoded = self._model.encode(torch.from_numpy(image), torch.from_numpy(size))
        state, coverage = encoded.state, self._model.begin(encoded)
        read = time.perf_counter()
        ids: list[int] = []
        token = torch.tensor([SOS_ID])
        while len(ids) < self._max_tokens:
            step = self._model.step(encoded, token, state, coverage)
            state, coverage = step.state, step.coverage
            token = step.logits.argmax(-1)
            ids.append(int(token))
            if ids[-1] == EOS_ID or self._guards.loops(ids):
                break
        ended = time.perf_counter()
        timings = {
            "preprocess": (prepared - began) * 1e3,
            "encode": (read - prepared) * 1e3,
            "decode": (ended - read) * 1e3,
        }
        return Read(tuple(self._vocabulary.decode(ids)), timings)
