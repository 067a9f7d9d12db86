"""Replicas of the server in simulated time: a discrete-event model of a request's way.

::

    arrive -> front (workers) -> encoder queue, workers -> slots, decode loop -> answered

What a request waits for is the product's own: ``hmer.room`` decides who gets in, pictures are read
two at a time, the encoder's queue is ``hmer.encoding``'s, with its overtaking and its batches of
one size class; the decode loop admits to free slots before every call, a call brings ``k`` tokens
to all rows at once, and its time depends on their number and the positions of their features.
Reading, encoding, decoding and the rest of the server compete for the replica's CPUs
(``simulation_cpu``). Equal seeds give equal runs.

Left out: rows padded to their neighbours, the network, beams, priorities, deadlines, the cache of
answers, callers that try again, what other programs take of the machine.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import percentiles
from benchmarks.simulation_cpu import Cpus, Meter, one_cpu, simulation_library
from benchmarks.simulation_times import Kind, ServiceTimes
from export.config import LEAST_FULL
from hmer.encoding import NICER, EncodeJob, EncodeQueue, Tensors
from hmer.errors import BadParameter, HmerError, Overloaded
from hmer.room import Room
from hmer.serving import INTERACTIVE, MAX_WORKERS

if TYPE_CHECKING:
    import simpy

Process = Generator[Any, Any, None]

_READERS = 2  # as model_repository.recognize.road
_TOOK = "took"  # seconds of an encoder's call, in place of its outputs


@dataclass(eq=False)
class Request:
    """One request on its way; times in seconds."""

    kind: Kind
    due: float
    done: float | None = None
    rejected: bool = False
    waited: float = 0.0  # in the queues of front, encoder and slots
    left: int = 0  # tokens

    @property
    def latency(self) -> float:
        """Seconds from when it was due to its answer."""
        assert self.done is not None
        return self.done - self.due


class _Queue(EncodeQueue):
    """The product's queue, with workers that are simulated instead of its threads."""

    def begin(self) -> list[EncodeJob]:
        """A worker is no longer idle, and takes the jobs of a call."""
        self._idle -= 1
        return self.take()

    def end(self) -> None:
        """A worker is idle again."""
        self._idle += 1

    @property
    def idle(self) -> int:
        """Workers at rest."""
        return self._idle


@dataclass(frozen=True)
class Sizes:
    """Of a replica, where they differ from those that its times were measured with."""

    slots: int
    workers: int
    k: int

    @classmethod
    def of(cls, times: ServiceTimes) -> Sizes:
        """Those of the measurement."""
        return cls(times.slots, times.workers, times.k)


