"""``hmer-bench``: measure what this project claims."""

from __future__ import annotations

import click

from benchmarks.accuracy_cli import accuracy
from benchmarks.attention_cli import attention
from benchmarks.calibrate_cli import calibrate
from benchmarks.rescore_cli import rescore


@click.group()
def main() -> None:
    """Measurements: how accurate recognition is, how sure of itself, and where it looks."""


for command in (accuracy, rescore, calibrate, attention):
    main.add_command(command)

if __name__ == "__main__":
    main()
