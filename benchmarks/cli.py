"""``hmer-bench``: measure what this project claims."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import click

from benchmarks.accuracy_cli import accuracy
from benchmarks.attention_cli import attention
from benchmarks.calibrate_cli import calibrate
from benchmarks.compare_cli import compare
from benchmarks.faults_cli import faults
from benchmarks.growth_cli import growth
from benchmarks.hostile_cli import hostile
from benchmarks.invariance_cli import invariance
from benchmarks.latency_cli import latency
from benchmarks.limits_cli import limits
from benchmarks.load_cli import load
from benchmarks.overhead_cli import overhead
from benchmarks.overload_cli import overload
from benchmarks.quick_cli import quick
from benchmarks.rescore_cli import rescore
from benchmarks.rivals_cli import rivals
from benchmarks.simulate_cli import simulate
from benchmarks.soak_cli import soak
from benchmarks.speed_report_cli import report
from benchmarks.tune_cli import tune


@click.group()
def main() -> None:
    """Measurements: how accurate, how sure of itself and how fast; and what limits it."""
    # Whoever ends a run by a signal ends its servers with it, as Ctrl-C does: by that very signal,
    # for which an event loop has its own way.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _end)


def _end(number: int, frame: FrameType | None) -> None:
    # A shell lets what it starts in the background ignore Ctrl-C, not this.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)


for command in (
    accuracy,
    rescore,
    calibrate,
    attention,
    invariance,
    latency,
    load,
    overhead,
    overload,
    hostile,
    compare,
    rivals,
    limits,
    faults,
    growth,
    tune,
    quick,
    simulate,
    soak,
    report,
):
    main.add_command(command)

if __name__ == "__main__":
    main()
