"""The training loop: one readable pass over seeded, resumable steps.

Everything random hangs on (seed, epoch, position): the order of batches, the augmentation
of an example and dropout's draws. So a run that was killed goes on at the step after its
last saved one with the very same curve, and a finished one goes on when ``steps`` is raised.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hmer.errors import DatasetError
from hmer.preprocess import PreprocessSettings
from hmer.vocab import Vocabulary
from training import batches, curves, schedule
from training.augment import AugmentSettings
from training.batches import BatchMaker, Planner, Variation
from training.checkpoint import save_checkpoint
from training.data import Batch, Example, Renderer, estimate_size
from training.device import find_device
from training.distributed import World
from training.engine import Engine, Mark, Reading
from training.evaluate import predict
from training.network import NetworkConfig, Recogniser
from training.schedule import learning_rate as learning_rate
from training.settings import TrainSettings as TrainSettings
from training.state import Progress, load_state, save_state

METRICS_FILE = "metrics.jsonl"
_LOST = 20  # steps in a row without a finite gradient: the run will not recover


@dataclass
class Report:
    """What the loop tells a listener, one line of ``metrics.jsonl`` each."""

    kind: str  # "step" or "held_out"
    step: int
    values: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps({"kind": self.kind, "step": self.step, **self.values})


class _Done(NamedTuple):
    """A step whose results may still be on their way from the device."""

    step: int
    values: dict[str, float]
    reading: Reading


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
        device: str = "auto",
        variation: Variation | None = None,
    ) -> None:
        """``initial`` gives the weights that a new run starts from; a resumed one has its own.

        ``device`` is ``auto``, ``cpu`` or ``cuda``; a run may go on on another one.
        ``variation`` changes examples before they are rendered (see ``training.batches``).
        """
        if not train:
            raise DatasetError("There is nothing to train on: the data holds no example.")
        self.began = time.monotonic()
        self.world = World()
        self.device = find_device(device, self.world.local_rank)
        self.folder, self.settings, self.listener = folder, settings, listener
        self.stopping = False  # set it from anywhere: the run saves after its step and returns
        self.train, self.vocabulary = list(train), vocabulary
        self.held_out = list(held_out)[: settings.held_out_limit]
        self.renderer = Renderer(vocabulary, preprocess, augmentation)
        self.planner = Planner(
            settings,
            [estimate_size(example, preprocess) for example in train],
            [len(example.tokens) for example in train],
            augmentation.zoom,
            self.world.rank,
            self.world.size,
        )
        self.maker = BatchMaker(
            self.renderer,
            self.train,
            settings.seed,
            variation,
            settings.few_shapes,
            settings.views,
        )
        self.world.join(self.device)
        self.engine = Engine(network, vocabulary, settings, self.device, self.world, initial)
        self.model, self.average = self.engine.model, self.engine.average
        self.identity: dict[str, object] = {
            "vocabulary": vocabulary.fingerprint,
            "network": network.to_dict(),
            "examples": len(train),
            "seed": settings.seed,
        }
        found = load_state(folder, self.engine.modules, self.average, self.engine.optimiser)
        self.progress = found or Progress(identity=self.identity)
        self._check_identity()
        if self.progress.share is None:
            self.progress.share = self._last_share()
        self.quiet = self.world.rank > 0  # writes no file and tells nobody
        self.mark: Mark = lambda name: None
        self._pending: deque[_Done] = deque()
        self._lost = 0
        self._reserve = 0.0  # seconds that the end of the run will take
        self._plain: list[NDArray[np.uint8]] | None = None
        self._board = curves.Board(folder, self.progress.step, settings.tensorboard)

    def _check_identity(self) -> None:
        for name, value in self.identity.items():
            if self.progress.identity.get(name) != value:
                raise DatasetError(
                    f"{self.folder} holds a run with another {name} "
                    f"({self.progress.identity.get(name)!r}, now {value!r}). Give another "
                    "--save-dir to start anew, or the same data and options to go on."
                )
        step = self.progress.step
        if self.world.most([step, -step]) != [step, -step]:
            raise DatasetError(
                f"{self.folder} holds another step for some processes than the {step} found here. "
                "Give a --save-dir that all machines share."
            )

    def _last_share(self) -> float:
        """Where the rate of a state of an older version ended: from its metrics, or as planned."""
        if self.progress.step == 0:
            return 0.0
        last = curves.read_metrics(self.folder / METRICS_FILE).steps.get(self.progress.step)
        if last and self.settings.learning_rate > 0:
            return min(1.0, last["rate"] / self.settings.learning_rate)
        return schedule.fall(self.progress.step - 1, self.settings)

    def run(self) -> Progress:
        """Train until ``steps``, patience or ``max_hours`` end it; returns where it stands."""
        if self.progress.step >= self.settings.steps:
            return self.progress
        with self.stream() as made:
            since = time.monotonic()
            for job, batch in made:
                self.mark("data wait")
                stopping = self.advance(job, batch)
                now = time.monotonic()
                self.progress.seconds += now - since
                since = now
                done = self.progress.step
                last = done >= self.settings.steps or self._fall() <= 0.0
                if done % self.settings.evaluate_every == 0 or last:
                    self.evaluate()
                    since = time.monotonic()
                if done % self.settings.save_every == 0 or last:
                    self.save()
                if last or stopping or self._out_of_patience():
                    self.save()
                    break
        self._flush()
        self._board.close()
        return self.progress

    def stream(self) -> AbstractContextManager[Iterator[tuple[batches.Job, Batch]]]:
        """The batches from where the run stands."""
        jobs = self.planner.jobs(self.progress.epoch, self.progress.batch)
        pin = self.device.type == "cuda"
        return batches.stream(self.maker, jobs, self.settings.workers, pin)

    def advance(self, job: batches.Job, batch: Batch) -> bool:
        """One step, the same in all processes; whether any of them was asked to stop."""
        started, progress = time.monotonic(), self.progress
        height, width = batch.image.shape[-2:]
        elapsed = started - self.began + self._reserve
        tallest, widest, stop, self._elapsed = self.world.most(
            [height, width, self.stopping, elapsed]
        )
        fall = self._fall()
        progress.share = schedule.rise(fall, progress.share or 0.0, self.settings)
        rate = self.settings.learning_rate * progress.share
        on_device, pack = self.engine.load(batch, int(tallest), int(widest))
        self.mark("transfer")
        reading = self.engine.step(on_device, pack, progress.step, rate, fall)
        progress.step += 1
        progress.images += job.rows
        progress.epoch, progress.batch = job.after
        values = {
            "epoch": job.epoch,
            "rate": rate,
            "images": job.rows,
            "seconds": time.monotonic() - started,
        }
        self._pending.append(_Done(progress.step, values, reading))
        self._flush(1 if self.device.type == "cuda" else 0)  # let a GPU run one step ahead
        self.mark("report")
        if self.world.shared:
            self.stopping = bool(stop)
        return self.stopping

    _elapsed = 0.0  # seconds of this invocation, as all processes agree

    def _fall(self) -> float:
        return schedule.fall(self.progress.step, self.settings, self._elapsed)

    def _flush(self, keep: int = 0) -> None:
        """Report all but the last ``keep`` steps."""
        while len(self._pending) > keep:
            step, values, reading = self._pending.popleft()
            names = ("loss", "attention", "symbols", "consistency", "accuracy", "norm")
            found = dict(zip(names, reading.get(), strict=True))
            self._lost = 0 if math.isfinite(found["norm"]) else self._lost + 1
            self._report("step", step, **found, **values)
            if self._lost >= _LOST:
                raise DatasetError(
                    f"The last {_LOST} gradients before step {step} were not finite: the run in "
                    f"{self.folder} diverged. Go on from its last saved state with a lower "
                    "--learning-rate."
                )

    def _out_of_patience(self) -> bool:
        waited = (self.progress.step - self.progress.best_step) // self.settings.evaluate_every
        return 0 < self.settings.patience <= waited

    def save(self) -> None:
        """Write the state; a kill from now on loses nothing before this step."""
        self._flush()
        if not self.quiet and not self._lost:
            engine = self.engine
            save_state(self.folder, engine.modules, self.average, engine.optimiser, self.progress)

    def evaluate(self) -> float:
        """ExpRate on the held-out examples, free-running, with averaged weights; keeps the best."""
        self._flush()
        started = time.monotonic()
        model, mine = self.engine.judge(), self.held_out[self.world.rank :: self.world.size]
        if self._plain is None:
            self._plain = [self.renderer.plain(example) for example in mine]
        right = sum(
            tuple(self.vocabulary.decode(p.ids)) == example.tokens
            for example, p in predict(model, self.renderer, mine, images=self._plain)
        )
        counted = self.world.sum(torch.tensor(float(right)))
        score = float(counted) / max(1, len(self.held_out))
        seconds = time.monotonic() - started
        self._reserve = max(self._reserve, 1.5 * seconds)
        self._report(
            "held_out",
            self.progress.step,
            exprate=score,
            n=len(self.held_out),
            hours=self.progress.seconds / 3600,
            seconds=seconds,
        )
        if score > self.progress.best_score or not self.held_out:
            self.progress.best_score, self.progress.best_step = score, self.progress.step
            self._keep(model)
        return score

    def _keep(self, model: Recogniser) -> None:
        if self.quiet:
            return
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

    def _report(self, kind: str, step: int, **values: float) -> None:
        if self.quiet:
            return
        report = Report(kind, step, values)
        with (self.folder / METRICS_FILE).open("a", encoding="utf-8") as stream:
            stream.write(report.to_json() + "\n")
        self._board.add(kind, step, values)
        self.listener(report)
