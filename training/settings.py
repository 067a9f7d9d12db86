"""The options of a run."""

from __future__ import annotations

from dataclasses import dataclass

# Epochs of short expressions and small writing, for ``TrainSettings.curriculum``. An ablation shows
# no gain (training/ABLATIONS.md).
SHORT_FIRST = ((8, 0.8), (16, 0.8), (32, 0.8), (999, 0.85), (999, 0.85))


@dataclass(frozen=True)
class TrainSettings:
    """One run. Lengths of a schedule are in steps; ``pixels`` is padded pixels a batch.

    How the learning rate moves is told in ``training.schedule``: ``warmup``, ``steps``,
    ``decay_share`` and ``max_hours``. The ``curriculum`` lists (most tokens, zoom) of the first
    epochs: short and small first. ``workers`` processes make the batches (0: one thread);
    they change the speed alone. ``precision`` is the type of the encoder's convolutions: fp32 or
    bf16. ``compile`` runs the encoder through ``torch.compile``: minutes of compiling first.
    With several processes ``pixels`` and ``limit`` are those of all together.
    ``consistency`` weighs how far the answers to two views of an example may differ
    (``training.losses.consistency_sum``); above 0 every example is in its batch twice.
    ``freeze_norm`` leaves the statistics of batch normalisation as they are.
    """

    steps: int = 8000
    learning_rate: float = 1e-3
    warmup: int = 200
    decay_share: float = 0.3
    weight_decay: float = 1e-2
    clip: float = 5.0
    pixels: int = 240_000
    limit: int = 32
    seed: int = 0
    label_smoothing: float = 0.05
    attention_weight: float = 0.5
    symbols_weight: float = 0.5
    consistency: float = 0.0
    freeze_norm: bool = False
    average: float = 0.999
    evaluate_every: int = 500
    save_every: int = 200
    held_out_limit: int = 300
    patience: int = 0  # evaluations without a better score before stopping; 0: never
    curriculum: tuple[tuple[int, float], ...] = ()
    max_hours: float = 0.0  # wall clock of this invocation, annealed at its end; 0: no limit
    precision: str = "fp32"
    workers: int = 0
    compile: bool = False
    few_shapes: bool = False  # batches padded to few sizes: see ``training.data.few_sizes``
    tensorboard: bool = False  # also write the curves to SAVE_DIR/tensorboard

    @property
    def views(self) -> int:
        """Rows that an example has in its batch."""
        return 2 if self.consistency > 0 else 1
