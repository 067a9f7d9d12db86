"""``hmer-bench``: measure what this project claims."""

from __future__ import annotations

import click

from benchmarks.accuracy_cli import accuracy
from benchmarks.attention_cli import attention
from benchmarks.calibrate_cli import calibrate
from benchmarks.compare_cli import compare
from benchmarks.invariance_cli import invariance
from benchmarks.latency_cli import latency
from benchmarks.limits_cli import limits
from benchmarks.load_cli import load
from benchmarks.rescore_cli import rescore
from benchmarks.speed_report_cli import report


@click.group()
def main() -> None:
    """Measurements: how accurate, how sure of itself and how fast; and what limits it."""


for command in (
    accuracy,
    rescore,
    calibrate,
    attention,
    invariance,
    latency,
    load,
    compare,
    limits,
    report,
):
    main.add_command(command)

if __name__ == "__main__":
    main()