class Replica:
    """One server. ``on_wait`` hears of every answered request's seconds in queues."""

    def __init__(
        self,
        env: simpy.Environment,
        times: ServiceTimes,
        sizes: Sizes | None = None,
        on_wait: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """An idle one. Raises ``BadParameter`` for sizes below 1."""
        sizes = sizes or Sizes.of(times)
        if min(sizes.slots, sizes.workers, sizes.k) < 1:
            raise BadParameter("A replica needs at least one slot, one worker and k of 1.")
        self._env, self._times, self._sizes, self._on_wait = env, times, sizes, on_wait
        self.cpus = Cpus(env, times.cpus, times.shared_speed)
        front = min(MAX_WORKERS, 2 * sizes.slots + 8)
        self._front: simpy.Resource = simulation_library().Resource(env, front)
        self._readers: simpy.Resource = simulation_library().Resource(env, _READERS)
        self._most = front + times.max_queue
        self._room = Room(max(LEAST_FULL, sizes.slots), times.max_wait_s, lambda: float(env.now))
        self._queue = _Queue(
            _never,
            workers=sizes.workers,
            max_queue=times.max_queue,
            batch_pixels=times.batch_pixels,
            clock=lambda: env.now,
        )
        self._waiting: deque[tuple[Request, simpy.Event]] = deque()
        self._decoding = False
        self.in_flight = Meter(env)
        self.slots_in_use = Meter(env)

    def take(self, request: Request) -> simpy.Event:
        """Serve ``request``; the event is its answer, or its refusal."""
        inside = int(self.in_flight.level)
        try:
            if inside >= self._most:
                raise self._room.refusal("The queue is full.", inside)
            self._room.enter(inside, INTERACTIVE)
        except Overloaded:
            request.rejected, request.done = True, self._env.now
            return self._env.timeout(0)
        self.in_flight.add(1)
        return self._env.process(self._serve(request))

    def _serve(self, request: Request) -> Process:
        env, times = self._env, self._times
        began = env.now
        with self._front.request() as turn:
            yield turn
            request.waited += env.now - began
            yield self.cpus.work(one_cpu(times.server_s))
            began = env.now
            with self._readers.request() as reader:
                yield reader
                request.waited += env.now - began
                yield self.cpus.work(one_cpu(request.kind.front_s))
            try:
                yield self._encode(request)
                began = env.now
                done = env.event()
                self._waiting.append((request, done))
                if not self._decoding:
                    self._decoding = True
                    env.process(self._decode())
                yield done
            except HmerError:
                request.rejected = True
        request.done = env.now
        self.in_flight.add(-1)
        self._room.left(1, int(self.in_flight.level))
        self._on_wait(request.waited)

    def _encode(self, request: Request) -> simpy.Event:
        """Queue the picture; the event is its encoding. Raises ``Overloaded``."""
        done, began = self._env.event(), self._env.now
        kind = request.kind

        def encoded(result: Tensors | HmerError) -> None:
            assert not isinstance(result, HmerError)
            request.waited += self._env.now - began - float(result[_TOOK])
            done.succeed()

        self._queue.submit(EncodeJob(*_blank(kind.height, kind.width), encoded))
        while self._queue.idle and len(self._queue):
            self._env.process(self._call(self._queue.begin()))
        return done

    def _call(self, jobs: list[EncodeJob]) -> Process:
        """A worker: calls until nothing waits."""
        times = self._times
        while jobs:
            began = self._env.now
            pixels, batch = jobs[0].pixels, len(jobs)
            yield self.cpus.work(
                functools.partial(times.encode_s, pixels, batch), times.threads, NICER
            )
            took = self._env.now - began
            for job in jobs:
                job.on_done({_TOOK: np.array(took)})
            self._queue.took(took, pixels * batch)
            self._queue.end()
            jobs = self._queue.begin() if len(self._queue) else []

    def _decode(self) -> Process:
        """The decode loop, from the first request until none is left."""
        active: list[tuple[Request, simpy.Event]] = []
        while active or self._waiting:
            joins = 0
            while self._waiting and len(active) < self._sizes.slots:
                request, done = self._waiting.popleft()
                request.left = request.kind.tokens
                active.append((request, done))
                joins += 1
            self.slots_in_use.set(len(active))
            positions = sum(request.kind.positions for request, _ in active)
            seconds = self._times.step_s(len(active), joins, positions)
            yield self.cpus.work(one_cpu(seconds))
            for request, done in active:
                request.left -= self._sizes.k
                if request.left <= 0:
                    done.succeed()
            active = [entry for entry in active if entry[0].left > 0]
        self.slots_in_use.set(0)
        self._decoding = False


@dataclass
class Outcome:
    """What a run showed: ``requests`` in the order in which they were due."""

    requests: list[Request] = field(default_factory=list)
    seconds: float = 0.0
    busy: float = 0.0  # CPUs at work, mean over the run and all replicas
    slots: float = 0.0  # in use, mean

    def figures(self) -> dict[str, Any]:
        """Latencies in milliseconds and answers a second, for JSON."""
        answered = [r for r in self.requests if r.done is not None and not r.rejected]
        return {
            "requests": len(self.requests),
            "answered": len(answered),
            "rejected": sum(r.rejected for r in self.requests),
            "throughput": len(answered) / self.seconds if self.seconds > 0 else 0.0,
            "latency_ms": percentiles([r.latency * 1e3 for r in answered]),
            "waited_ms": percentiles([r.waited * 1e3 for r in answered]),
            "cpus_busy": self.busy,
            "slots_in_use": self.slots,
        }


def run_open(
    times: ServiceTimes,
    kinds: Sequence[Kind],
    due: Sequence[float],
    *,
    replicas: int = 1,
    sizes: Sizes | None = None,
) -> Outcome:
    """Requests that arrive at ``due``; each goes to the replica with the fewest in flight."""
    env = simulation_library().Environment()
    servers = [Replica(env, times, sizes) for _ in range(replicas)]
    outcome = Outcome([Request(kind, at) for kind, at in zip(kinds, due, strict=True)])

    def arrivals() -> Process:
        for request in outcome.requests:
            yield env.timeout(max(0.0, request.due - env.now))
            min(servers, key=lambda s: s.in_flight.level).take(request)

    env.process(arrivals())
    env.run()
    return _measured(outcome, servers, env.now - due[0])


def run_closed(
    times: ServiceTimes, kinds: Sequence[Kind], concurrency: int, *, sizes: Sizes | None = None
) -> Outcome:
    """``concurrency`` callers, each of which sends its next request with the last one's answer.

    The loop is full all the time: those that fill it at first are not counted
    (``benchmarks.loops.closed_loop``).
    """
    env = simulation_library().Environment()
    server = Replica(env, times, sizes)
    fill = concurrency if concurrency > 1 else 0
    plan = deque([*(kinds[-1 - i % len(kinds)] for i in range(fill)), *kinds, *kinds[:fill]])
    sent: list[Request] = []

    def caller() -> Process:
        while plan:
            request = Request(plan.popleft(), env.now)
            sent.append(request)
            yield server.take(request)

    for _ in range(concurrency):
        env.process(caller())
    env.run()
    counted = sent[fill : fill + len(kinds)]
    ends = [r.done for r in counted if r.done is not None]
    begin, end = min(r.due for r in counted), max(ends)
    within = sum(r.done is not None and begin < r.done <= end for r in sent)
    outcome = _measured(Outcome(counted), [server], env.now)
    outcome.seconds = (end - begin) * len(counted) / max(1, within)
    return outcome


def _measured(outcome: Outcome, servers: Sequence[Replica], seconds: float) -> Outcome:
    outcome.seconds = seconds
    if seconds > 0:
        outcome.busy = sum(s.cpus.busy.total for s in servers) / seconds / len(servers)
        outcome.slots = sum(s.slots_in_use.total for s in servers) / seconds / len(servers)
    return outcome


@functools.lru_cache(maxsize=1024)
def _blank(height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """A picture without memory of its own, and its size: the queue looks at no more."""
    image = np.broadcast_to(np.uint8(0), (1, 1, height, width))
    return image, np.array([[height, width]], np.int32)


def _never(feeds: object) -> Any:
    raise Overloaded("A simulated queue encodes nothing.")
