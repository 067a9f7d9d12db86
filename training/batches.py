"""Batches ahead of the steps that use them: by one thread, or by worker processes.

What is in a batch hangs on (seed, epoch, indices) alone, never on who makes it, so a run has
the same curve with any number of workers.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import pickle
import signal
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from hmer.errors import HmerError
from hmer.preprocess import size_class
from training.data import (
    Batch,
    Example,
    Plan,
    Renderer,
    collate,
    few_sizes,
    plan_epoch,
)
from training.settings import TrainSettings

ROWS = 32  # batches of few shapes hold a multiple of it
AHEAD = 2  # batches that wait for a step, of the thread or of each worker

# Makes of all examples a function that changes one at random, before it is rendered.
Variation = Callable[
    [Sequence[Example]], Callable[[Example, np.random.Generator], Example]
]  # fmt: skip


class Job(NamedTuple):
    """One batch to make: this process's ``indices`` of a batch of the epoch's plan.

    ``rows`` is the batch of all processes together, each view a row; ``after`` are epoch and
    batch that come next; ``nothing`` asks for a batch without rows.
    """

    epoch: int
    indices: tuple[int, ...]
    zoom: float
    rows: int
    after: tuple[int, int]
    nothing: bool = False


class Planner:
    """Which examples make which batch: the same in every process, whatever the number."""

    def __init__(
        self,
        settings: TrainSettings,
        sizes: Sequence[tuple[int, int]],
        lengths: Sequence[int],
        zooms: tuple[float, float],
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """``sizes`` and token counts (``lengths``) of all examples."""
        self.settings, self.zooms = settings, zooms
        self.sizes, self.lengths = sizes, lengths
        self.rank, self.world = rank, world

    def epoch(self, epoch: int) -> list[Plan]:
        """The batches of all processes of this epoch, in order."""
        stages = self.settings.curriculum
        longest, shrink = stages[epoch] if epoch < len(stages) else (10**9, 1.0)
        chosen = [i for i, n in enumerate(self.lengths) if n <= longest]
        chosen = chosen or list(range(len(self.lengths)))
        low, high = self.zooms
        plans = plan_epoch(
            [self.sizes[i] for i in chosen],
            (low * shrink, high * shrink),
            max(1, self.settings.pixels // self.settings.views),
            max(1, self.settings.limit // self.settings.views),
            np.random.default_rng((self.settings.seed, epoch)),
            *((few_sizes, ROWS // self.settings.views) if self.settings.few_shapes else ()),
        )
        return [Plan([chosen[i] for i in plan.indices], plan.zoom) for plan in plans]

    def jobs(self, epoch: int, batch: int) -> Iterator[Job]:
        """This process's jobs from there on, without end."""
        while True:
            plans = self.epoch(epoch)
            for position in range(batch, len(plans)):
                indices, zoom = plans[position]
                own = tuple(indices[self.rank :: self.world])
                # A batch without rows still has its shape: one row is made and taken off.
                yield Job(
                    epoch,
                    own or (indices[0],),
                    zoom,
                    len(indices) * self.settings.views,
                    (epoch, position + 1) if position + 1 < len(plans) else (epoch + 1, 0),
                    not own,
                )
            epoch, batch = epoch + 1, 0


class BatchMaker(Dataset[Any]):
    """Renders the examples of a job; it travels to the worker processes."""

    def __init__(
        self,
        renderer: Renderer,
        examples: Sequence[Example],
        seed: int,
        variation: Variation | None = None,
        few_shapes: bool = False,
        views: int = 1,
    ) -> None:
        self.renderer, self.examples, self.seed = renderer, examples, seed
        self.variation, self.views = variation, views
        self.sizes = few_sizes if few_shapes else size_class
        self._vary: Callable[[Example, np.random.Generator], Example] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_vary": None}  # every process builds its own

    def make(self, job: Job) -> Batch:
        """The batch, rows sorted by the length of their label: longest first.

        The ``views`` of an example are neighbours.
        """
        if self.variation and self._vary is None:
            self._vary = self.variation(self.examples)
        samples = []
        for index in job.indices:
            rng = np.random.default_rng((self.seed, job.epoch, index))
            example = self.examples[index]
            if self._vary:
                example = self._vary(example, rng)
            samples += self.renderer.views(example, rng, job.zoom, self.views)
        samples.sort(key=lambda sample: -len(sample.ids))
        settings, size = self.renderer.settings, len(self.renderer.vocabulary)
        batch = collate(samples, size, settings.multiple, self.sizes)
        return Batch(*(part[:0] for part in batch)) if job.nothing else batch

    def __getitem__(self, job: Job) -> Parcel | HmerError:
        """For ``DataLoader``; an error comes as a value, because it would add a traceback."""
        try:
            return Parcel([part.numpy() for part in self.make(job)])
        except HmerError as error:
            return error


