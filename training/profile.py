"""Where the time of a training step goes."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import torch

from training.train import Trainer

PARTS = (
    "data wait",  # for the batch that thread or workers make
    "transfer",  # to the device, and padding to the size of all processes
    "encoder forward",
    "decoder forward",  # with all losses and the symbol head
    "decoder backward",
    "encoder backward",
    "optimiser",  # with the clipping of gradients
    "average",
    "report",
)


@dataclass(frozen=True)
class ProfileReport:
    """Speed of ``steps`` steps after a few to warm up; ``seconds`` of each part, summed."""

    device: str
    precision: str
    workers: int
    processes: int
    steps: int
    images: int  # of all processes
    total: float  # seconds
    seconds: dict[str, float]

    @property
    def images_a_second(self) -> float:
        """Of all processes together."""
        return self.images / max(1e-9, self.total)

    def to_dict(self) -> dict[str, object]:
        """For ``--json``: all fields, images a second and each part's share of the time."""
        return {
            **asdict(self),
            "images_a_second": self.images_a_second,
            "shares": {name: value / max(1e-9, self.total) for name, value in self.seconds.items()},
        }

    def __str__(self) -> str:
        """A table for people."""
        lines = [
            f"{self.images_a_second:.1f} images/s: {self.images} images in {self.steps} steps, "
            f"{self.total:.2f} s, on {self.device} in {self.precision}, "
            f"{self.workers} workers, {self.processes} processes",
            f"{'part':<18}{'ms a step':>11}{'share':>9}",
        ]
        lines += [
            f"{name:<18}{1000 * value / self.steps:>11.2f}{value / max(1e-9, self.total):>9.1%}"
            for name, value in self.seconds.items()
        ]
        return "\n".join(lines)


def profile(trainer: Trainer, steps: int = 20, warm: int = 3) -> ProfileReport:
    """Train ``steps`` steps and time their parts; nothing is written to the run's folder.

    On a GPU every part waits for its kernels, so the sum is somewhat more than a step takes
    in training, where transfers and reports overlap with computing. The trainer has changed
    weights afterwards: do not train on with it.
    """
    seconds = dict.fromkeys(PARTS, 0.0)
    last = time.perf_counter()

    def mark(name: str) -> None:
        nonlocal last
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)
        now = time.perf_counter()
        seconds[name] += now - last
        last = now

    trainer.quiet = True
    trainer.mark = mark
    trainer.engine.set_mark(mark)
    images, started = 0, 0.0
    with trainer.stream() as made:
        for number, (job, batch) in enumerate(made, 1 - warm):
            if number == 1:
                seconds.update(dict.fromkeys(PARTS, 0.0))
                started = last
            mark("data wait")
            trainer.advance(job, batch)
            images += job.rows if number > 0 else 0
            if number >= steps:
                break
    trainer.engine.set_mark(None)
    trainer.mark = lambda name: None
    return ProfileReport(
        str(trainer.device),
        trainer.settings.precision,
        trainer.settings.workers,
        trainer.world.size,
        steps,
        images,
        last - started,
        seconds,
    )
