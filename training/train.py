"""The training loop: one readable pass over seeded, resumable steps.

Everything random hangs on (seed, epoch, position): the order of batches, the augmentation
of an example and dropout's draws. So a run that was killed goes on at the step after its
last saved one with the very same curve, and a finished one goes on when ``steps`` is raised.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hmer.errors import DatasetError
from hmer.preprocess import PreprocessSettings
from hmer.vocab import Vocabulary
from training import losses
from training.augment import AugmentSettings
from training.checkpoint import save_checkpoint
from training.data import Batch, Example, Plan, Renderer, collate, estimate_size, plan_epoch
from training.evaluate import predict
from training.network import NetworkConfig, Recogniser
from training.state import Average, Progress, load_state, save_state


@dataclass(frozen=True)
class TrainSettings:
    """One run. Lengths of a schedule are in steps; ``pixels`` is padded pixels a batch.

    The learning rate rises over ``warmup`` steps, stays, and falls to zero over the last
    ``decay_share`` of ``steps``: a run can be extended by raising ``steps``. The
    ``curriculum`` lists (most tokens, zoom) of the first epochs: short and small first.
    The weights of the auxiliary losses fall to zero with the learning rate.
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
    average: float = 0.999
    evaluate_every: int = 500
    save_every: int = 200
    held_out_limit: int = 300
    patience: int = 0  # evaluations without a better score before stopping; 0: never
    curriculum: tuple[tuple[int, float], ...] = (
        (8, 0.8),
        (16, 0.8),
        (32, 0.8),
        (999, 0.85),
        (999, 0.85),
    )


@dataclass
class Report:
    """What the loop tells a listener, one line of ``metrics.jsonl`` each."""

    kind: str  # "step" or "held_out"
    step: int
    values: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps({"kind": self.kind, "step": self.step, **self.values})


def learning_rate(step: int, settings: TrainSettings) -> float:
    """The rate of the step with this number (from 0)."""
    return (
        settings.learning_rate
        * min(1.0, (step + 1) / max(1, settings.warmup))
        * _fall(step, settings)
    )


def _fall(step: int, settings: TrainSettings) -> float:
    length = max(1.0, settings.steps * settings.decay_share)
    return min(1.0, max(0.0, (settings.steps - step) / length))