class _Stored(Dataset[Any]):
    """A ``BatchMaker`` in a file of this process's own, read by every worker for itself."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._maker: BatchMaker | None = None

    def __getitem__(self, job: Job) -> Parcel | HmerError:
        if self._maker is None:
            with Path(self.path).open("rb") as file:
                self._maker = pickle.load(file)
        return self._maker[job]


class Parcel:
    """A batch on its way between processes, as arrays: tensors would need room in /dev/shm."""

    def __init__(self, arrays: list[NDArray[Any]]) -> None:
        self.arrays = arrays

    def open(self) -> Batch:
        """The batch."""
        return Batch(*map(torch.from_numpy, self.arrays))

    def pin_memory(self) -> Batch:
        """Called by ``DataLoader`` in a thread of its own, if there is a GPU."""
        return pinned(self.open())


def pinned(batch: Batch) -> Batch:
    """The batch in memory that a GPU copies from by itself."""
    return Batch(*(part.pin_memory() for part in batch))


@contextlib.contextmanager
def stream(
    maker: BatchMaker, jobs: Iterator[Job], workers: int, pin: bool
) -> Iterator[Iterator[tuple[Job, Batch]]]:
    """An iterator over jobs and their batches; its thread or processes end with the context."""
    if workers <= 0:
        with ThreadPoolExecutor(1, "batches") as pool:
            yield _by_thread(maker, jobs, pool, pin)
        return
    mine, theirs = itertools.tee(jobs)
    # Handed over as an argument, it would be pickled anew for each worker, one after the other.
    stored = tempfile.NamedTemporaryFile(prefix="hmer-", suffix=".batches")  # noqa: SIM115
    pickle.dump(maker, stored, pickle.HIGHEST_PROTOCOL)
    stored.flush()
    with warnings.catch_warnings():  # more workers than CPU cores are the caller's choice
        warnings.simplefilter("ignore", UserWarning)
        multiprocessing.set_forkserver_preload([__name__])  # imports once, for all workers
        loader: DataLoader[Any] = DataLoader(
            _Stored(stored.name),
            batch_size=None,  # an index is a job, an item a whole batch
            sampler=cast(Any, theirs),
            num_workers=workers,
            prefetch_factor=AHEAD,
            pin_memory=pin,
            worker_init_fn=_quiet,
            # A fork of a process with threads may hang; a GPU's context does not survive one.
            multiprocessing_context="forkserver",
        )
        batches = iter(loader)
    try:
        yield _opened(mine, batches)
    finally:
        del batches, loader  # ends the workers
        stored.close()


def _by_thread(
    maker: BatchMaker, jobs: Iterator[Job], pool: ThreadPoolExecutor, pin: bool
) -> Iterator[tuple[Job, Batch]]:
    def make(job: Job) -> Batch:
        return pinned(maker.make(job)) if pin else maker.make(job)

    ahead: deque[tuple[Job, Future[Batch]]] = deque()
    for job in jobs:
        ahead.append((job, pool.submit(make, job)))
        if len(ahead) >= AHEAD:
            first, made = ahead.popleft()
            yield first, made.result()


def _opened(jobs: Iterator[Job], items: Iterator[Any]) -> Iterator[tuple[Job, Batch]]:
    for job, item in zip(jobs, items, strict=False):
        if isinstance(item, HmerError):
            raise item
        yield job, item.open() if isinstance(item, Parcel) else item


def _quiet(worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal; the trainer alone decides what it means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import cv2

    cv2.setNumThreads(1)
