"""A tiny run on tiny handwriting: what the tests of training share."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from hmer.preprocess import PreprocessSettings
from hmer.vocab import Vocabulary
from tests.handwriting import SHAPES, write_pack
from training.augment import AugmentSettings
from training.data import Example, Renderer, read_pack
from training.network import NetworkConfig
from training.train import Trainer, TrainSettings

SETTINGS = PreprocessSettings(symbol_height=20, multiple=16)
VOCABULARY = Vocabulary(sorted(SHAPES))
NETWORK = NetworkConfig(
    len(VOCABULARY), (16, 16, 16, 16), (2, 2, 2, 2, 1), attention=8, hidden=12, embedding=4
)
SHORT = TrainSettings(
    steps=8, pixels=40_000, limit=6, evaluate_every=4, save_every=4, warmup=2, curriculum=()
)
RENDERER = Renderer(VOCABULARY, SETTINGS, AugmentSettings())


@functools.cache
def examples() -> tuple[Example, ...]:
    """32 writings by eight writers."""
    with tempfile.TemporaryDirectory() as folder:
        return tuple(read_pack(write_pack(Path(folder) / "train.jsonl", 32)))


def settings(**changes: Any) -> TrainSettings:
    """``SHORT`` with changes."""
    return TrainSettings(**{**SHORT.__dict__, **changes})


def trainer(
    folder: Path,
    chosen: TrainSettings = SHORT,
    network: NetworkConfig = NETWORK,
    count: int = 32,
    **more: Any,
) -> Trainer:
    """A run in ``folder`` on the CPU, new or resumed; four examples are held out."""
    folder.mkdir(exist_ok=True)
    data = examples()[:count]
    return Trainer(
        folder, data[4:], data[:4], VOCABULARY, network, SETTINGS, chosen,
        AugmentSettings(), **{"device": "cpu", **more},
    )  # fmt: skip


def curve(folder: Path, value: str = "loss") -> dict[int, float]:
    """The loss of each step, of the last time it was made."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return {row["step"]: row[value] for row in rows if row["kind"] == "step"}