class Trainer:
    """A run in ``folder``: ``state.safetensors``, ``best/`` (a bundle) and ``metrics.jsonl``."""

    def __init__(
        self,
        folder: Path,
        train: Sequence[Example],
        held_out: Sequence[Example],
        vocabulary: Vocabulary,
        network: NetworkConfig,
        preprocess: PreprocessSettings,
        settings: TrainSettings,
        augmentation: AugmentSettings,
        listener: Callable[[Report], None] = lambda report: None,
        initial: Recogniser | None = None,
    ) -> None:
        """``initial`` gives the weights that a new run starts from; a resumed one has its own."""
        if not train:
            raise DatasetError("There is nothing to train on: the data holds no example.")
        self.folder, self.settings, self.listener = folder, settings, listener
        self.stopping = False  # set it from anywhere: the run saves after its step and returns
        self.train, self.vocabulary = list(train), vocabulary
        self.held_out = list(held_out)[: settings.held_out_limit]
        self.renderer = Renderer(vocabulary, preprocess, augmentation)
        self.sizes = [estimate_size(example, preprocess) for example in train]
        self.lengths = [len(example.tokens) for example in train]
        torch.manual_seed(settings.seed)
        self.model = Recogniser(network)
        if initial is not None:
            self.model.load_state_dict(initial.state_dict())
        # Convolutions are half as fast again with the channels last. With fewer than 16 channels
        # PyTorch 2.13 (oneDNN) then writes outside its buffers on two threads: heap corruption.
        if all(width % 16 == 0 for width in network.widths):
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.head = losses.SymbolHead(network.features, len(vocabulary))
        self.drawn_as = losses.drawn_as_matrix(vocabulary)
        self.average = Average(self.model, settings.average)
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self._parameters() if p.ndim > 1]},
            {"params": [p for p in self._parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(
            groups,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )
        self.modules = {"model": self.model, "head": self.head}
        self.identity: dict[str, object] = {
            "vocabulary": vocabulary.fingerprint,
            "network": network.to_dict(),
            "examples": len(train),
            "seed": settings.seed,
        }
        found = load_state(folder, self.modules, self.average, self.optimiser)
        self.progress = found or Progress(identity=self.identity)
        self._check_identity()

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [*self.model.parameters(), *self.head.parameters()]

    def _check_identity(self) -> None:
        for name, value in self.identity.items():
            if self.progress.identity.get(name) != value:
                raise DatasetError(
                    f"{self.folder} holds a run with another {name} "
                    f"({self.progress.identity.get(name)!r}, now {value!r}). Give another "
                    "--save-dir to start anew, or the same data and options to go on."
                )

    def run(self) -> Progress:
        """Train until ``settings.steps`` or until patience ends; returns where it stands."""
        with ThreadPoolExecutor(1, "batches") as pool:
            since = time.monotonic()
            for batch in self._batches(pool):
                self._step(batch)
                now = time.monotonic()
                self.progress.seconds += now - since
                since = now
                done = self.progress.step
                last = done >= self.settings.steps
                if done % self.settings.evaluate_every == 0 or last:
                    self.evaluate()
                    since = time.monotonic()
                if done % self.settings.save_every == 0 or last:
                    self.save()
                if last or self.stopping or self._out_of_patience():
                    self.save()
                    return self.progress
        return self.progress

    def _out_of_patience(self) -> bool:
        waited = (self.progress.step - self.progress.best_step) // self.settings.evaluate_every
        return 0 < self.settings.patience <= waited

    def save(self) -> None:
        """Write the state; a kill from now on loses nothing before this step."""
        save_state(self.folder, self.modules, self.average, self.optimiser, self.progress)

    # Batches: made one ahead of the step that uses them, in a thread.

    def _batches(self, pool: ThreadPoolExecutor) -> Iterator[Batch]:
        if self.progress.step >= self.settings.steps:
            return
        ahead: Future[Batch] | None = None
        while True:
            epoch = self.progress.epoch
            plans = self._plan(epoch)
            for position in range(self.progress.batch, len(plans)):
                batch = (ahead or pool.submit(self._make, plans[position], epoch)).result()
                more = position + 1 < len(plans)
                ahead = pool.submit(self._make, plans[position + 1], epoch) if more else None
                self.progress.batch = position + 1
                yield batch
            self.progress.epoch += 1
            self.progress.batch = 0

    def _plan(self, epoch: int) -> list[Plan]:
        stages = self.settings.curriculum
        longest, shrink = stages[epoch] if epoch < len(stages) else (10**9, 1.0)
        chosen = [i for i, n in enumerate(self.lengths) if n <= longest] or list(
            range(len(self.train))
        )
        low, high = self.renderer.augmentation.zoom
        plans = plan_epoch(
            [self.sizes[i] for i in chosen],
            (low * shrink, high * shrink),
            self.settings.pixels,
            self.settings.limit,
            np.random.default_rng((self.settings.seed, epoch)),
        )
        return [Plan([chosen[i] for i in plan.indices], plan.zoom) for plan in plans]

    def _make(self, plan: Plan, epoch: int) -> Batch:
        samples = [
            self.renderer.render(
                self.train[i], np.random.default_rng((self.settings.seed, epoch, i)), plan.zoom
            )
            for i in plan.indices
        ]
        return collate(samples, len(self.vocabulary), self.renderer.settings.multiple)

    def _step(self, batch: Batch) -> None:
        settings, step = self.settings, self.progress.step
        started = time.monotonic()
        torch.manual_seed(settings.seed * 1_000_003 + step)
        rate, fall = learning_rate(step, settings), _fall(step, settings)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.model.train()
        found = losses.compute(
            self.model, self.head, batch, self.drawn_as, settings.label_smoothing
        )
        total = (
            found.label
            + settings.attention_weight * fall * found.attention
            + settings.symbols_weight * fall * found.symbols
        )
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters(), settings.clip))
        if math.isfinite(norm):
            self.optimiser.step()
            self.average.update(self.model, step)
        self.progress.step += 1
        self.progress.images += len(batch.image)
        taken = time.monotonic() - started
        self._report(
            "step",
            epoch=self.progress.epoch,
            loss=found.label.item(),
            attention=found.attention.item(),
            symbols=found.symbols.item(),
            accuracy=found.accuracy.item(),
            norm=norm,
            rate=rate,
            images=len(batch.image),
            seconds=taken,
        )

    def evaluate(self) -> float:
        """ExpRate on the held-out examples, free-running, with averaged weights; keeps the best."""
        started = time.monotonic()
        model = Recogniser(self.model.config)
        model.load_state_dict(self.average.values)
        model.eval()
        right = sum(
            tuple(self.vocabulary.decode(p.ids)) == example.tokens
            for example, p in predict(model, self.renderer, self.held_out)
        )
        score = right / max(1, len(self.held_out))
        self._report(
            "held_out",
            exprate=score,
            n=len(self.held_out),
            hours=self.progress.seconds / 3600,
            seconds=time.monotonic() - started,
        )
        if score > self.progress.best_score or not self.held_out:
            self.progress.best_score, self.progress.best_step = score, self.progress.step
            details = {
                "training": {
                    **{k: v for k, v in asdict(self.progress).items() if k != "identity"},
                    "settings": asdict(self.settings),
                    "augmentation": asdict(self.renderer.augmentation),
                    "held_out_examples": len(self.held_out),
                }
            }
            save_checkpoint(
                self.folder / "best", model, self.vocabulary, self.renderer.settings, details
            )
        return score

    def _report(self, kind: str, **values: float) -> None:
        report = Report(kind, self.progress.step, values)
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(report.to_json() + "\n")
        self.listener(report)
