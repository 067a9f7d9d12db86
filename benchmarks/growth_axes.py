"""The axes along which cost grows: what is varied, from where to where, and what a machine allows.

An axis whose value is one of the *server* gets a server for each value; one of the *request* asks
one server differently; one of the *picture* needs no server, for there the picture itself varies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hmer.bundle import Bundle
from hmer.runtime import ONNXRUNTIME, thread_count

PICTURE, REQUEST, SERVER = "picture", "request", "server"
AREA, LENGTH, CONCURRENCY, BEAM = "area", "length", "concurrency", "beam"
K, SLOTS, INSTANCES, THREADS = "k", "slots", "instances", "threads"


@dataclass(frozen=True)
class Axis:
    """``label`` with its unit; ``values`` by default; ``fixed``: of the repository meanwhile.

    ``option``: of ``hmer-export repository``, that takes the value.
    """

    name: str
    of: str
    label: str
    values: tuple[int, ...] = ()
    option: str = ""
    fixed: tuple[str, ...] = ()


AXES: Mapping[str, Axis] = {
    axis.name: axis
    for axis in (
        Axis(AREA, PICTURE, "picture as the encoder reads it, 1000 pixels"),
        Axis(LENGTH, PICTURE, "answer, tokens"),
        Axis(CONCURRENCY, REQUEST, "requests under way", (1, 2, 4, 8, 16, 32, 64)),
        Axis(BEAM, REQUEST, "hypotheses of the beam", (1, 2, 3, 5, 8)),
        Axis(K, SERVER, "tokens a call of the step (k)", (1, 2, 4, 8)),
        Axis(SLOTS, SERVER, "slots of the decoder", (1, 2, 4, 8, 16, 32), "--slots"),
        Axis(
            INSTANCES,
            SERVER,
            "pictures encoded at a time, a thread each",
            (1, 2, 4, 8),
            "--encoder-workers",
            ("--threads", "1"),
        ),
        Axis(
            THREADS,
            SERVER,
            "threads of the encoder, one picture at a time",
            (1, 2, 4, 8, 16),
            "--threads",
            ("--encoder-workers", "1"),
        ),
    )
}


def not_here(axis: Axis, value: int, bundle: Bundle, target: str) -> str:
    """Why ``value`` cannot be measured on this machine or with this bundle; empty if it can."""
    cpus = thread_count(0)
    if axis.name in (INSTANCES, THREADS) and value > cpus:
        return f"skipped: the machine has only {cpus} CPU{'s' * (cpus > 1)}"
    if axis.name == INSTANCES and value > 1 and target != ONNXRUNTIME:
        return f"skipped: calls of the {target} encoder take turns"
    if axis.name == BEAM and value > max(1, bundle.beam):
        if not bundle.beam:
            return "skipped: the bundle has no graph for beams"
        return f"skipped: the bundle's graph gives {bundle.beam} candidates a call"
    return ""


def options_of(axis: Axis, value: int) -> list[str]:
    """What ``hmer-export repository`` is told for ``value``."""
    return [*axis.fixed, *((axis.option, str(value)) if axis.option else ())]
